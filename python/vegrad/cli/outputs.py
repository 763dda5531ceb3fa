"""The files that a command writes: checked before anything is done."""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")
HISTORIES = (".json", ".csv")


def check_outputs(options: argparse.Namespace) -> dict[str, str]:
    """Return the paths of network, history and picture, after checking that all can be written."""
    outputs = {"network": options.save, "history": options.history}
    if options.plot is not None:
        outputs["picture"] = options.plot
        _check_ending("--plot", options.plot, PICTURES)
        try:
            importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise ImportError('pictures need matplotlib: pip install "vegrad[cli]"') from error
    _check_ending("--history", options.history, HISTORIES)
    paths = [*outputs.values(), options.checkpoint]
    for path in paths:
        if Path(path).is_dir() or not Path(path).name:
            raise ValueError(f"{path!r} must be a file, not a folder")
        try:
            with tempfile.TemporaryFile(dir=Path(path).parent):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
    if len({os.path.abspath(path) for path in paths}) < len(paths):
        raise ValueError(f"outputs must be different files, not {', '.join(paths)}")
    return outputs


def _check_ending(option: str, path: str, endings: Sequence[str]) -> None:
    if Path(path).suffix not in endings:
        raise ValueError(f"{option} must end in {' or '.join(endings)}, not {path!r}")
