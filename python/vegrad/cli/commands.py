"""The command `vegrad`: one function a subcommand, one row of `COMMANDS` each.

Exit codes: 0 healthy, 1 a finding, 2 wrong use (one line on stderr), 130 interrupted (`train` also
by SIGTERM).
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vegrad import _core, datasets
from vegrad.cli import bench as cli_bench
from vegrad.cli import cure as cli_cure
from vegrad.cli import theory as cli_theory
from vegrad.cli import train as cli_train
from vegrad.cli.options import (
    Parser,
    build_task,
    data_options,
    load_data,
    network_options,
    positive,
    spinner,
)
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.networks.diagnosis import diagnose
from vegrad.reports import text as report
from vegrad.treatment.outcome import Cure

DEMO = {
    "depth": 50, "activation": "sigmoid", "init": "glorot_uniform", "plot": "vegrad-flow.png"
}  # fmt: skip
PAGES = (".html", ".htm")
MOST_ROWS = 4096  # that a diagnosis takes by default: more change nothing but the memory it needs


@dataclass(frozen=True)
class Command:
    """One row of `COMMANDS`: `run` gets the parsed options and returns the exit code."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code and let no exception of a user's making out."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except MemoryError:
        return _complain("not enough memory for a network or batch of this size")
    except (ValueError, TypeError, OSError, ImportError, OverflowError) as error:
        return _complain(_message(error))


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal without these letters shows ? instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its cache is not the user's concern
    parser = Parser(prog="vegrad", description="Find, explain and cure sick gradients.")
    parser.add_argument("--version", action="version", version=f"vegrad {_core.__version__}")
    commands = parser.add_subparsers(metavar="command", dest="command")
    for row in COMMANDS:
        row.options(commands.add_parser(row.name, help=row.help, description=row.help))
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)  # as typed
    if options.command is None:
        names = ", ".join(row.name for row in COMMANDS)
        raise ValueError(f"no command given: one of {names} (see vegrad --help)")
    return next(row for row in COMMANDS if row.name == options.command).run(options)


def _complain(message: str, code: int = 2) -> int:
    print(f"vegrad: error: {message}", file=sys.stderr)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


# Commands --------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    _check_page(options)
    data = load_data(options)
    wanted = options.json or options.html is not None  # else the diagnosis does not wait for it
    found = cli_cure.demonstrate(options, data) if wanted else None
    _judge(options, data, found)
    if not options.json:
        print()
        print(cli_cure.demonstrated(found or cli_cure.demonstrate(options, data)))
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    _check_page(options)
    return 0 if _judge(options, load_data(options)).healthy else 1


def _judge(
    options: argparse.Namespace, data: datasets.Dataset, found: Cure | None = None
) -> Diagnosis:
    """Diagnose the options' network, and say so in text or JSON, a picture and a page."""
    target, network = build_task(options, data)
    rows = _rows(data, target, options)
    with spinner("one forward and one backward pass"):
        diagnosis = diagnose(network, data.x[rows], target[rows])
    picture = None
    if options.plot is not None and diagnosis.flow is not None:
        with spinner("drawing the picture"):
            picture = diagnosis.plot(options.plot)
    if options.html is not None:
        _placed(diagnosis, data).to_html(options.html, proof=found and found.proof)
    if options.json:
        _print_json(options, data, len(rows), diagnosis, picture, found)
    else:
        _print_text(options, data, len(rows), diagnosis, picture)
    return diagnosis


def _check_page(options: argparse.Namespace) -> None:
    if options.html is None:
        return
    if Path(options.html).suffix.lower() not in PAGES:
        raise ValueError(f"--html must end in {' or '.join(PAGES)}, not {options.html!r}")


def _placed(diagnosis: Diagnosis, data: datasets.Dataset) -> Diagnosis:
    """With the line and column of the file where a value is not finite."""
    place = _place(diagnosis, data)
    if place is None:
        return diagnosis
    finding = diagnosis.findings[0]
    finding = replace(finding, advice=f"{finding.advice} It stands in {place}.")
    return replace(diagnosis, findings=(finding,))


def _place(diagnosis: Diagnosis, data: datasets.Dataset) -> str | None:
    """In words, where the value in x stands because of which nothing was run."""
    if diagnosis.flow is not None or not diagnosis.findings[0].message.startswith("x["):
        return None
    place = diagnosis.findings[0].evidence
    return data.place(int(place["row"]), int(place["column"]))


