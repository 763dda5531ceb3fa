"""The program `vegrad`: the table of its subcommands, and how errors become exit codes.

Exit codes: 0 healthy, 1 a finding, 2 wrong use (one line on stderr), 130 interrupted (`train` also
by SIGTERM).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vegrad import _core
from vegrad.cli import bench, cure, diagnose, explain, theory, train
from vegrad.cli.options import Parser


class Command(NamedTuple):
    """A subcommand: `add_options` declares its options, `run` does it and returns the exit code."""

    help: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "demo": Command(
        "Diagnose and cure a 50-layer sigmoid network on handwritten digits, or an LSTM.",
        diagnose.run_demo,
        diagnose.add_demo_options,
    ),
    "diagnose": Command(
        "Diagnose a network given by options; exit code 1 if something is wrong with it.",
        diagnose.run,
        diagnose.add_options,
    ),
    "cure": Command(
        "Find the smallest change that makes a network train; exit code 1 if there is none.",
        cure.run,
        cure.add_options,
    ),
    "train": Command(
        "Train a network given by options; Ctrl-C stops it, --resume goes on as if it never had.",
        train.run,
        train.add_options,
    ),
    "explain": Command(
        "Explain a cause by the name that findings give: how it shows, an example, what to do.",
        explain.run,
        explain.add_options,
    ),
    "theory": Command(
        "Show what mean-field theory says of an activation: phase, depth scales, critical weights.",
        theory.run,
        theory.add_options,
    ),
    "bench": Command(
        "Time passes, clipping and steps on this machine, in vegrad and other libraries.",
        bench.run,
        bench.add_options,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; a user's errors become one line."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
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


def _run(arguments: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal without a letter shows ? in its place
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # The user need not know of matplotlib's cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    parser = Parser(prog="vegrad", description="Find, explain and cure sick gradients.")
    parser.add_argument("--version", action="version", version=f"vegrad {_core.__version__}")
    subparsers = parser.add_subparsers(metavar="command", dest="command")
    for name, command in COMMANDS.items():
        command.add_options(
            subparsers.add_parser(name, help=command.help, description=command.help)
        )
    options = parser.parse_args(arguments)
    options.arguments = list(arguments)  # as typed: `train` repeats them to say how to go on
    if options.command is None:
        raise ValueError(f"no command given: one of {', '.join(COMMANDS)} (see vegrad --help)")
    return COMMANDS[options.command].run(options)


def _complain(message: str, code: int = 2) -> int:
    print(f"vegrad: error: {message}", file=sys.stderr)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
