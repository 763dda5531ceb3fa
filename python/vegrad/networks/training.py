"""The loop over batches: shuffling, steps, validation, progress, checkpoints."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from os import PathLike
from typing import Any, Protocol

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array, as_count
from vegrad.arrays.files import complaining_of, load_tensors, save_tensors
from vegrad.arrays.measurement import norms
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.optim import Optimizer


class Trainable(Protocol):
    """What is asked of a network."""

    config: dict[str, Any]
    _core: _core.Network

    @property
    def parameters(self) -> Any: ...  # noqa: D102
    @property
    def gradients(self) -> Any: ...  # noqa: D102
    @property
    def flow(self) -> Any: ...  # noqa: D102
    def backward(self, x: Any, target: Any) -> float: ...  # noqa: D102
    def forward(self, x: Any) -> Array: ...  # noqa: D102
    def loss(self, x: Any, target: Any) -> float: ...  # noqa: D102
    def _checked(self, x: Any, target: Any) -> tuple[Array, Array]: ...
    def _passed(self, flow: bool) -> None: ...


Callback = Callable[[Any, History], Any]

RECORD = 8  # numbers that Trainer writes down of a step
# Of a + b τ + c τ² the least squares solution for its value at 0 and 1, and its slope there.
PARABOLA = np.linalg.pinv([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]])

# Of a network's config: where its weights began, which does not matter any more on a resume.
START = {"init", "sigma_w", "sigma_b", "seed"}


def fit(
    network: Trainable,
    x: Any,
    target: Any,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    validation: tuple[Any, Any] | None,
    shuffle: bool,
    seed: int | None,
    callbacks: Iterable[Callback],
    progress: bool,
    gauge_every: int | None,
    checkpoint: str | PathLike[str] | None,
    resume: str | PathLike[str] | None,
) -> History:
    """See `MLP.fit`."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of vegrad.optim's, not {type(optimizer).__name__}")
    epochs, batch_size = as_count("epochs", epochs), as_count("batch_size", batch_size)
    gauge = 0 if gauge_every is None else as_count("gauge_every", gauge_every)
    if batch_size == 0:
        raise ValueError("batch_size must be at least 1, not 0")
    data, wanted = network._checked(x, target)
    held = None if validation is None else network._checked(*validation)
    callbacks = list(callbacks)
    settings = {"rows": len(data), "batch_size": batch_size, "shuffle": bool(shuffle)}
    random, history = np.random.default_rng(seed), History()
    if resume is not None:
        random, history = _resume(network, optimizer, resume, settings)
    run = Run(network, optimizer, history, data, wanted, batch_size, gauge)
    shown = _Progress(progress, epochs, len(data), batch_size, history.steps)
    for epoch in range(history.epochs, epochs):
        order = random.permutation(len(data)) if shuffle else np.arange(len(data))
        first = history.steps
        try:
            run.epoch(order, shown.interval, partial(shown.step, epoch, history))
        except BaseException as error:
            if isinstance(error, ValueError):
                error.add_note(f"in step {history.steps} of training, in epoch {epoch + 1}")
            error.history = history  # type: ignore[attr-defined]
            raise
        run.close_epoch(first, held)
        shown.epoch(epoch, history)
        if checkpoint is not None:
            _save(network, optimizer, checkpoint, settings, random, history)
        answers = [callback(network, history) for callback in callbacks]  # all are asked
        if any(answer is True for answer in answers):
            break
    shown.findings(history)
    return history


def parabola(records: Array) -> tuple[Array, Array]:
    """Slope at 0 and curvature of b τ + c τ², nearest to what the gauge saw at τ = 0 and 1.

    By least squares in four equations: loss and slope at both ends of a step.
    """
    loss, after, slope, slope_after = records[:, [0, 4, 5, 6]].T
    ends = np.array([loss, after, slope, slope_after])
    _, b, c = PARABOLA @ ends
    return b, c


