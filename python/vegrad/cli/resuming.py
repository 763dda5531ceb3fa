"""Going on from a checkpoint: the command that does it, and options that must be as they were."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

from vegrad.arrays.files import complaining_of, load_tensors
from vegrad.cli.options import CLIPS
from vegrad.optim import Optimizer


def stamp(path: str) -> tuple[int, int] | None:
    """Return a mark that changes whenever the file does, or None if there is no file."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def command(arguments: Sequence[str], source: str) -> str:
    """Return the command that was typed, with --resume of this file."""
    kept, value = [], False
    for word in arguments:
        if value and not word.startswith("-"):
            value = False
            continue
        value = word == "--resume"
        if not value and not word.startswith("--resume="):
            kept.append(word)
    return shlex.join(["vegrad", *kept, "--resume", source])


def check_resume(path: str, options: argparse.Namespace, optimizer: Optimizer) -> None:
    """Refuse options that differ from the checkpoint's, as a resume would silently ignore them."""
    _, about = load_tensors(path, "checkpoint")
    with complaining_of(path):
        then = _remembered(about["config"]["seed"], about["optimizer"])
    now = _remembered(options.seed, json.loads(json.dumps(optimizer.state_dict())))
    for name, value in now.items():
        if then.get(name) != value:
            was = then.get(name)
            raise ValueError(f"{name} must be {was} as it was in {path}, not {value}")


def _remembered(seed: int, state: dict[str, Any]) -> dict[str, Any]:
    lr = state["arguments"]["lr"]
    clip = dict(state["clip"])
    rule = clip.pop("rule")
    arguments = {row.argument: clip.get(row.argument) for row in CLIPS.values()}
    return {
        "seed": seed,
        "optimizer": state["optimizer"],
        "clip": rule,
        **state["arguments"],
        "lr": "a schedule" if lr is None else lr,
        **{f"the clip's {name}": value for name, value in arguments.items()},
    }
