"""`python -m coordcheck` is the command line."""

import sys

from coordcheck.cli import main

sys.exit(main())
