"""`vegrad train`: from options to a trained network, its history and a checkpoint to go on from.

Ctrl-C and SIGTERM stop a training in the same way: what there is is saved, and the command that
goes on with it is printed. What is found is printed when it is met, and again at the end.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import TextIO, cast

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.arrays.files import load_tensors, remove_leftovers
from vegrad.arrays.shown import SCREEN, visible
from vegrad.cli.guessing import Figures, beside_guessing, in_words
from vegrad.cli.interrupts import FULL, Interrupts, interrupts
from vegrad.cli.options import (
    TRAINED,
    add_cell_options,
    add_common_options,
    add_data_options,
    add_network_options,
    add_optimizer_options,
    add_truncation_option,
    build_optimizer,
    positive,
    written_clip,
)
from vegrad.cli.outputs import PICTURES, remove_stale
from vegrad.cli.resuming import check_resume, command, stamp
from vegrad.cli.task import (
    as_truncation,
    build_task,
    check_finite,
    described,
    settle_and_load,
    shared,
    split,
    target_told,
)
from vegrad.cli.terminal import print_json, spinner, width
from vegrad.clipping import NonFiniteGradientError
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.flow.finding import Finding
from vegrad.networks.mlp import MLP
from vegrad.networks.rnn import RNN
from vegrad.reports.text import describe_network
from vegrad.reports.values import count_of

STOPS = ("warning", "critical")


@dataclass
class _Run:
    """The training as far as it has come; `fit` calls it after each epoch."""

    history: History = field(default_factory=History)
    done: int = 0
    """Number of epochs that are in a checkpoint."""
    here: int = 0
    """Number of epochs of this run."""
    start: float = 0.0
    last: float = 0.0
    """Time at the end of the last epoch, as `start` in seconds of time.perf_counter()."""
    seconds: float = 0.0
    ended: str = "finished"
    message: str = ""
    stop_on: str | None = None
    """The severity of a finding that ends the training: "warning" stands for both."""
    live: bool = False
    """True if there may be a line of progress on the terminal."""
    told: list[Finding] = field(default_factory=list)

    def __call__(self, network: MLP | RNN, history: History) -> None:
        self.history, self.done, self.here = history, history.epochs, self.here + 1
        self.last = time.perf_counter()

    def hear(self, finding: Finding) -> bool:
        """Print a finding when `fit` meets it; return True if it is to end the training."""
        self.told.append(finding)
        print("\n" * self.live + _words(finding, sys.stderr), file=sys.stderr, flush=True)
        if self.stop_on is None or (self.stop_on, finding.severity) == ("critical", "warning"):
            return False
        self.ended, self.message = "stopped", f"stopped by a finding: {finding.kind}"
        return True

    def follow(self, fit: Callable[..., History], **arguments: object) -> None:
        """Call `fit`, and note how it ended and how long it took."""
        self.start = self.last = time.perf_counter()
        try:
            self.history = fit(**arguments)
        except KeyboardInterrupt as stop:
            self.ended, self.history = "interrupted", getattr(stop, "history", self.history)
        except NonFiniteGradientError as error:
            self.history = getattr(error, "history", self.history)
            self.ended, self.message = "nonfinite", _ended(error, self)
        self.seconds = time.perf_counter() - self.start


def run(options: argparse.Namespace) -> int:
    """Train a network; return 0, 1 if something was found, or 130 if interrupted."""
    with interrupts() as heard:
        return _train(options, heard)


def _train(options: argparse.Namespace, heard: Interrupts) -> int:
    data = settle_and_load(options)
    outputs = {"network": options.save, "history": options.history}
    for name, path in (("picture", options.plot), ("log", options.log)):
        if path is not None:
            outputs[name] = path
    for path in (options.save, options.checkpoint):
        remove_leftovers(path)
    truncation = as_truncation(options.truncation)
    task = build_task(options, data)
    check_finite(task)
    learn, hold = split(len(data.x), options.validation, options.seed)
    epochs, batch = positive("--epochs", options.epochs), positive("--batch", options.batch)
    optimizer = build_optimizer(options, epochs * -(-len(learn) // batch))
    source = None if options.resume is None else options.resume or options.checkpoint
    network, train = task.network, cast(Callable[..., History], task.network.fit)
    fit = partial(
        train,
        *task.rows(learn)[:2],
        **task.lengths(learn),
        **({} if truncation is None else {"truncation": truncation}),
        optimizer=optimizer,
        batch_size=batch,
        seed=options.seed,
        resume=source,
    )
    run = _Run(stop_on=options.stop_on, live=not options.quiet and sys.stderr.isatty())
    if source is not None:
        check_resume(source, options, optimizer)
        run.history = fit(epochs=0, progress=False, on_finding="stop")
        run.done = run.history.epochs
    if not options.json:
        shares = f"{described(data, len(learn))} to learn, {len(hold)} held out"
        print(shares, *target_told(data, options.loss), sep="\n", flush=True)
        if not options.quiet:
            print(describe_network(network.config), flush=True)
    whole = partial(
        fit,
        epochs=epochs,
        validation=task.rows(hold) if len(hold) else None,
        callbacks=[run],
        log=options.log,
    )
    if options.log is not None and source is None:
        remove_stale(options.log)
    files, again = _follow(options, heard, run, whole, network, outputs, source)
    used = {"name": data.name, "rows": len(learn), "held_out": len(hold), **shared(data)}
    about = {"network": network.config, "optimizer": repr(optimizer), "data": used}
    about["clip"] = written_clip(options.clip)
    figures = _figures(run, len(learn)) | beside_guessing(
        data, task.target, network, learn, hold, run.history
    )
    _report(options.json, run, figures, files, again, about)
    if run.ended == "interrupted":
        return 130
    return 1 if run.ended != "finished" or run.history.findings else 0


def _follow(
    options: argparse.Namespace,
    heard: Interrupts,
    run: _Run,
    fit: Callable[..., History],
    network: MLP | RNN,
    outputs: dict[str, str],
    source: str | None,
) -> tuple[dict[str, str], str | None]:
    """Train, and save what there is; return the files and the command that goes on, if it can."""
    before = stamp(options.checkpoint)
    try:
        run.follow(
            fit,
            progress=not options.quiet,
            checkpoint=options.checkpoint,
            on_finding=run.hear,
        )
        heard.saving = True
        if run.ended != "finished" and not options.quiet and sys.stderr.isatty():
            print(file=sys.stderr)  # the line of progress has not been ended
        saved = stamp(options.checkpoint) != before
        files = _save(options, outputs, network, run, saved)
    except OSError as error:
        last = source if stamp(options.checkpoint) == before else options.checkpoint
        if error.errno in FULL and last is not None:
            error.add_note(f"To go on:\n  {command(options.arguments, last)}")
        raise
    last = options.checkpoint if saved else source
    if last is None or run.ended != "interrupted":
        return files, None
    return files, command(options.arguments, last)


def _report(
    as_json: bool,
    run: _Run,
    figures: Figures,
    files: dict[str, str],
    again: str | None,
    about: Mapping[str, object],
) -> None:
    """Print how the training ended; `again` is the command that goes on, if it can."""
    try:
        if as_json:
            ended = {"ended": run.ended, "message": run.message or None}
            found = [finding.to_dict() for finding in run.history.findings]
            more = {"files": files, "resume": again, "findings": found}
            print_json({**ended, **figures, **more, **about})
        else:
            for finding in run.history.findings:
                print(_words(finding, sys.stdout))
            _print(figures, files, about["clip"])
        sys.stdout.flush()
    finally:  # Ctrl-C may have ended the reader of stdout too
        _complain(run, again)


def _save(
    options: argparse.Namespace, outputs: dict[str, str], network: MLP | RNN, run: _Run, saved: bool
) -> dict[str, str]:
    """Write what is to be kept and return the paths by name; `saved` tells of a checkpoint."""
    run.history = _even(run.history)
    if run.ended == "interrupted":
        run.message = _interrupted(run, options.checkpoint, saved)
        # An interrupt before the first checkpoint may be a slip: earlier files stay as they are.
        if not saved:
            return {}
    network.save(outputs["network"])
    files = dict(outputs) if run.history.steps else {"network": outputs["network"]}
    if "history" in files:
        run.history.save(files["history"])
    if "picture" in files:
        with spinner(options, "drawing the picture"):
            run.history.plot(files["picture"])
    return files | {"checkpoint": options.checkpoint} if saved else files


def _complain(run: _Run, again: str | None) -> None:
    """Print on stderr what went wrong, and the command that goes on."""
    if run.ended == "nonfinite":
        print(f"vegrad: error: {visible(run.message, SCREEN)}", file=sys.stderr)
        told = {(finding.kind, finding.cause) for finding in run.told}
        for finding in run.history.findings:  # which `fit` had no time to tell
            if (finding.kind, finding.cause) not in told:
                print(_words(finding, sys.stderr), file=sys.stderr)
    if run.ended == "stopped":
        print(f"vegrad: {visible(run.message, SCREEN)}", file=sys.stderr)
    if run.ended == "interrupted":
        print(f"vegrad: {visible(run.message, SCREEN)}", file=sys.stderr)
    if again is not None:
        print(f"To go on:\n  {again}", file=sys.stderr)


def _words(finding: Finding, stream: TextIO) -> str:
    """Write a finding and its advice: as wide as the terminal, or in a line each for programs."""
    lines = (f"{finding.kind}: {finding.message}", f"  → {finding.advice}")
    if not stream.isatty():
        return "\n".join(lines)
    return "\n".join(textwrap.fill(line, width(), subsequent_indent="    ") for line in lines)


def _interrupted(run: _Run, checkpoint: str, saved: bool) -> str:
    if saved:  # it may be newer than the last call of `run`
        arrays, _ = load_tensors(checkpoint, "checkpoint")
        return f"interrupted; the checkpoint is of epoch {len(arrays['history.epoch_loss'])}"
    if run.done:
        return f"interrupted before the next checkpoint: nothing was saved after epoch {run.done}"
    return "interrupted before the first checkpoint: nothing was saved"


def _ended(error: Exception, run: _Run) -> str:
    where = ", ".join(getattr(error, "__notes__", ()))
    none = "" if run.history.steps else "; no step was taken, so there is no history"
    return f"training ended: {error}{f' ({where})' if where else ''}{none}"


def _even(history: History) -> History:
    """Drop the last entries of columns that an interrupt left longer than the others."""
    columns = history.to_dict()
    for names in (STEPS, (*EPOCHS, *LAYERS)):
        shortest = min(len(columns[name]) for name in names)
        columns |= {name: columns[name][:shortest] for name in names}
    return History.from_dict(columns)


def _figures(run: _Run, rows: int) -> Figures:
    """Return the figures that are printed at the end; None for those that are not known."""

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
        "seconds": run.seconds,
        "rows_per_second": run.here * rows / busy if run.here and busy > 0 else None,
    }


def _print(figures: Figures, files: dict[str, str], clip: object) -> None:
    f = figures
    if f["epochs"]:
        speed = f", {f['rows_per_second']:,.0f} rows/s" if f["rows_per_second"] else ""
        epochs, steps = count_of(f["epochs"], "epoch"), count_of(f["steps"], "step")
        print(f"{epochs}, {steps}; {f['seconds']:.2f} s{speed}")
        loss = "not finite" if f["loss"] is None else f"{f['loss']:.4g}"
        print(f"loss {loss}, mean of the last epoch")
    if f["validation_loss"] is not None:
        share = f["validation_accuracy"]
        accuracy = "" if share is None else f", accuracy {100 * share:.1f} %"
        print(f"validation loss {f['validation_loss']:.4g}{accuracy}{in_words(f)}")
    if f["clipped_share"] is not None:
        print(f"clipped {100 * f['clipped_share']:.0f} % of the steps (--clip {clip})")
    for name, path in files.items():
        print(f"{name}: {visible(path, SCREEN)}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad train`."""
    add_data_options(parser, "rows of a step (default 32)", 32)
    add_network_options(parser, TRAINED)
    add_cell_options(parser)
    add_optimizer_options(parser)
    group = parser.add_argument_group("training")
    add_truncation_option(group)
    add = group.add_argument
    epochs = "passes over the data, from the first start on (default 20)"
    held_out = "share of the rows to hold out (default 0.2)"
    stop = "end at the first finding that is as bad as that (default: go on)"
    resume = "go on from a checkpoint (default: that of --checkpoint), in the same files"
    add("--epochs", type=int, metavar="N", default=20, help=epochs)
    add("--validation", type=float, default=0.2, metavar="SHARE", help=held_out)
    add("--stop-on", metavar="SEVERITY", choices=STOPS, help=f"{', '.join(STOPS)}: {stop}")
    add("--resume", nargs="?", const="", metavar="PATH", help=resume)
    group = parser.add_argument_group("output")
    for name, path, what in (
        ("save", "vegrad-network.safetensors", "the network"),
        ("history", "vegrad-history.json", "what training saw, .json or .csv"),
        ("checkpoint", "vegrad-checkpoint.safetensors", "written after each epoch"),
    ):
        told = f"{what} (default {path})"
        group.add_argument(f"--{name}", default=path, metavar="PATH", help=told)
    group.add_argument("--plot", metavar="PATH", help=f"save a picture ({', '.join(PICTURES)})")
    log = "a line a step, such as run.jsonl, which vegrad watch shows while it is written"
    group.add_argument("--log", metavar="PATH", help=log)
    add_common_options(group, quiet="no progress; findings are printed nevertheless")
