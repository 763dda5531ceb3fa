"""`vegrad compare`: two runs side by side, what parted first and where."""

from __future__ import annotations

import argparse
import json

from vegrad.cli import outputs
from vegrad.cli.outputs import PAGES, PICTURES
from vegrad.cli.terminal import width
from vegrad.reports import comparison
from vegrad.runs.comparison import compare


def run(options: argparse.Namespace) -> int:
    """Compare two runs; return 1 if they part."""
    outputs.settle(options)
    found = compare(*options.run_path, names=options.names)
    if options.html is not None:
        found.to_html(options.html)
    if options.plot is not None:
        found.plot(options.plot)
    if options.json:
        print(json.dumps(found.to_dict(), allow_nan=False))
    else:
        print(comparison.text(found, width()))
    return int(found.differ)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad compare`."""
    parser.add_argument(
        "run_path",
        nargs=2,
        metavar="RUN",
        help="a run's log, a saved history (.json), trainer_state.json, metrics.csv or an event "
        "file; or a folder with one",
    )
    parser.add_argument(
        "--names", nargs=2, metavar=("A", "B"), help="what to call them (default: their files)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    pictures, pages = ", ".join(PICTURES), ", ".join(PAGES)
    parser.add_argument("--plot", metavar="PATH", help=f"save a picture ({pictures})")
    parser.add_argument("--html", metavar="PATH", help=f"save a page for the browser ({pages})")
    outputs.add_file_options(parser)
