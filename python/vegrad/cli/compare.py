"""`vegrad compare`: two runs side by side, what parted first and where."""

from __future__ import annotations

import argparse

from vegrad.cli import outputs
from vegrad.cli.options import add_common_options
from vegrad.cli.outputs import PAGES, PICTURES
from vegrad.cli.terminal import print_files, print_json, width
from vegrad.reports import comparison
from vegrad.runs.comparison import compare


def run(options: argparse.Namespace) -> int:
    """Compare two runs; return 1 if they part."""
    outputs.settle(options)
    found = compare(*options.runs, names=options.names)
    if options.html is not None:
        found.to_html(options.html)
    if options.plot is not None:
        found.plot(options.plot)
    if options.json:
        print_json(found.to_dict())
    else:
        print(comparison.headline(found) if options.quiet else comparison.text(found, width()))
        print_files({"picture": options.plot, "page": options.html})
    return int(found.differ)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad compare`."""
    parser.add_argument(
        "runs",
        nargs=2,
        metavar="RUN",
        help="a run's log, a saved history (.json), trainer_state.json, metrics.csv or an event "
        "file; or a folder with one run; - for the standard input",
    )
    group = parser.add_argument_group("output")
    names = "what to call them (default: the names of their files)"
    group.add_argument("--names", nargs=2, metavar=("A", "B"), help=names)
    pictures, pages = ", ".join(PICTURES), ", ".join(PAGES)
    group.add_argument("--plot", metavar="PATH", help=f"save a picture ({pictures})")
    group.add_argument("--html", metavar="PATH", help=f"save a page for the browser ({pages})")
    add_common_options(group, quiet="no more than what parted first")
