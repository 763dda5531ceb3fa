"""`vegrad diagnose` and `vegrad demo`: a diagnosis of the network that the options describe."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from vegrad.arrays.shown import SCREEN, visible
from vegrad.cli import cure, descent
from vegrad.cli.annotations import annotated
from vegrad.cli.options import (
    add_cell_options,
    add_common_options,
    add_data_options,
    add_memory_option,
    add_network_options,
    positive,
)
from vegrad.cli.outputs import PAGES, PICTURES, settle
from vegrad.cli.parser import Parser
from vegrad.cli.task import (
    Task,
    build_task,
    counted,
    described,
    load_data,
    settle_and_load,
    target_told,
)
from vegrad.cli.terminal import print_files, print_json, print_verdict, spinner, width
from vegrad.datasets import Dataset, Sequences
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.site import Site
from vegrad.networks.diagnosis import diagnose
from vegrad.networks.treatment import Cure
from vegrad.reports import text as report

Group = argparse._ArgumentGroup
DEMO = {"depth": 50, "activation": "sigmoid", "init": "glorot_uniform"}
RECURRENT_DEMO = {"cell": "lstm", "data": "temporal_order:120", "width": 32}
PICTURE, RECURRENT_PICTURE = "vegrad-flow.png", "vegrad-flow-through-time.png"
FORMATS = ("text", "json", "github")
Files = dict[str, str | None]
MOST_ROWS = 4096  # taken by default: more rows change nothing but the memory that is needed


def run(options: argparse.Namespace) -> int:
    """Diagnose a network; return 0 if it is healthy, else 1."""
    if options.json and options.format not in (None, "json"):
        raise ValueError(f"--json is --format json: it goes without --format {options.format}")
    diagnosis, files = _judge(options, settle_and_load(options))
    if (options.format or "text") == "text" and not options.json:
        print_files(files)
    return 0 if diagnosis.healthy else 1


def run_demo(options: argparse.Namespace) -> int:
    """Diagnose and cure the network of the demo; return 0."""
    vars(options).update(RECURRENT_DEMO if options.recurrent else DEMO)
    picture = RECURRENT_PICTURE if options.recurrent else PICTURE
    kept = None
    if options.plot is None:
        # Nobody has asked for this file: one that is there is left, and no reason to stop.
        kept = os.path.join(options.out or "", picture)
        if options.force or not os.path.exists(kept):
            options.plot, kept = picture, None
    settle(options)
    data = load_data(options)
    wanted = options.json or options.html is not None  # else the diagnosis is shown before the cure
    found = cure.demonstrate(options, data) if wanted else None
    _, files = _judge(options, data, found)
    if options.json:
        return 0
    cure.show(options, found or cure.demonstrate(options, data))
    print_files(files)
    if kept is not None:
        print(f"\n{visible(kept, SCREEN)} is there already: --force draws it anew")
    return 0


def _judge(
    options: argparse.Namespace, data: Dataset, found: Cure | None = None
) -> tuple[Diagnosis, Files]:
    """Diagnose the network; print the diagnosis, and save the picture and page that are wanted."""
    task = build_task(options, data)
    rows = _rows(task, options)
    with spinner(options, "one forward and one backward pass"):
        judge = cast(Callable[..., Diagnosis], diagnose)  # of either kind of network
        diagnosis = judge(
            task.network,
            *task.rows(rows)[:2],
            **task.lengths(rows),
            **task.remembers(options),
            ignore=options.ignore,
        )
    files: Files = {"picture": None, "page": options.html}
    if options.plot is not None:
        with spinner(options, "drawing the picture"):
            files["picture"] = _plot(diagnosis, options.plot)
    if options.html is not None:
        told = descent.tell(options) if found is not None and options.cell is None else None
        _placed(diagnosis, data).to_html(options.html, proof=found and found.proof, descents=told)
    if options.format == "github":
        print(*annotated(_placed(diagnosis, data)), sep="\n")
    elif options.json or options.format == "json":
        _print_json(data, len(rows), diagnosis, files, found)
    else:
        _print_verdict(data, diagnosis)
        if not options.quiet:
            _print_numbers(options, task, len(rows), diagnosis)
    return diagnosis, files


def _placed(diagnosis: Diagnosis, data: Dataset) -> Diagnosis:
    """Add the line and column of the file in which a value is not finite to the advice."""
    place = _place(diagnosis, data)
    if place is None:
        return diagnosis
    finding = diagnosis.findings[0]
    advises = f"{finding.advises} It stands in {{in_data}}."
    finding = replace(finding, advises=advises, facts={**finding.facts, "in_data": place})
    return replace(diagnosis, findings=(finding,))


def _place(diagnosis: Diagnosis, data: Dataset) -> str | None:
    """Describe where the value stands because of which nothing was run, if there is one."""
    for finding in diagnosis.findings[:1]:
        match finding.sites:
            case [Site(kind="data", rows=(row, column))] if isinstance(data, Sequences):
                return data.place(row, int(finding.evidence["step"]), column)
            case [Site(kind="data", rows=(row, column))]:
                return data.place(row, column)
            case [Site(kind="target", rows=(row, *_))] if data.lines:
                return data.target_place(row)
    return None


def _rows(task: Task, options: argparse.Namespace) -> npt.NDArray[np.intp]:
    """Choose the rows to diagnose; all if a value is not finite, as nothing is run then."""
    count = len(task.target)
    wanted = MOST_ROWS if options.batch is None else positive("--batch", options.batch)
    finite = np.isfinite(task.data.x).all() and np.isfinite(task.target).all()
    if wanted >= count or not finite:
        return np.arange(count)
    return np.sort(np.random.default_rng(options.seed).choice(count, wanted, replace=False))


def _plot(diagnosis: Diagnosis, path: str) -> str | None:
    """Draw the flow, if the network was run."""
    if diagnosis.flow is None:
        return None
    diagnosis.plot(path)
    return path


def _print_verdict(data: Dataset, diagnosis: Diagnosis) -> None:
    print_verdict(report.verdict(diagnosis, width()), good=diagnosis.healthy)
    for remark in report.remarks(diagnosis, width()):
        print(remark)
    place = _place(diagnosis, data)
    if place is not None:
        print(f"  → it stands in {visible(place, SCREEN)}")


def _print_numbers(
    options: argparse.Namespace, task: Task, rows: int, diagnosis: Diagnosis
) -> None:
    """Print below the verdict what was looked at, and the flow."""
    every = options.all_layers or options.verbose
    about = described(task.data, rows)
    print("", about, *target_told(task.data, options.loss), sep="\n")
    print(report.measurements(diagnosis, all_layers=every, width=width()))
    for finding in diagnosis.findings if options.verbose else ():
        print(f"\nevidence of {finding.kind}{f' ({finding.cause})' * bool(finding.cause)}")
        for name, value in finding.evidence.items():
            print(f"  {name:<28}{value:.6g}")


def _print_json(
    data: Dataset,
    rows: int,
    diagnosis: Diagnosis,
    files: Files,
    found: Cure | None,
) -> None:
    content = diagnosis.to_dict()
    about = counted(data, rows)
    place = _place(diagnosis, data)
    if place is not None and (data.columns or isinstance(data, Sequences)):
        about["place"] = place
    content["data"] = about
    if found is not None:
        content["cure"] = found.to_dict()
    print_json(content | files)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad diagnose`."""
    add_data_options(parser, f"rows to take (default: all, at most {MOST_ROWS})")
    add_network_options(parser)
    add_cell_options(parser)
    add_memory_option(parser)
    group = _add_output_options(parser)
    forms = f"{', '.join(FORMATS)} (annotations of a workflow) (default text)"
    group.add_argument("--format", metavar="FORM", choices=FORMATS, help=forms)
    add_ignore_option(group.add_argument)


