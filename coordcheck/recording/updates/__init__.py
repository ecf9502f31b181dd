"""What each parameter's own update does to the input that it saw at initialisation."""
