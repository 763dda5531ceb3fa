"""The training loop: batches, steps, validation, and what the history records of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, FloatArray, as_count
from vegrad.arrays.measurement import norms
from vegrad.clipping import NonFiniteGradientError
from vegrad.diagnosis.alarms import Alarms, OnFinding, checked_way
from vegrad.diagnosis.history import STEPS, History
from vegrad.diagnosis.parabola import parabola
from vegrad.networks.checkpoint import TrainingState
from vegrad.networks.distributed import Comm, Group, SharedGradients
from vegrad.networks.logged import Logged
from vegrad.networks.network import Network
from vegrad.networks.progress import Progress
from vegrad.networks.rows import Batch, Rows
from vegrad.networks.watch import Watch
from vegrad.optim import Optimizer, Trainer

Callback = Callable[[Any, History], object]

RECORD = 8  # the numbers that the core's Trainer writes down of a step


def fit(
    network: Network,
    x: Any,
    target: Any,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    validation: tuple[Any, Any] | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    gauge_every: int | None = 100,
    checkpoint: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    on_finding: OnFinding = "warn",
    log: str | PathLike[str] | None = None,
    comm: Comm | None = None,
) -> History:
    """Train the network; Ctrl-C is answered within a batch and leaves it as a step left it.

    Args:
        network: the one whose method this is.
        x: (N, I).
        target: as for `backward`, for all rows.
        optimizer: one of vegrad.optim, with its clip.
        epochs: passes over the data, counted from the first start, also after a resume.
        batch_size: rows of a step; the last of an epoch may have fewer.
        validation: (x, target), evaluated after each epoch.
        shuffle: draw a new order of the rows for each epoch.
        seed: of the order. None draws a fresh one.
        callbacks: called with (network, history) after each epoch; True ends the training.
        progress: show a line on standard error.
        gauge_every: the gauge takes `History.alpha` at every so many steps, each of which then
            costs about two, and of six in a row where one is suspicious; None for never.
        checkpoint: a file that is written after each epoch, whole or not at all.
        resume: a checkpoint to go on from, bit for bit as if never stopped.
        on_finding: what is done when the first batch, the steps or the end of an epoch tell that
            something is wrong, once for each cause: "warn" (a `vegrad.FindingWarning`), "raise" (a
            `vegrad.FindingError` with `.finding` and `.history`), "stop" (the training ends there),
            a function that is called with the `vegrad.Finding`, and ends the training by returning
            True, or None for silence. `History.findings` has them all in any case.
        log: a file to which a line is appended a step, for `vegrad watch` and `vegrad.read_run`;
            one that is there is gone on with, its steps after a resume's superseded.
        comm: an MPI communicator of mpi4py, for one training by all its processes. Each takes all
            rows and passes over its part of every batch; the gradients are summed in one call, and
            clip, findings and history are those of the sum. All begin with the weights of rank 0,
            which alone calls the callbacks, writes files and prints. `network.flow` is then that of
            a process's own part.

    Raises:
        TypeError, ValueError: before the first step; NonFiniteGradientError as the clip's rule
            says, with the weights as the last step left them. What ends a training, Ctrl-C too,
            has the history so far as its attribute `history`.
    """
    options = Options(
        optimizer,
        epochs,
        batch_size,
        shuffle,
        seed,
        callbacks,
        progress,
        gauge_every,
        checkpoint,
        resume,
        on_finding,
        log,
        comm,
    )
    check_validation(validation, 2)
    rows = Rows(*network.checked(x, target))
    held = None if validation is None else Batch(*network.checked(*validation))
    return train(network, rows, held, options)


def check_validation(held: object, *counts: int) -> None:
    """Raise TypeError unless the data held out for validation, if any, have so many parts."""
    if held is None or (isinstance(held, tuple | list) and len(held) in counts):
        return
    wanted = "(x, target)" + " or (x, target, lengths)" * (3 in counts)
    got = f"{len(held)} arrays" if isinstance(held, tuple | list) else type(held).__name__
    raise TypeError(f"validation must be {wanted}, not {got}")


@dataclass
class Options:
    """The arguments of `fit` that are the same for all networks, which are checked here."""

    optimizer: Optimizer
    epochs: int
    batch_size: int
    shuffle: bool = True
    seed: int | None = None
    callbacks: Iterable[Callback] = ()
    progress: bool = True
    gauge_every: int | None = 100
    checkpoint: str | PathLike[str] | None = None
    resume: str | PathLike[str] | None = None
    on_finding: OnFinding = "warn"
    log: str | PathLike[str] | None = None
    comm: Comm | None = None

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for what does not fit."""
        if not isinstance(self.optimizer, Optimizer):
            got = type(self.optimizer).__name__
            raise TypeError(f"optimizer must be one of vegrad.optim's, not {got}")
        self.epochs = as_count("epochs", self.epochs)
        self.batch_size = as_count("batch_size", self.batch_size, 1)
        gauge = self.gauge_every
        self.gauge = 0 if gauge is None else as_count("gauge_every", gauge)
        checked_way(self.on_finding)


