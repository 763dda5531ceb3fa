"""`python -m vegrad` is `vegrad`."""

import sys

from vegrad.cli import main

sys.exit(main())