def add_ignore_option(add: Callable[..., object]) -> None:
    """Add --ignore."""
    add(
        "--ignore",
        metavar="CAUSE",
        action="append",
        default=[],
        help="leave findings of this cause out (may be repeated); vegrad explain lists causes",
    )


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Set the options of `vegrad diagnose` for the demo; only those of the output can be chosen."""
    everything = Parser()
    add_options(everything)
    parser.set_defaults(**vars(everything.parse_args([])))
    parser.add_argument(
        "--recurrent",
        action="store_true",
        help="an LSTM that is to remember the order of two symbols, instead",
    )
    _add_output_options(parser, f" (default {PICTURE}, or {RECURRENT_PICTURE})")


def _add_output_options(parser: argparse.ArgumentParser, picture: str = "") -> Group:
    group = parser.add_argument_group("output")
    add = group.add_argument
    pictures, pages = (" or ".join(endings) for endings in (PICTURES, PAGES))
    add("--plot", metavar="PATH", help=f"save a picture ({pictures}){picture}")
    add("--html", metavar="PATH", help=f"save a page for the browser ({pages})")
    add("--all-layers", action="store_true", help="print every layer's row")
    add_common_options(
        group,
        quiet="no progress, and no more than the verdict and the names of files",
        verbose="every layer's row and the findings' evidence; of an error, where it was raised",
    )
    return group
