"""One run that several processes recorded parts of."""
