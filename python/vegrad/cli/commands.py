"""The program `vegrad`: the table of its subcommands, and how errors become exit codes.

Exit codes: 0 healthy, 1 a finding, 2 wrong use (one line on stderr), 4 a full disk, 130 interrupted
(`train` also by SIGTERM), 141 a reader that left.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vegrad import _core
from vegrad.arrays.shown import SCREEN, visible
from vegrad.cli import (
    bench,
    compare,
    cure,
    descent,
    diagnose,
    diagnose_run,
    explain,
    predict,
    theory,
    train,
    watch,
)
from vegrad.cli.interrupts import FULL
from vegrad.cli.parser import SHELLS, Parser, completion


class Command(NamedTuple):
    """A subcommand: `add_options` declares its options, `run` does it and returns the exit code."""

    help: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]


COMMANDS = {
    "demo": Command(
        "Diagnose and cure a 50-layer sigmoid network on handwritten digits, or an LSTM.",
        diagnose.run_demo,
        diagnose.add_demo_options,
        ("vegrad demo", "vegrad demo --html demo.html", "vegrad demo --recurrent"),
    ),
    "diagnose": Command(
        "Diagnose a network given by options; exit code 1 if something is wrong with it.",
        diagnose.run,
        diagnose.add_options,
        (
            "vegrad diagnose --depth 30 --activation sigmoid",
            "vegrad diagnose --data table.csv --target price --init he_normal --html page.html",
            "vegrad diagnose --cell lstm --data adding:200 --json",
        ),
    ),
    "diagnose-run": Command(
        "Judge a training from its log, made with vegrad or without; exit code 1 for a finding.",
        diagnose_run.run,
        diagnose_run.add_options,
        (
            "vegrad diagnose-run run.jsonl",
            "vegrad diagnose-run checkpoint-500/trainer_state.json --format github",
            "vegrad diagnose-run lightning_logs/version_0",
        ),
    ),
    "watch": Command(
        "Show a training while it runs, in the terminal or on a page: loss, gradients, findings.",
        watch.run,
        watch.add_options,
        ("vegrad watch run.jsonl", "vegrad watch run.jsonl --html", "vegrad watch logs --once"),
    ),
    "cure": Command(
        "Find the smallest change that makes a network train; exit code 1 if there is none.",
        cure.run,
        cure.add_options,
        (
            "vegrad cure --depth 30 --activation sigmoid",
            "vegrad cure --depth 30 --init normal --sigma-w 4 --optimizer sgd --patch cure.py",
        ),
    ),
    "train": Command(
        "Train a network given by options; Ctrl-C stops it, --resume goes on as if it never had.",
        train.run,
        train.add_options,
        (
            "vegrad train --epochs 5 --out first",
            "vegrad train --optimizer lion --schedule cosine --clip zclip --plot curve.png",
            "vegrad train --log run.jsonl",
            "vegrad train --epochs 40 --resume",
        ),
    ),
    "predict": Command(
        "Predict the rows of a table with a network that was trained on one, in its own units.",
        predict.run,
        predict.add_options,
        (
            "vegrad predict vegrad-network.safetensors new.csv",
            "vegrad predict vegrad-network.safetensors new.csv --out predicted.csv",
        ),
    ),
    "descent": Command(
        "Draw a training's steps as hops over the loss: lost on a plateau, over the edge, clipped; "
        "exit code 1 if one's own diverges.",
        descent.run,
        descent.add_options,
        (
            "vegrad descent",
            "vegrad descent edge --lr 0.5",
            "vegrad descent --depth 5 --optimizer adamw --batch 32 --steps 100",
        ),
    ),
    "compare": Command(
        "Compare two runs: what parted first and where; exit code 1 if they part.",
        compare.run,
        compare.add_options,
        (
            "vegrad compare before.jsonl after.jsonl",
            "vegrad compare run1/metrics.csv run2/metrics.csv --html both.html",
        ),
    ),
    "explain": Command(
        "Explain a cause by the name that findings give: how it shows, an example, what to do.",
        explain.run,
        explain.add_options,
        ("vegrad explain", "vegrad explain dead-units", "vegrad explain gain"),
    ),
    "theory": Command(
        "Show what mean-field theory says of an activation: phase, depth scales, critical weights.",
        theory.run,
        theory.add_options,
        (
            "vegrad theory gelu",
            "vegrad theory tanh --sigma-w 1.5 --plot phases.png",
            "vegrad theory --cell lstm --width 256",
        ),
    ),
    "bench": Command(
        "Time passes, clipping and steps on this machine, in vegrad and other libraries.",
        bench.run,
        bench.add_options,
        ("vegrad bench", "vegrad bench --depth 20 --width 256 --threads 1 --seconds 20"),
    ),
}
USAGES = {
    "compare": "RUN RUN [options]",
    "diagnose-run": "PATH [options]",
    "descent": "[STORY] [options]",
    "explain": "[CAUSE …] [options]",
    "predict": "NETWORK DATA [options]",
    "watch": "PATH [options]",
    "theory": "[ACTIVATION] [options]",
}
CODES = (
    "Exit codes: 0 healthy, or done; 1 a finding; 2 wrong use; 4 a full disk; 130 interrupted. "
    "vegrad COMMAND --help has the options of a command. Text is as wide as the terminal, or as "
    "COLUMNS says; NO_COLOR switches colours off."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; a user's errors become one line."""
    words = sys.argv[1:] if arguments is None else arguments
    options = argparse.Namespace()
    try:
        code = _run(words, options)
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
        if getattr(options, "verbose", False):
            traceback.print_exception(error)
        if not (isinstance(error, OSError) and error.errno in FULL):
            return _complain(_message(error))
        return _complain("\n".join([_message(error), *getattr(error, "__notes__", ())]), 4)


def _run(arguments: Sequence[str], options: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal without a letter shows ? in its place
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # The user need not know of matplotlib's cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    parser, commands = parsers()
    _, unknown = parser.parse_known_args(arguments, options)
    if unknown:
        raise ValueError(commands.get(options.command, parser).unknown(unknown, commands))
    if options.completion is not None:
        print(completion(parser, options.completion))
        return 0
    if options.command is None:
        raise ValueError(f"no command given: one of {', '.join(COMMANDS)} (see vegrad --help)")
    options.arguments = list(arguments)  # as typed: `train` repeats them to say how to go on
    return COMMANDS[options.command].run(options)


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the program, and that of each command."""
    says = "Find, explain and cure vanishing and exploding gradients."
    examples = ("vegrad demo", "vegrad diagnose --depth 30 --activation sigmoid")
    parser = Parser(
        prog="vegrad", usage="[options] COMMAND …", says=says, examples=examples, notes=CODES
    )
    parser.add_argument("--version", action="version", version=f"vegrad {_core.__version__}")
    script = f"print the script that completes commands and options in {', '.join(SHELLS)}"
    parser.add_argument("--completion", metavar="SHELL", choices=SHELLS, help=script)
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", prog="vegrad"
    )
    commands = {}
    for name, command in COMMANDS.items():
        commands[name] = subparsers.add_parser(
            name,
            help=command.help,
            says=command.help,
            usage=USAGES.get(name, "[options]"),
            examples=command.examples,
        )
        command.add_options(commands[name])
    return parser, commands


def _complain(message: str, code: int = 2) -> int:
    print(f"vegrad: error: {visible(message, SCREEN, lines=True)}", file=sys.stderr)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{visible(str(error.filename), SCREEN)}: "
        if error.filename is None and error.errno in FULL:  # whatever writes files names them
            where = "standard output: "
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
