"""Read a run, whoever has recorded it: the kind is found by the content."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from vegrad.diagnosis.history import History
from vegrad.runs.event_files import is_events, of_events
from vegrad.runs.form import KEY
from vegrad.runs.log_reader import LogReader
from vegrad.runs.metrics_csv import is_table, of_metrics
from vegrad.runs.places import EVENTS, KINDS, found_in
from vegrad.runs.run import Run
from vegrad.runs.spikes import spikes_of
from vegrad.runs.trainer_state import LARGEST, of_trainer_state, parsed

PIECE = 1 << 20
POINTER = b"version https://git-lfs"
INPUT = "standard input"


def read_run(path: str | PathLike[str]) -> Run:
    """Read a run from a file: the log of a training, or what another program has recorded.

    The kind is found by the content: a log that `Monitor(log=…)` or `fit(log=…)` has written,
    Hugging Face's `trainer_state.json`, the `metrics.csv` of Lightning's CSVLogger, an event file
    of TensorBoard, a `History` that was saved; or a folder with one of them, or with one below it
    (of Lightning's versions the last). Numbers are found by their usual names
    (`Run.about["names"]` says which was taken, `["unknown"]` lists the others). Of runs longer than
    2¹⁸ steps some are left out, evenly.

    Args:
        path: the file, or the folder that it is in; "-" for the standard input.

    Returns:
        The run; "source" of its `about` is the kind, "path" the file.

    Raises:
        TypeError: path is none.
        OSError: there is no such file, or it cannot be read.
        ValueError: it is of no known kind, damaged or empty, or has no number that is known; the
            message begins with the path.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be the path of a file, not {type(path).__name__}")
    if os.fspath(path) == "-":
        with complaining(Path(INPUT)):
            return _read([io.BytesIO(sys.stdin.buffer.read())]).with_about(path=INPUT)
    files = found_in(Path(path))
    with complaining(files[0]), ExitStack() as opened:
        run = _read([_seekable(opened.enter_context(open(one, "rb"))) for one in files])
    has_folder = Path(path).is_dir() and files[0].match(EVENTS)  # event files have no telling names
    return run.with_about(path=os.fspath(files[0].parent if has_folder else files[0]))


@contextmanager
def complaining(path: Path) -> Iterator[None]:
    """Let the message of a ValueError begin with a file's path."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _seekable(file: BinaryIO) -> BinaryIO:
    """Return the file, or of a pipe, as `<(…)` of a shell is one, all that comes out of it."""
    return file if file.seekable() else io.BytesIO(file.read())


def kind_of(first: bytes) -> str:
    """Return the kind of a file that begins so: log, json, events, table; "" of no known one."""
    begin = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    if begin.startswith(f'{{"{KEY}"'.encode()):
        return "log"
    if begin.startswith(b"{"):
        return "json"
    if is_events(first):
        return "events"
    return "table" if is_table(first.partition(b"\n")[0].decode(errors="replace")) else ""


def _read(files: list[BinaryIO]) -> Run:
    """Return the run of files of one kind; the spikes of a log are those that it names."""
    first = files[0].read(1 << 16)
    for one in files:
        one.seek(0)
    if kind_of(first) == "log":
        reader = LogReader()
        while content := files[0].read(PIECE):
            reader.feed(content)
        return reader.run().with_about(kind="log")
    run = _of_other_programs(files, first)
    if run.about.get("rewarded"):  # whose loss goes up and down
        return run
    return replace(run, spikes=spikes_of(run.step, run.loss, run.gradient_norm))


def _of_other_programs(files: list[BinaryIO], first: bytes) -> Run:
    match kind_of(first):
        case "json":
            content = parsed(files[0].read(LARGEST + 1))
            if "log_history" not in content and "epoch_loss" in content:
                return Run.of_history(History.from_dict(content), source="vegrad.History")
            return of_trainer_state(content)
        case "events":
            return of_events(files)
        case "table":
            return of_metrics(line.decode(errors="replace") for line in files[0])
    if not first:
        raise ValueError("it is empty")
    if first.startswith(POINTER):
        raise ValueError("it is only a pointer of Git LFS: `git lfs pull` gets the file")
    raise ValueError(f"it must be {KINDS}")
