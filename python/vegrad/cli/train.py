"""`vegrad train`: from options to a trained network, its history and a checkpoint to go on from.

Ctrl-C and SIGTERM end it alike: what there is is saved, and the command that goes on is said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.arrays.files import complaining_of, load_tensors, remove_leftovers
from vegrad.cli.options import (
    CLIPS,
    build_optimizer,
    build_task,
    data_options,
    load_data,
    network_options,
    optimizer_options,
    positive,
    spinner,
)
from vegrad.clipping import NonFiniteGradientError
from vegrad.datasets import Dataset
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.networks.mlp import MLP
from vegrad.optim import Optimizer

PICTURES = (".png", ".svg", ".pdf")
HISTORIES = (".json", ".csv")


@dataclass
class _Run:
    """What is known of the training at every moment; called by `fit` after each epoch."""

    history: History = field(default_factory=History)
    done: int = 0
    """Epochs that are in a checkpoint."""
    here: int = 0
    """Epochs of this run."""
    start: float = 0.0
    last: float = 0.0
    ended: str = "finished"
    message: str = ""

    def __call__(self, network: Any, history: History) -> None:
        self.history, self.done, self.here = history, history.epochs, self.here + 1
        self.last = time.perf_counter()


def train(options: argparse.Namespace) -> int:
    """The subcommand; returns the exit code."""
    with _sigterm_as_ctrl_c():
        return _train(options)


def _train(options: argparse.Namespace) -> int:
    outputs = _check_outputs(options)
    for path in (options.save, options.checkpoint):
        remove_leftovers(path)
    data = load_data(options)
    target, network = build_task(options, data)
    _check_finite(data, target)
    learn, hold = _split(len(data.x), options.validation, options.seed)
    epochs, batch = positive("--epochs", options.epochs), positive("--batch", options.batch)
    optimizer = build_optimizer(options, epochs * -(-len(learn) // batch))
    x, y, run = data.x[learn], target[learn], _Run()
    settings: dict[str, Any] = {"optimizer": optimizer, "batch_size": batch, "seed": options.seed}
    source = None if options.resume is None else options.resume or options.checkpoint
    if source is not None:
        _look_into(source, options, optimizer)
        run.history = network.fit(x, y, **settings, epochs=0, progress=False, resume=source)
        run.done = run.history.epochs
    if not options.json:
        print(f"{data.name}: {len(x)} rows of {x.shape[1]} columns to learn, {len(hold)} held out",
              flush=True)  # fmt: skip
    before = _stamp(options.checkpoint)
    run.start = run.last = time.perf_counter()
    try:
        run.history = network.fit(
            x, y, **settings, epochs=epochs,
            validation=(data.x[hold], target[hold]) if len(hold) else None,
            callbacks=[run], progress=not options.quiet,
            checkpoint=options.checkpoint, resume=source,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        run.ended, run.history = "interrupted", getattr(stop, "history", run.history)
    except NonFiniteGradientError as error:
        run.history = getattr(error, "history", run.history)
        run.ended, run.message = "nonfinite", _ended(error, run)
    seconds = time.perf_counter() - run.start
    if run.ended != "finished" and not options.quiet and sys.stderr.isatty():
        print(file=sys.stderr)  # below the line of progress
    run.history = _even(run.history)
    saved = _stamp(options.checkpoint) != before
    if run.ended == "interrupted":
        run.message = _interrupted(run, options.checkpoint, saved)
    # An interrupt before the first checkpoint may be a slip: earlier files stay as they are.
    files = _write(outputs, network, run) if saved or run.ended != "interrupted" else {}
    if saved:
        source = files["checkpoint"] = options.checkpoint
    figures = _figures(run, len(x), seconds)
    again = None
    if source is not None and run.ended == "interrupted":
        again = _command(options.arguments, source)
    try:
        if options.json:
            content = {"ended": run.ended, "message": run.message or None, **figures,
                       "files": files, "resume": again,
                       "network": network.config, "optimizer": repr(optimizer),
                       "data": {"name": data.name, "rows": len(x), "held_out": len(hold)},
                       "version": _core.__version__}  # fmt: skip
            print(json.dumps(content, allow_nan=False, ensure_ascii=False, indent=2))
        else:
            _print(figures, files)
        sys.stdout.flush()
    finally:  # Ctrl-C may have ended the reader of stdout too
        _complain(run, again)
    return {"finished": 0, "nonfinite": 1, "interrupted": 130}[run.ended]


def _complain(run: _Run, again: str | None) -> None:
    """Says on stderr what went wrong."""
    if run.ended == "nonfinite":
        print(f"vegrad: error: {run.message}", file=sys.stderr)
        for finding in run.history.findings:  # a training that ends well says them itself
            print(f"{finding.kind}: {finding.message}\n  → {finding.advice}", file=sys.stderr)
    if run.ended == "interrupted":
        print(f"vegrad: {run.message}", file=sys.stderr)
    if again is not None:
        print(f"To go on:\n  {again}", file=sys.stderr)


def _interrupted(run: _Run, checkpoint: str, saved: bool) -> str:
    if saved:  # perhaps one that was not told any more
        arrays, _ = load_tensors(checkpoint, "checkpoint")
        return f"interrupted; the checkpoint is of epoch {len(arrays['history.epoch_loss'])}"
    if run.done:
        return f"interrupted before the next checkpoint: nothing was saved after epoch {run.done}"
    return "interrupted before the first checkpoint: nothing was saved"


def _ended(error: Exception, run: _Run) -> str:
    where = ", ".join(getattr(error, "__notes__", ()))
    none = "" if run.history.steps else "; no step was taken, so there is no history"
    return f"training ended: {error}{f' ({where})' if where else ''}{none}"


def _stamp(path: str) -> tuple[int, int] | None:
    """Another one for each file that was here; None if there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(arguments: Sequence[str], source: str) -> str:
    """What was typed, with --resume of this file."""
    kept, value = [], False
    for word in arguments:
        if value and not word.startswith("-"):
            value = False
            continue
        value = word == "--resume"
        if not value and not word.startswith("--resume="):
            kept.append(word)
    return shlex.join(["vegrad", *kept, "--resume", source])


