"""`vegrad diagnose-run`: a diagnosis of a training that was recorded, with vegrad or without."""

from __future__ import annotations

import argparse

from vegrad.cli.annotations import annotated
from vegrad.cli.diagnose import FORMATS, add_ignore_option
from vegrad.cli.terminal import print_json, print_verdict, width
from vegrad.recordings import diagnose_run
from vegrad.reports import text as report


def run(options: argparse.Namespace) -> int:
    """Judge a run; return 0 if nothing was found, else 1."""
    diagnosis = diagnose_run(options.file, ignore=options.ignore)
    if options.format == "github":
        print(*annotated(diagnosis), sep="\n")
    elif options.format == "json":
        print_json(diagnosis.to_dict())
    else:
        if not options.quiet:
            print(diagnosis.head, end="\n\n")
        print_verdict(report.verdict(diagnosis, width()), good=diagnosis.healthy)
        for remark in report.remarks(diagnosis, width()):
            print(remark)
    return 0 if diagnosis.healthy else 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad diagnose-run`."""
    parser.add_argument(
        "file",
        metavar="PATH",
        help="a log of vegrad, a Trainer's trainer_state.json, Lightning's metrics.csv, an event "
        "file of TensorBoard, or a folder with one",
    )
    add = parser.add_argument_group("output").add_argument
    forms = f"{', '.join(FORMATS)} (annotations of a workflow) (default text)"
    add("--format", metavar="FORM", choices=FORMATS, default="text", help=forms)
    add_ignore_option(add)
    add("-q", "--quiet", action="store_true", help="no more than the verdict")
    add("-v", "--verbose", action="store_true", help="of an error, show where it was raised")
