"""`python -m coordcheck` is the command line."""

from coordcheck.cli import entry

entry()