# Before the first step ------------------------------------------------------------------------


def _check_outputs(options: argparse.Namespace) -> dict[str, str]:
    """Where network, history and picture go, once it is sure that files can be made there."""
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


def _check_finite(data: Dataset, target: Array) -> None:
    for name, values in (("x", data.x), ("the target", target)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = (int(n) for n in (*bad[0], 0)[:2])
            line = f"line {data.lines[row]}" if data.lines else f"row {row}"
            place = data.place(row, column) if name == "x" else f"{line}, the target"
            raise ValueError(f"{data.name}: values must be finite, not {values[tuple(bad[0])]}"
                             f" as in {place}")  # fmt: skip


def _split(rows: int, share: float, seed: int) -> tuple[Array, Array]:
    """Rows to learn and rows held out, each in the order of the data."""
    if not 0 <= share < 1:
        raise ValueError(f"--validation must be at least 0 and under 1, not {share}")
    held = max(1, round(share * rows)) if share else 0
    if held >= rows:
        raise ValueError(f"--validation {share} leaves none of {rows} rows to learn")
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[held:]), np.sort(order[:held])


def _look_into(path: str, options: argparse.Namespace, optimizer: Optimizer) -> None:
    """Complains of options that a resume would pass over, as the checkpoint has its own."""
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
        "seed": seed, "optimizer": state["optimizer"], "clip": rule,
        **state["arguments"], "lr": "a schedule" if lr is None else lr,
        **{f"the clip's {name}": value for name, value in arguments.items()},
    }  # fmt: skip


# After the last step --------------------------------------------------------------------------