def train(network: Network, rows: Rows, held: Batch | None, options: Options) -> History:
    """Train a network on rows that were checked; `held` are those held out for validation."""
    group = None if options.comm is None else Group(options.comm)
    o = options if group is None else _of_rank(group, options)
    settings = {**rows.settings, "batch_size": o.batch_size, "shuffle": bool(o.shuffle)}
    random = np.random.default_rng(o.seed)
    state = TrainingState(network, o.optimizer, settings, random, History(), rows.cuts)
    if o.resume is not None:
        state.resume(o.resume)
    if group is not None:
        _begin(group, state, rows, held, o)
    state.history.windows = rows.windows
    alarms = Alarms(o.on_finding, state.history)
    watch = Watch(network, state.history, rows, o.gauge, alarms)
    log = None if o.log is None else Logged(o.log, network, o.optimizer, state.history)
    run = Run(network, o.optimizer, state.history, rows, o.batch_size, o.gauge, watch, log, group)
    shown = Progress(o.progress, o.epochs, len(rows), o.batch_size, state.history.steps)
    try:
        return _epochs(state, run, held, o.epochs, list(o.callbacks), shown, o.checkpoint)
    except BaseException as error:
        error.history = state.history  # type: ignore[attr-defined]
        raise
    finally:
        shown.close()
        if log is not None:
            log.close()


def _of_rank(group: Group, options: Options) -> Options:
    """Return the options of one process of several: what a person sees comes from rank 0."""
    told, callbacks = options.on_finding, options.callbacks
    first, seed = group.rank == 0, options.seed
    if callable(told):
        told = group.asked(told)
    elif told == "warn" and not first:
        told = None
    return replace(
        options,
        seed=group.first(lambda: secrets.randbits(62)) if seed is None else seed,
        callbacks=[group.asked(one) for one in callbacks],
        on_finding=told,
        progress=options.progress and first,
        log=options.log if first else None,
    )


def _begin(
    group: Group, state: TrainingState, rows: Rows, held: Batch | None, options: Options
) -> None:
    """Raise ValueError unless all processes were given the same; give them the same weights."""
    network, optimizer = state.network, state.optimizer
    config = {name: value for name, value in network.config.items() if name != "seed"}
    given = {"network": config, "optimizer": repr(optimizer), "steps": optimizer.steps}
    asked = ("epochs", "batch_size", "shuffle", "seed", "gauge_every")
    group.check(rows, held, given | {name: getattr(options, name) for name in asked})
    group.share(network.parameters)


def _epochs(
    state: TrainingState,
    run: Run,
    held: Batch | None,
    epochs: int,
    callbacks: Sequence[Callback],
    shown: Progress,
    checkpoint: str | PathLike[str] | None,
) -> History:
    """Run the epochs that are left; `held` are the rows held out for validation."""
    history, rows, watch = state.history, len(run.rows), run.watch
    assert watch is not None
    for epoch in range(history.epochs, epochs):
        first = history.steps
        try:
            order = state.random.permutation(rows) if state.settings["shuffle"] else np.arange(rows)
            if not first:
                watch.begin(order, run.batch_size)
            run.epoch(order, shown.interval, partial(shown.step, epoch, history))
            if watch.alarms.stop:
                break
            run.close_epoch(first, order, held)
            watch.close_epoch()
        except ValueError as error:
            error.add_note(f"in step {history.steps} of training, in epoch {epoch + 1}")
            if isinstance(error, NonFiniteGradientError):
                watch.broken(ending=True)
            raise
        shown.epoch(epoch, history)
        if checkpoint is not None:
            if run.group is None:
                state.save(checkpoint)
            else:
                run.group.first(partial(state.save, checkpoint))
        # Every callback is called, also after one has asked to end the training.
        answers = [callback(state.network, history) for callback in callbacks]
        if any(answer is True for answer in answers) or watch.alarms.stop:
            break
    watch.end()
    return history


