"""`vegrad diagnose` and `vegrad demo`: a diagnosis of the network that the options describe."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from vegrad.cli import cure
from vegrad.cli.annotations import annotated
from vegrad.cli.options import (
    Parser,
    add_cell_options,
    add_data_options,
    add_json_option,
    add_network_options,
    positive,
    print_json,
    spinner,
)
from vegrad.cli.task import Task, build_task, counted, described, load_data
from vegrad.datasets import Dataset, Sequences
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.site import Site
from vegrad.networks.diagnosis import diagnose
from vegrad.networks.rnn import RNN
from vegrad.networks.treatment import Cure
from vegrad.reports import text as report

DEMO = {
    "depth": 50,
    "activation": "sigmoid",
    "init": "glorot_uniform",
    "plot": "vegrad-flow.png",
}
RECURRENT_DEMO = {
    "cell": "lstm",
    "data": "temporal_order:120",
    "width": 32,
    "plot": "vegrad-flow-through-time.png",
}
PAGES = (".html", ".htm")
FORMATS = ("text", "json", "github")
MOST_ROWS = 4096  # taken by default: more rows change nothing but the memory that is needed


def run(options: argparse.Namespace) -> int:
    """Diagnose a network; return 0 if it is healthy, else 1."""
    _check_page(options)
    if options.json and options.format not in (None, "json"):
        raise ValueError(f"--json is --format json: it goes without --format {options.format}")
    return 0 if _judge(options, load_data(options)).healthy else 1


def run_demo(options: argparse.Namespace) -> int:
    """Diagnose and cure the network of the demo; return 0."""
    shown = vars(options)
    for name, value in (RECURRENT_DEMO if options.recurrent else DEMO).items():
        if name != "plot" or options.plot is None:
            shown[name] = value
    _check_page(options)
    data = load_data(options)
    wanted = options.json or options.html is not None  # else the diagnosis is shown before the cure
    found = cure.demonstrate(options, data) if wanted else None
    _judge(options, data, found)
    if not options.json:
        print()
        print(cure.demonstrated(found or cure.demonstrate(options, data)))
    return 0


def _check_page(options: argparse.Namespace) -> None:
    if options.html is not None and Path(options.html).suffix.lower() not in PAGES:
        raise ValueError(f"--html must end in {' or '.join(PAGES)}, not {options.html!r}")


def _judge(options: argparse.Namespace, data: Dataset, found: Cure | None = None) -> Diagnosis:
    """Diagnose the network; print the diagnosis, and save the picture and page that are wanted."""
    task = build_task(options, data)
    rows = _rows(task, options)
    with spinner("one forward and one backward pass"):
        judge = cast(Callable[..., Diagnosis], diagnose)  # of either kind of network
        diagnosis = judge(
            task.network, *task.rows(rows)[:2], **task.lengths(rows), ignore=options.ignore
        )
    files: dict[str, str | None] = {"picture": None, "page": options.html}
    if options.plot is not None:
        with spinner("drawing the picture"):
            files["picture"] = _plot(task, diagnosis, options.plot)
    if options.html is not None:
        _placed(diagnosis, data).to_html(options.html, proof=found and found.proof)
    if options.format == "github":
        print(*annotated(_placed(diagnosis, data)), sep="\n")
    elif options.json or options.format == "json":
        _print_json(data, len(rows), diagnosis, files, found)
    else:
        print(described(data, len(rows)))
        print(report.measurements(diagnosis, all_layers=options.all_layers), end="\n\n")
        if _has_time_flow(task, diagnosis):
            print(task.network.flow, end="\n\n")
        _print_text(data, diagnosis, files)
    return diagnosis


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
    """Describe where the value in x stands because of which nothing was run, if there is one."""
    for finding in diagnosis.findings[:1]:
        match finding.sites:
            case [Site(kind="data", rows=(row, column))] if isinstance(data, Sequences):
                return data.place(row, int(finding.evidence["step"]), column)
            case [Site(kind="data", rows=(row, column))]:
                return data.place(row, column)
    return None


def _rows(task: Task, options: argparse.Namespace) -> npt.NDArray[np.intp]:
    """Choose the rows to diagnose; all if a value is not finite, as nothing is run then."""
    count = len(task.target)
    wanted = MOST_ROWS if options.batch is None else positive("--batch", options.batch)
    finite = np.isfinite(task.data.x).all() and np.isfinite(task.target).all()
    if wanted >= count or not finite:
        return np.arange(count)
    return np.sort(np.random.default_rng(options.seed).choice(count, wanted, replace=False))


def _has_time_flow(task: Task, diagnosis: Diagnosis) -> bool:
    """Tell if the network is recurrent and was run: not so if a value of the data is not finite."""
    return isinstance(task.network, RNN) and diagnosis.loss is not None


def _plot(task: Task, diagnosis: Diagnosis, path: str) -> str | None:
    """Draw the flow through layers or through time, if the network was run."""
    if isinstance(task.network, RNN) and _has_time_flow(task, diagnosis):
        task.network.flow.plot(path)
        return path
    return None if diagnosis.flow is None else diagnosis.plot(path)


def _print_text(data: Dataset, diagnosis: Diagnosis, files: dict[str, str | None]) -> None:
    _print_verdict(report.verdict(diagnosis), diagnosis.healthy)
    for remark in report.remarks(diagnosis):
        print(remark)
    place = _place(diagnosis, data)
    if place is not None:
        print(f"  → it stands in {place}")
    written = [f"{what}: {path}" for what, path in files.items() if path is not None]
    if written:
        print("", *written, sep="\n")


def _print_verdict(text: str, healthy: bool) -> None:
    """Print in colour on a terminal, unless NO_COLOR asks for none."""
    try:
        console = importlib.import_module("rich.console").Console()
        coloured = console.is_terminal and not console.no_color and console.color_system
    except ImportError:
        coloured = None
    if not coloured:
        print(text)
        return
    sys.stdout.flush()
    style = "bold green" if healthy else "bold red"
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _print_json(
    data: Dataset,
    rows: int,
    diagnosis: Diagnosis,
    files: dict[str, str | None],
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
    add_data_options(parser, f"rows to take (at most {MOST_ROWS})")
    add_network_options(parser, depth=10, width=64, activation="tanh", init="glorot_uniform")
    add_cell_options(parser)
    group = _add_output_options(parser)
    forms = "text, json (as --json), or github: annotations of a workflow"
    group.add_argument("--format", choices=FORMATS, help=forms)
    group.add_argument(
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
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("output")
    add_json_option(group)
    group.add_argument("--all-layers", action="store_true", help="print every layer's row")
    group.add_argument("--plot", metavar="PATH", help="save a picture (.png, .svg, .pdf)")
    group.add_argument("--html", metavar="PATH", help="save a page for the browser (.html)")
    return group
