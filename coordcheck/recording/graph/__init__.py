"""One forward pass as the functions that were called, and what each of them did with a parameter."""
