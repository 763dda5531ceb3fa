"""The terminal: its width and colours, and what shows that something takes long."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vegrad import _core
from vegrad.arrays.shown import SCREEN, visible

NARROWEST, WIDEST = 40, 120
"""Columns between which text follows the terminal: longer lines are hard to read."""


def width() -> int:
    """Return the columns to write in: the terminal's, or 80 where there is none."""
    return max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))


def print_json(content: Mapping[str, object]) -> None:
    """Print JSON for programs, with the version of vegrad."""
    content = {**content, "version": _core.__version__}
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, indent=2)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_verdict(text: str, *, good: bool) -> None:
    """Print in green or red on a terminal, unless NO_COLOR asks for none."""
    console = _console()
    if console is None or not (console.is_terminal and console.color_system) or console.no_color:
        print(text)
        return
    sys.stdout.flush()
    style = "bold green" if good else "bold red"
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_files(files: Mapping[str, str | None]) -> None:
    """Print the paths of what was written, below an empty line; nothing if there is nothing."""
    written = [
        f"{what}: {visible(path, SCREEN)}" for what, path in files.items() if path is not None
    ]
    if written:
        print("", *written, sep="\n")


@contextmanager
def spinner(options: argparse.Namespace, what: str) -> Iterator[None]:
    """Show a spinner on stderr while something takes long: on a terminal, without --quiet."""
    console = None if options.quiet else _console(stderr=True)
    if console is None or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _console(*, stderr: bool = False) -> Any:
    """Return rich's console, or None where it is not installed."""
    try:
        return importlib.import_module("rich.console").Console(stderr=stderr)
    except ImportError:
        return None
