"""`python -m vegrad.benchmark SETTINGS`: the measuring process of `vegrad bench`."""

import sys

from vegrad.benchmark.run import main

main(sys.argv[1])
