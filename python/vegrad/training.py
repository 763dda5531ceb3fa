"""The loop over batches: shuffling, steps, validation, progress, checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from os import PathLike
from typing import Any, Protocol

import numpy as np

from vegrad._core import Clipped
from vegrad.buffers import Array, as_count
from vegrad.files import complaining_of, load_tensors, save_tensors
from vegrad.history import EPOCHS, LAYERS, STEPS, History
from vegrad.measurement import norms
from vegrad.optim import Optimizer


class Trainable(Protocol):
    """What is asked of a network."""

    config: dict[str, Any]

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


Callback = Callable[[Any, History], Any]

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
    run = _Run(network, optimizer, history, data, wanted, batch_size, gauge)
    shown = _Progress(progress, epochs, len(data), batch_size)
    for epoch in range(history.epochs, epochs):
        order = random.permutation(len(data)) if shuffle else np.arange(len(data))
        first = history.steps
        try:
            run.epoch(order, partial(shown.step, epoch, history))
        except ValueError as error:
            error.add_note(f"in step {history.steps} of training, in epoch {epoch}")
            raise
        run.close_epoch(first, held)
        shown.epoch(epoch, history)
        if checkpoint is not None:
            _save(network, optimizer, checkpoint, settings, random, history)
        answers = [callback(network, history) for callback in callbacks]  # all are asked
        if any(answer is True for answer in answers):
            break
    return history


def alpha_of(start: float, end: float, slope_at_start: float, slope_at_end: float) -> float:
    """Where a step from 0 to 1 lands on the parabola nearest to loss and slope at both ends.

    -slope(1)/slope(0) of the parabola: -1 is where it began, 0 the minimum. nan if it has no slope.
    """
    # f = a + b τ + c τ² in the four equations, by least squares.
    equations = [[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]]
    values = [start, end, slope_at_start, slope_at_end]
    if not np.isfinite(values).all():
        return np.nan
    _, b, c = np.linalg.lstsq(np.array(equations, float), np.array(values), rcond=None)[0]
    return float(-(b + 2 * c) / b) if b else np.nan


class _Run:
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
        self.data, self.target, self.batch_size = data, target, batch_size
        self.parameters, self.gradients = dict(network.parameters), dict(network.gradients)
        self.weights = {k: v for k, v in self.parameters.items() if k.endswith("weight")}
        self.batch = [np.empty((batch_size, *a.shape[1:]), a.dtype) for a in (data, target)]
        self.before: dict[str, Array] = {}

    def epoch(self, order: Array, show: Callable[[int], None]) -> None:
        """One step for each batch of rows, in this order."""
        network, optimizer, add = self.network, self.optimizer, self.history.add_step
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = [
                # The rows are in range: "clip" only spares NumPy a copy.
                np.take(source, rows, axis=0, out=room[: len(rows)], mode="clip")
                for source, room in zip((self.data, self.target), self.batch, strict=True)
            ]
            rate = optimizer.rate()
            loss, alpha = network.backward(*batch), np.nan
            last = start + self.batch_size >= len(order)
            if last:
                self.before = {name: weight.copy() for name, weight in self.weights.items()}
            # Not the last, whose flow is recorded: the gauge makes another pass.
            if self.gauge and not last and self.history.steps % self.gauge == 0:
                clipped, alpha = self._gauged_step(batch, loss)
            else:
                clipped = optimizer.step(self.parameters, self.gradients)
            add(loss, clipped.norm, clipped.coefficient, rate, alpha)
            show(start + len(rows))

    def _gauged_step(self, batch: list[Array], loss: float) -> tuple[Clipped, float]:
        """A step, and where it lands on the parabola along it."""
        here = {
            name: (p.copy(), self.gradients[name].copy()) for name, p in self.parameters.items()
        }
        clipped = self.optimizer.step(self.parameters, self.gradients)
        there = self.network.backward(*batch)
        slopes = [0.0, 0.0]
        for name, (weight, gradient) in here.items():
            moved = np.subtract(self.parameters[name], weight, dtype=np.float64)
            slopes[0] += float(np.vdot(moved, gradient))
            slopes[1] += float(np.vdot(moved, self.gradients[name]))
        return clipped, alpha_of(loss, there, *slopes)

    def close_epoch(self, first: int, held: tuple[Array, Array] | None) -> None:
        """What is recorded of an epoch whose first step was number `first`."""
        steps = {name: getattr(self.history, name)[first:] for name in STEPS}
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
                # Where the weights began does not matter any more.
                if (
                    name not in ("init", "sigma_w", "sigma_b", "seed")
                    and mine[name] != theirs[name]
                ):
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

    def __init__(self, wanted: bool, epochs: int, rows: int, batch_size: int) -> None:
        self.wanted, self.epochs, self.rows = wanted, epochs, rows
        self.live = wanted and sys.stderr.isatty()
        self.start = self.last = time.perf_counter()
        self.done = 0
        self.batch_size = batch_size

    def step(self, epoch: int, history: History, done: int) -> None:
        self.done += self.batch_size
        if not self.live:
            return
        now = time.perf_counter()
        if now - self.last < 0.1:
            return
        self.last = now
        self._write(f"{epoch + 1}/{self.epochs}  {100 * done // self.rows:3d} %", history, "\r")

    def epoch(self, epoch: int, history: History) -> None:
        if self.wanted:
            self._write(f"{epoch + 1}/{self.epochs}", history, "\r" if self.live else "")
            sys.stderr.write("\n")

    def _write(self, place: str, history: History, before: str) -> None:
        last = history._columns
        text = f"epoch {place}  loss {last['loss'][-1]:.4g}"
        if last["validation_loss"] and not np.isnan(last["validation_loss"][-1]):
            text += f"  validation {last['validation_loss'][-1]:.4g}"
            accuracy = last["validation_accuracy"][-1]
            text += "" if np.isnan(accuracy) else f" ({100 * accuracy:.1f} %)"
        recent = last["coefficient"][-100:]
        clipped = sum(c < 1 for c in recent) / len(recent)
        rate = self.done / max(time.perf_counter() - self.start, 1e-9)
        text += f"  gradient {last['gradient_norm'][-1]:.3g}  clipped {100 * clipped:.0f} %"
        sys.stderr.write(f"{before}{text}  {rate:,.0f} rows/s" + ("   " if before else ""))
        sys.stderr.flush()