def _even(history: History) -> History:
    """Without the entries that an interrupt kept from being made in all columns."""
    columns = history.to_dict()
    for names in (STEPS, (*EPOCHS, *LAYERS)):
        shortest = min(len(columns[name]) for name in names)
        columns |= {name: columns[name][:shortest] for name in names}
    return History.from_dict(columns)


def _write(outputs: dict[str, str], network: MLP, run: _Run) -> dict[str, str]:
    """The files that were written."""
    network.save(outputs["network"])
    if not run.history.steps:
        return {"network": outputs["network"]}
    _whole(outputs["history"], run.history.save)
    if "picture" in outputs:
        with spinner("drawing the picture"):
            _whole(outputs["picture"], run.history.plot)
    return dict(outputs)


def _whole(path: str, make: Callable[[str], None]) -> None:
    """The file that `make` writes appears whole or not at all."""
    there = Path(path)
    partial = there.with_name(f".{secrets.token_hex(8)}.{there.name}")
    try:
        make(str(partial))
        partial.replace(there)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        partial.unlink(missing_ok=True)


def _figures(run: _Run, rows: int, seconds: float) -> dict[str, Any]:
    """What is said at the end; None where there is nothing to say."""

    def last(values: Array) -> float | None:
        return float(values[-1]) if len(values) and isfinite(values[-1]) else None

    history = run.history
    busy = run.last - run.start
    return {
        "epochs": history.epochs,
        "steps": history.steps,
        "loss": last(history.epoch_loss),
        "validation_loss": last(history.validation_loss),
        "validation_accuracy": last(history.validation_accuracy),
        "clipped_share": float(np.mean(history.coefficient < 1)) if history.steps else None,
        "seconds": seconds,
        "rows_per_second": run.here * rows / busy if run.here and busy > 0 else None,
    }


def _print(figures: dict[str, Any], files: dict[str, str]) -> None:
    f = figures
    speed = f["rows_per_second"]
    if f["epochs"]:
        print(f"{f['epochs']} epochs, {f['steps']} steps; {f['seconds']:.2f} s"
              + (f", {speed:,.0f} rows/s" if speed else ""))  # fmt: skip
        loss = "not finite" if f["loss"] is None else f"{f['loss']:.4g}"
        print(f"loss {loss}, mean of the last epoch")
    if f["validation_loss"] is not None:
        accuracy = f["validation_accuracy"]
        print(f"validation loss {f['validation_loss']:.4g}"
              + ("" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"))  # fmt: skip
    if f["clipped_share"] is not None:
        print(f"clipped {100 * f['clipped_share']:.0f} % of the steps")
    for name, path in files.items():
        print(f"{name}: {path}")


# Options --------------------------------------------------------------------------------------


def train_options(parser: argparse.ArgumentParser) -> None:
    """Options of `vegrad train`."""
    data_options(parser, "rows of a step (32)", 32)
    network_options(parser, depth=3, width=128, activation="relu", init="he_normal")
    optimizer_options(parser)
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=20, help="passes over the data, from the first start on (20)")
    add("--validation", type=float, default=0.2, metavar="SHARE",
        help="of the rows, held out (0.2)")  # fmt: skip
    add("--resume", nargs="?", const="", metavar="PATH",
        help="go on from a checkpoint (that of --checkpoint)")  # fmt: skip
    output = parser.add_argument_group("output").add_argument
    for name, path, what in (
        ("save", "vegrad-network.safetensors", "the network"),
        ("history", "vegrad-history.json", "what training saw, .json or .csv"),
        ("checkpoint", "vegrad-checkpoint.safetensors", "written after each epoch"),
    ):
        output(f"--{name}", default=path, metavar="PATH", help=f"{what} ({path})")
    output("--plot", metavar="PATH", help=f"save a picture ({', '.join(PICTURES)})")
    output("--quiet", action="store_true", help="no progress")
    output("--json", action="store_true", help="print JSON instead of text")
