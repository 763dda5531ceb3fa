"""The files that a command writes: placed in --out and checked before anything is done."""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vegrad.arrays.shown import shown

PICTURES = (".png", ".svg", ".pdf")
HISTORIES = (".json", ".csv")
PAGES = (".html", ".htm")
ENDINGS: dict[str, Sequence[str]] = {
    "save": (),
    "history": HISTORIES,
    "checkpoint": (),
    "plot": PICTURES,
    "html": PAGES,
    "patch": (),
    "log": (),
}
"""The options that name a file to write, and what its name must end in."""


def add_file_options(group: argparse._ActionsContainer) -> None:
    """Add the options that say where files go and if they may replace others."""
    group.add_argument(
        "--out", metavar="DIR", help="the folder for all files, made if missing (default: here)"
    )
    group.add_argument("--force", action="store_true", help="overwrite files that exist")


def settle(options: argparse.Namespace) -> None:
    """Place the files of the options in --out, and check that all can be written.

    Raises:
        ValueError: wrong endings, the same name twice, or files that exist, without --force;
            `train` may write over them with --resume, as it goes on in the same files.
        OSError: a folder that is missing or cannot be written to.
        ImportError: a picture is wanted without matplotlib.
    """
    named = {name: path for name in ENDINGS if (path := getattr(options, name, None)) is not None}
    for name, path in named.items():
        if ENDINGS[name] and Path(path).suffix.lower() not in ENDINGS[name]:
            raise ValueError(
                f"--{name} must end in {' or '.join(ENDINGS[name])}, not {shown(str(path))}"
            )
    if "plot" in named:
        try:
            importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise ImportError('pictures need matplotlib: pip install "vegrad[cli]"') from error
    if options.out is not None:
        named = {name: os.path.join(options.out, path) for name, path in named.items()}
        vars(options).update(named)
    paths = list(named.values())
    if len({os.path.abspath(path) for path in paths}) < len(paths):
        raise ValueError(f"outputs must be different files, not {', '.join(paths)}")
    if not options.force and getattr(options, "resume", None) is None:
        check_new(paths, "DIR")
    if options.out is not None and paths:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    for path in paths:
        check_writable(path)


def check_new(paths: Sequence[str], elsewhere: str) -> None:
    """Raise ValueError if there are such files already, and say what --out takes instead."""
    there = [path for path in paths if Path(path).is_file()]
    if there:
        exist = "exists" if len(there) == 1 else "exist"
        raise ValueError(
            f"{', '.join(there)} {exist}: --force overwrites, --out {elsewhere} writes elsewhere"
        )


def remove_stale(path: str) -> None:
    """Remove the log of another training, which --force lets this one take the place of."""
    if Path(path).is_file():
        os.remove(path)


def check_writable(path: str) -> None:
    """Raise ValueError for a folder, OSError where no file can be written."""
    if Path(path).is_dir() or not Path(path).name:
        raise ValueError(f"{shown(path)} must be a file, not a folder")
    if Path(path).exists() and not Path(path).is_file():
        return  # such as /dev/stdout
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
