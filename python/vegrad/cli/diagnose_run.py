"""`vegrad diagnose-run`: a diagnosis of a training that was recorded, with vegrad or without."""

from __future__ import annotations

import argparse
from glob import glob
from pathlib import Path

from vegrad.cli.annotations import annotated
from vegrad.cli.diagnose import FORMATS, add_ignore_option
from vegrad.cli.terminal import print_json, print_verdict, width
from vegrad.recordings import diagnose_run
from vegrad.recordings.run import RunDiagnosis
from vegrad.reports import text as report


def run(options: argparse.Namespace) -> int:
    """Judge runs; return 0 if nothing was found in any, else 1."""
    paths = [path for given in options.files for path in expanded(given)]
    found = [diagnose_run(path, ignore=options.ignore) for path in paths]
    if options.format == "json":
        contents = [one.to_dict() for one in found]
        print_json(contents[0] if len(found) == 1 else {"runs": contents})
    for place, diagnosis in enumerate(found):
        if options.format == "github":
            print(*annotated(diagnosis), sep="\n")
        elif options.format == "text":
            _print(diagnosis, quiet=options.quiet, several=len(found) > 1, first=place == 0)
    return 0 if all(one.healthy for one in found) else 1


def expanded(path: str) -> list[str]:
    """Return the files that a pattern means, which not every shell expands; else the path."""
    return [path] if Path(path).exists() else sorted(glob(path)) or [path]


def _print(diagnosis: RunDiagnosis, *, quiet: bool, several: bool, first: bool) -> None:
    """Print the verdict on one of the runs."""
    if not first:
        print()
    if not quiet or several:
        print(diagnosis.head, end="\n" if quiet else "\n\n")
    print_verdict(report.verdict(diagnosis, width()), good=diagnosis.healthy)
    spikes = [] if quiet else diagnosis.spikes(width())
    for line in (*report.remarks(diagnosis, width()), *spikes):
        print(line)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad diagnose-run`."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="PATH",
        help="a log of vegrad, a Trainer's trainer_state.json, Lightning's metrics.csv, an event "
        "file of TensorBoard, or a folder with one run; - for the standard input; or several",
    )
    add = parser.add_argument_group("output").add_argument
    forms = f"{', '.join(FORMATS)} (annotations of a workflow) (default text)"
    add("--format", metavar="FORM", choices=FORMATS, default="text", help=forms)
    add_ignore_option(add)
    add("-q", "--quiet", action="store_true", help="no more than the verdict")
    add("-v", "--verbose", action="store_true", help="of an error, show where it was raised")