class Run:
    """The steps of one call of fit."""

    def __init__(
        self,
        network: Trainable,
        optimizer: Optimizer,
        history: History,
        data: Array,
        target: Array,
        batch_size: int,
        gauge: int,
    ) -> None:
        self.gauge = gauge  # α every so many steps; 0: never
        self.network, self.optimizer, self.history = network, optimizer, history
        self.batch_size = batch_size
        self.trainer = _core.Trainer(network._core, data, target, batch_size)
        self.weights = {k: v for k, v in network.parameters.items() if k.endswith("weight")}
        self.before: dict[str, Array] = {}

    def epoch(self, order: Array, seconds: float, show: Callable[[int], None]) -> None:
        """One step for each batch of rows, in this order; `show` is called about so often."""
        size, start = self.batch_size, 0
        last = (len(order) - 1) // size * size  # where the last batch begins
        while start < len(order):
            steps = last // size - start // size or 1
            until = -self.history.steps % self.gauge if self.gauge else 0
            if start == last:
                self.before = {name: weight.copy() for name, weight in self.weights.items()}
            records = np.empty((steps, RECORD))
            try:
                self.optimizer.run(
                    self.trainer,
                    self.network.gradients,
                    order[start : start + steps * size],
                    records,
                    rows=size,
                    gauge=(until, self.gauge),
                    seconds=seconds,
                )
            finally:
                self.network._passed(True)
                self._note(records[: self.trainer.done])
            start += self.trainer.done * size
            show(min(start, len(order)))

    def _note(self, records: Array) -> None:
        columns = np.full((len(STEPS), len(records)), np.nan)
        columns[:4] = records[:, :4].T
        looked = ~np.isnan(records[:, 7])
        if looked.any():
            b, c = parabola(records[looked])
            length = records[looked, 7]
            with np.errstate(divide="ignore", invalid="ignore"):
                alpha = -(b + 2 * c) / b
                begins, ends = records[looked][:, [0, 5]], records[looked][:, [4, 6]]
                beyond = np.isfinite(begins).all(1) & ~np.isfinite(ends).all(1)
                alpha[beyond] = np.inf  # loss or gradient left its range
                slopes = records[looked, 5:7].T / length
                columns[4:, looked] = alpha, length, records[looked, 4], *slopes
        self.history.add_steps(columns)

    def close_epoch(self, first: int, held: tuple[Array, Array] | None) -> None:
        """What is recorded of an epoch whose first step was number `first`."""
        steps = {name: self.history.since(first, name) for name in ("loss", "coefficient")}
        moved = {name: weight - self.before[name] for name, weight in self.weights.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            update = np.log2(norms(moved)) - np.log2(norms(self.before))
        validation = (np.nan, np.nan) if held is None else self._validate(*held)
        self.history.add_epoch(
            epoch_steps=len(steps["loss"]),
            epoch_loss=float(np.mean(steps["loss"])),
            clipped_share=float(np.mean(steps["coefficient"] < 1)),
            validation_loss=validation[0],
            validation_accuracy=validation[1],
            gradient_log2=self.network.flow.gradient_log2.tolist(),
            update_log2=update.tolist(),
        )

    def _validate(self, x: Array, target: Array) -> tuple[float, float]:
        kind = self.network.config["loss"]
        loss = self.network.loss(x, target)
        if kind == "mse":
            return loss, np.nan
        output = self.network.forward(x)
        right = (
            output.argmax(1) == target
            if kind == "cross_entropy"
            else (output > 0) == (target > 0.5)
        )
        return loss, float(np.mean(right))


# Checkpoints


def _save(
    network: Trainable,
    optimizer: Optimizer,
    path: str | PathLike[str],
    settings: dict[str, Any],
    random: np.random.Generator,
    history: History,
) -> None:
    state = optimizer.state_dict()
    arrays = {f"network.{name}": array for name, array in network.parameters.items()}
    steps = {}
    for key, kept in state.pop("state").items():
        steps[key] = kept["step"]
        arrays |= {f"optimizer.{n}.{key}": a for n, a in kept.items() if n != "step"}
    for name in (*STEPS, *EPOCHS, *LAYERS):
        arrays[f"history.{name}"] = getattr(history, name)
    about = {
        "kind": "checkpoint",
        "config": network.config,
        "settings": settings,
        "random": random.bit_generator.state,
        "optimizer": state | {"state": steps},
    }
    save_tensors(path, arrays, about)


def _resume(
    network: Trainable,
    optimizer: Optimizer,
    path: str | PathLike[str],
    settings: dict[str, Any],
) -> tuple[np.random.Generator, History]:
    arrays, about = load_tensors(path, "checkpoint")
    with complaining_of(path):
        for mine, theirs, of in (
            (network.config, about["config"], "network"),
            (settings, about["settings"], "fit"),
        ):
            for name in mine:
                if name not in START and mine[name] != theirs[name]:
                    raise ValueError(
                        f"the {of}'s {name} must be {theirs[name]!r} as it was, not {mine[name]!r}"
                    )
        state = dict(about["optimizer"])
        kept: dict[str, dict[str, Any]] = {k: {"step": n} for k, n in state["state"].items()}
        columns, parameters = {}, {}
        for name, array in arrays.items():
            room, _, rest = name.partition(".")
            if room == "network":
                parameters[rest] = array
            elif room == "history":
                columns[rest] = array
            else:
                kind, _, key = rest.partition(".")
                kept[key][kind] = array
        shapes = {name: array.shape for name, array in parameters.items()}
        if shapes != {name: array.shape for name, array in network.parameters.items()}:
            raise ValueError(f"its parameters have other shapes: {shapes}")
        history = History.from_dict(columns)
        random = np.random.default_rng()
        random.bit_generator.state = about["random"]
        optimizer.load_state_dict(state | {"state": kept})
    for name, array in network.parameters.items():
        array[...] = parameters[name]
    return random, history


# Progress


class _Progress:
    """One line that is written over, on a terminal; else a line an epoch."""

    def __init__(self, wanted: bool, epochs: int, rows: int, batch_size: int, before: int) -> None:
        self.wanted, self.epochs, self.rows = wanted, epochs, rows
        self.live = wanted and sys.stderr.isatty()
        self.interval = 0.1 if self.live else np.inf  # seconds
        self.start = self.last = time.perf_counter()
        self.batch_size, self.before = batch_size, before  # steps before the start

    def step(self, epoch: int, history: History, done: int) -> None:
        now = time.perf_counter()
        if not self.live or now - self.last < self.interval:
            return
        self.last = now
        self._write(f"{epoch + 1}/{self.epochs}  {100 * done // self.rows:3d} %", history, "\r")

    def epoch(self, epoch: int, history: History) -> None:
        if self.wanted:
            self._write(f"{epoch + 1}/{self.epochs}", history, "\r" if self.live else "")
            sys.stderr.write("\n")

    def findings(self, history: History) -> None:
        if self.wanted:
            for finding in history.findings:
                sys.stderr.write(f"{finding.kind}: {finding.message}\n  → {finding.advice}\n")

    def _write(self, place: str, history: History, before: str) -> None:
        def last(name: str) -> float:
            return float(history.since(history.steps - 1, name)[-1])

        text = f"epoch {place}  loss {last('loss'):.4g}"
        loss, accuracy = (history._epochs[f"validation_{n}"][-1:] for n in ("loss", "accuracy"))
        if loss and not np.isnan(loss[0]):
            text += f"  validation {loss[0]:.4g}"
            text += "" if np.isnan(accuracy[0]) else f" ({100 * accuracy[0]:.1f} %)"
        clipped = np.mean(history.since(max(history.steps - 100, 0), "coefficient") < 1)
        seconds = max(time.perf_counter() - self.start, 1e-9)
        rate = (history.steps - self.before) * self.batch_size / seconds
        text += f"  gradient {last('gradient_norm'):.3g}  clipped {100 * clipped:.0f} %"
        text += f"  {rate:,.0f} rows/s"
        if before:  # over what stands there; a longer line would leave rows behind
            width = shutil.get_terminal_size().columns - 1
            text = before + text[:width].ljust(width)
        sys.stderr.write(text)
        sys.stderr.flush()
