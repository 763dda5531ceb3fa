"""Read a run, whoever has recorded it: the kind is found by the content."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from vegrad.arrays.shown import SCREEN, plainly, visible
from vegrad.diagnosis.history import History
from vegrad.runs.event_files import is_events, of_events
from vegrad.runs.form import KEY
from vegrad.runs.log_reader import LogReader
from vegrad.runs.metrics_csv import is_table, of_metrics
from vegrad.runs.run import Run
from vegrad.runs.trainer_state import LARGEST, of_trainer_state, parsed

PIECE = 1 << 20
EVENTS = "events.out.tfevents.*"
POINTER = b"version https://git-lfs"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
KINDS = (
    "a log of vegrad, a Trainer's trainer_state.json, a metrics.csv of Lightning, an event file of "
    "TensorBoard, or a vegrad.History that was saved"
)


@plainly()
def read_run(path: str | PathLike[str]) -> Run:
    """Read a run from a file: the log of a training, or what another program has recorded.

    The kind is found by the content: a log that `Monitor(log=…)` or `fit(log=…)` has written,
    Hugging Face's `trainer_state.json`, the `metrics.csv` of Lightning's CSVLogger, an event file
    of TensorBoard, a `History` that was saved; or a folder with one of them. Numbers are found by
    their usual names (`Run.about["names"]` says which was taken, `["unknown"]` lists the others).
    Of runs longer than 2¹⁸ steps some are left out, evenly.

    Args:
        path: the file, or the folder that it is in.

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
    files = found_in(Path(path))
    with complaining(files[0]), ExitStack() as opened:
        run = _read([opened.enter_context(open(one, "rb")) for one in files])
    return run.with_about(path=os.fspath(path))


@contextmanager
def complaining(path: Path) -> Iterator[None]:
    """Let the message of a ValueError begin with a file's path."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(visible(f"{path}: {error}", SCREEN)) from error


def found_in(path: Path) -> list[Path]:
    """Return the file, or of a folder the file of a run in it: several are event files.

    Raises:
        OSError, ValueError: there is none.
    """
    if not path.is_dir():
        with open(path, "rb"):  # so that a missing file is an OSError, as everywhere
            return [path]
    for name in ("trainer_state.json", "metrics.csv"):
        if (path / name).is_file():
            return [path / name]
    checkpoints = {
        int(match[1]): one / "trainer_state.json"
        for one in path.glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(one.name)) and (one / "trainer_state.json").is_file()
    }
    if checkpoints:
        return [checkpoints[max(checkpoints)]]
    found = sorted(path.glob(EVENTS)) or sorted(path.glob("*.jsonl"))[:1]
    if not found:
        raise ValueError(f"{path}: there is no run in this folder: it must have {KINDS}")
    return found


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
    first = files[0].read(1 << 16)
    for one in files:
        one.seek(0)
    match kind_of(first):
        case "log":
            reader = LogReader()
            while content := files[0].read(PIECE):
                reader.feed(content)
            return reader.run().with_about(kind="log")
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