class Run:
    """The steps of one training, over rows that were checked.

    Args:
        network: the network, whose weights are changed.
        optimizer: the optimizer.
        history: gets an entry for each step and each epoch.
        rows: the data.
        batch_size: rows of a step.
        gauge: look at `History.alpha` at every so many steps; 0 for never.
        watch: looks at the steps between, if there is one.
        log: is told of the steps, if there is one.
        group: the processes that share each step, if they are several.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        history: History,
        rows: Rows,
        batch_size: int,
        gauge: int,
        watch: Watch | None = None,
        log: Logged | None = None,
        group: Group | None = None,
    ) -> None:
        self.watch, self.log, self.group = watch, log, group
        self.network, self.optimizer, self.history = network, optimizer, history
        self.rows, self.batch_size, self.gauge = rows, batch_size, gauge
        self.trainer: Trainer = network.trainer(rows, batch_size, group)
        self.weights = network.weights
        self.before: dict[str, Array] = {}
        """The weights before the epoch's last step."""

    def epoch(
        self, order: npt.NDArray[np.intp], seconds: float, show: Callable[[int], None]
    ) -> None:
        """Take the steps on each batch of rows, in this order: one, or one for each window.

        `show` is called with the number of rows done, about every so many seconds. The core takes
        many steps in one call; the last one has a call of its own, for the weights before it.
        """
        size = self.batch_size
        ends = np.cumsum(self.rows.steps(order, size))  # of each batch, in steps
        step, last = 0, int(ends[-1]) - 1
        while step <= last:
            steps = last - step or 1
            until, every = -self.history.steps % self.gauge if self.gauge else 0, self.gauge
            if self.watch is not None:
                near, closely = self.watch.ahead()
                steps = min(steps, near)
                until, every = (0, 1) if closely else (until, every)
            if step == last:
                self.before = {name: weight.copy() for name, weight in self.weights.items()}
            records, before = np.full((steps, RECORD), np.nan), self.history.steps
            batches = np.searchsorted(ends, [step, step + steps - 1], "right")
            try:
                self.optimizer._run(
                    self.trainer,
                    self.network.gradients,
                    order[batches[0] * size : (batches[1] + 1) * size],
                    records,
                    rows=size,
                    gauge=(until, every),
                    seconds=seconds,
                )
            finally:
                ended = None
                while True:  # a signal may come here, too, and the weights have changed
                    try:
                        if self.history.steps == before:
                            made = np.count_nonzero(~np.isnan(records[:, 3]))  # they have a rate
                            self.history.add_steps(_columns(records[:made]))
                        break
                    except BaseException as error:
                        if ended is not None:
                            raise
                        ended = error
                self.network.note_pass(flow=True)
                if self.log is not None:
                    self.log.steps()
                if ended is not None:
                    raise ended
            step += self.trainer.done
            show(min(int(np.searchsorted(ends, step, "right")) * size, len(order)))
            if self.watch is not None and self.watch.stops(self.trainer.done == near):
                return

    def close_epoch(self, first: int, order: Array, held: Batch | None) -> None:
        """Record an epoch over rows in this order, from step `first` on; `held` is evaluated."""
        steps = {name: self.history.since(first, name) for name in ("loss", "coefficient")}
        size = self.batch_size
        moved = {name: weight - self.before[name] for name, weight in self.weights.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            update = np.log2(norms(moved)) - np.log2(norms(self.before))
        validation = (np.nan, np.nan) if held is None else self._validate(held)
        self.history.add_epoch(
            epoch_steps=len(steps["loss"]),
            epoch_loss=float(np.average(steps["loss"], weights=self.rows.shares(order, size))),
            clipped_share=float(np.mean(steps["coefficient"] < 1)),
            validation_loss=validation[0],
            validation_accuracy=validation[1],
            gradient_log2=self._gradient_sizes().tolist(),
            update_log2=update.tolist(),
        )
        if self.log is not None:
            self.log.epoch()

    def _gradient_sizes(self) -> FloatArray:
        """Return log2 of the norms of the weights' gradients in the last step."""
        shared = getattr(self.trainer, "shared", None)
        if isinstance(shared, SharedGradients):
            return shared.sizes
        return self.network.weight_gradients_log2()

    def _validate(self, held: Batch) -> tuple[float, float]:
        """Return loss and accuracy; the accuracy of a mean square is nan."""
        kind = self.network.config["loss"]
        loss = self.network.loss_of(held)
        if kind == "mse":
            return loss, np.nan
        output, target = self.network.compared(held)
        right = (
            output.argmax(1) == target
            if kind == "cross_entropy"
            else (output > 0) == (target > 0.5)
        )
        return loss, float(np.mean(right))


def _columns(records: FloatArray) -> FloatArray:
    """Return the history's columns (STEPS, steps) for the core's records (steps, RECORD)."""
    columns = np.empty((len(STEPS), len(records)))
    columns[:4], columns[4:] = records[:, :4].T, np.nan
    looked = np.flatnonzero(records[:, 7] == records[:, 7])
    if len(looked):
        seen = records[looked]
        b, c = parabola(seen)
        with np.errstate(divide="ignore", invalid="ignore"):
            alpha = -(b + 2 * c) / b
            begins, ends = seen[:, [0, 5]], seen[:, [4, 6]]
            beyond = np.isfinite(begins).all(1) & ~np.isfinite(ends).all(1)
            alpha[beyond] = np.inf  # the step has led loss or gradient out of their range
            slopes = seen[:, 5:7].T / seen[:, 7]
            alpha[seen[:, 7] == 0] = -1.0  # it stands still
            columns[4:, looked] = alpha, seen[:, 7], seen[:, 4], *slopes
    return columns
