"""The file of a run, found where programs leave them: in a folder, or in one below it."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from os import strerror
from pathlib import Path

from vegrad.arrays.checks import did_you_mean
from vegrad.runs.form import KEY
from vegrad.runs.names import clean

HISTORIES = "*history*.json"  # vegrad-history.json of `vegrad train`
EVENTS = "events.out.tfevents.*"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
VERSION = re.compile(r"version_(\d+)")
DEPTH = 3  # folders below the one that is named: lightning_logs/version_0, runs/Nov29_10-00-00/…
FOLDERS, SHOWN = 1000, 5  # that are looked into, and that a message names
KINDS = (
    "a log of vegrad, a Trainer's trainer_state.json, a metrics.csv of Lightning, an event file of "
    "TensorBoard, or a vegrad.History that was saved"
)


def found_in(path: Path) -> list[Path]:
    """Return the file, or of a folder the file of the run in it: several are event files.

    Where Lightning has numbered versions, it is the last one.

    Raises:
        OSError, ValueError: there is none, or more than one run.
    """
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, strerror(errno.ENOENT) + _near(path), str(path))
        return [path]
    found = _here(path)
    if found:
        return found
    below = _below(path)
    if not below:
        named = f"{KINDS} (named {HISTORIES})"
        raise ValueError(f"{path}: there is no run in this folder: it must have {named}")
    versions = {int(match[1]): one for one in below if (match := VERSION.fullmatch(one.name))}
    if len(versions) == len(below) and len({one.parent for one in below}) == 1:
        return _here(versions[max(versions)])
    if len(below) > 1:
        raise ValueError(_several(path, below))
    return _here(below[0])


def _here(folder: Path) -> list[Path]:
    """Return the file of the run that lies in a folder itself, or in its checkpoints."""
    for name in ("trainer_state.json", "metrics.csv"):
        if (folder / name).is_file():
            return [folder / name]
    checkpoints = {
        int(match[1]): one / "trainer_state.json"
        for one in folder.glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(one.name)) and (one / "trainer_state.json").is_file()
    }
    if checkpoints:
        return [checkpoints[max(checkpoints)]]
    logs = [one for one in sorted(folder.glob("*.jsonl")) if _begins(one, f'{{"{KEY}"')]
    if len(logs) > 1:
        raise ValueError(_several(folder, logs))
    found = logs or sorted(one for one in folder.glob(EVENTS) if one.is_file())
    if found:
        return found
    histories = [one for one in sorted(folder.glob(HISTORIES)) if _begins(one, '{"loss": [')]
    if len(histories) > 1:
        raise ValueError(_several(folder, histories))
    return histories


def _below(folder: Path) -> list[Path]:
    """Return the folders below one that have a run, the nearest ones; none below such a one."""
    found, level = list[Path](), [folder]
    for _ in range(DEPTH):
        folders = [one for each in level for one in sorted(each.glob("*/")) if one.is_dir()]
        level = [one for one in folders if not one.name.startswith(".")][:FOLDERS]
        found += [one for one in level if _here(one)]
        level = [one for one in level if one not in found]
    return found


def _begins(path: Path, text: str) -> bool:
    """Return True of a file that begins with this text."""
    with open(path, "rb") as file:
        return file.read(len(text)) == text.encode()


def _several(folder: Path, runs: Sequence[Path]) -> str:
    names = ", ".join(clean(one) for one in runs[:SHOWN])
    more = f", … ({len(runs)} in all)" if len(runs) > SHOWN else ""
    return f"{folder}: there is more than one run in this folder, name one: {names}{more}"


def _near(path: Path) -> str:
    """Return " (did you mean …?)" for a name in the same folder that is nearly that of a file."""
    try:
        return did_you_mean(path.name, [clean(one.name) for one in path.parent.iterdir()])
    except OSError:
        return ""