def _rows(data: datasets.Dataset, target: Any, options: argparse.Namespace) -> Any:
    """Which rows to diagnose: all if a value is not finite (nothing is run then), else a draw."""
    count = len(data.x)
    wanted = MOST_ROWS if options.batch is None else positive("--batch", options.batch)
    finite = np.isfinite(data.x).all() and np.isfinite(target).all()
    if wanted >= count or not finite:
        return np.arange(count)
    return np.sort(np.random.default_rng(options.seed).choice(count, wanted, replace=False))


# Output ----------------------------------------------------------------------------------------


def _print_text(
    options: argparse.Namespace,
    data: datasets.Dataset,
    rows: int,
    diagnosis: Diagnosis,
    picture: str | None,
) -> None:
    print(f"{data.name}: {rows} rows of {data.x.shape[1]} columns")
    print(report.measurements(diagnosis, all_layers=options.all_layers), end="\n\n")
    _print_verdict(report.verdict(diagnosis), diagnosis.healthy)
    for remark in report.remarks(diagnosis):
        print(remark)
    place = _place(diagnosis, data)
    if place is not None:
        print(f"  → it stands in {place}")
    files = [f"{what}: {path}" for what, path in (("picture", picture), ("page", options.html))
             if path is not None]  # fmt: skip
    if files:
        print("", *files, sep="\n")


def _print_verdict(text: str, healthy: bool) -> None:
    """In colour on a terminal, unless NO_COLOR asks for none."""
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
    options: argparse.Namespace,
    data: datasets.Dataset,
    rows: int,
    diagnosis: Diagnosis,
    picture: str | None,
    found: Cure | None,
) -> None:
    content = diagnosis.to_dict()
    content["data"] = {"name": data.name, "rows": rows, "columns": data.x.shape[1]}
    if diagnosis.flow is None and data.columns:
        place = diagnosis.findings[0].evidence
        content["data"]["place"] = data.place(int(place["row"]), int(place["column"]))
    if found is not None:
        content["cure"] = found.to_dict()
    content["picture"], content["page"] = picture, options.html
    content["version"] = _core.__version__
    print(json.dumps(content, allow_nan=False, ensure_ascii=False, indent=2))


# Options ---------------------------------------------------------------------------------------


def _demo_options(parser: argparse.ArgumentParser) -> None:
    """Those of `diagnose`, but only the output's can be chosen."""
    everything = Parser()
    _diagnose_options(everything)
    parser.set_defaults(**(vars(everything.parse_args([])) | DEMO))
    _output_options(parser)


def _output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print JSON instead of text")
    group.add_argument("--all-layers", action="store_true", help="print every layer's row")
    group.add_argument("--plot", metavar="PATH", help="save a picture (.png, .svg, .pdf)")
    group.add_argument("--html", metavar="PATH", help="save a page for the browser (.html)")


def _diagnose_options(parser: argparse.ArgumentParser) -> None:
    data_options(parser, f"rows to take (at most {MOST_ROWS})")
    network_options(parser, depth=10, width=64, activation="tanh", init="glorot_uniform")
    _output_options(parser)


COMMANDS = (
    Command(
        "demo",
        "Diagnose and cure a 50-layer sigmoid network on handwritten digits.",
        _demo,
        _demo_options,
    ),
    Command(
        "diagnose",
        "Diagnose a network given by options; exit code 1 if something is wrong with it.",
        _diagnose,
        _diagnose_options,
    ),
    Command(
        "cure",
        "Find the smallest change that makes a network train; exit code 1 if there is none.",
        cli_cure.run,
        cli_cure.cure_options,
    ),
    Command(
        "train",
        "Train a network given by options; Ctrl-C stops it, --resume goes on as if it never had.",
        cli_train.train,
        cli_train.train_options,
    ),
    Command(
        "theory",
        "What mean-field theory says of an activation: phase, depth scales, critical weights.",
        cli_theory.run_theory,
        cli_theory.theory_options,
    ),
    Command(
        "bench",
        "Time passes, clipping and steps on this machine, in vegrad and other libraries.",
        cli_bench.run_bench,
        cli_bench.bench_options,
    ),
)

if __name__ == "__main__":
    sys.exit(main())
