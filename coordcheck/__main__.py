"""`python -m coordcheck` is the command line."""

from coordcheck.cli.main import entry

entry()
