"""Norms of a model's activations and gradients at every step, and where the first NaN came from.

    monitor = Monitor(model)
    ...  # train as always
    print(monitor.report())

Forward hooks read each module's output and tensor hooks the gradient that comes back to it, δ
(hooks.py). A hook of optimizers reads the parameters' gradients as the step will use them
(steps.py). All are read in place by vegrad's kernels. Forward passes without gradients (evaluation)
are not looked at. Nor are modules that torch.compile has compiled, since hooks would break the
graph: of those there are the parameters' gradients, and the calls of what torch.compile returned.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from math import nan
from os import PathLike

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from vegrad.arrays.checks import as_count, as_limit
from vegrad.diagnosis.alarms import OnFinding
from vegrad.diagnosis.noted import noted
from vegrad.diagnosis.rules.course import BEGINS
from vegrad.flow.finding import Finding
from vegrad.reports.values import count_of
from vegrad.runs.run import Run
from vegrad.runs.spikes import Spike, Spikes, SpikeStep
from vegrad.torch import models
from vegrad.torch.monitor import schedule
from vegrad.torch.monitor.again import Again
from vegrad.torch.monitor.alarms import Alarms
from vegrad.torch.monitor.first import seen_at
from vegrad.torch.monitor.flush import flush_gain
from vegrad.torch.monitor.journal import Journal
from vegrad.torch.monitor.looks import Looks
from vegrad.torch.monitor.quiet import QuietHooks
from vegrad.torch.monitor.report import Report
from vegrad.torch.monitor.run import run_of
from vegrad.torch.monitor.scalars import scalars
from vegrad.torch.monitor.schedule import Schedule
from vegrad.torch.monitor.track import Track
from vegrad.torch.together import together as united

NO_STEP = (
    "a monitor must have seen a step before it can report, not none: an optimizer of torch.optim "
    "ends steps by itself; without one, call monitor.step(loss)"
)

NO_STEP_OF = "; backward passes came, after which no optimizer of its parameters has stepped"


class Monitor(QuietHooks):
    """A watch on a model while it trains.

    Args:
        model: any module, wrapped (DistributedDataParallel, fully_shard, torch.compile) or not;
            wrap it first.
        every: look at every so many steps; None: at the first 16, at 8 in each doubling of their
            number after that, and at as many more as the budget allows. In all steps the loss and
            the joint norm of the gradients are read (of large ones a part, if that would take too
            long), and the first NaN is found.
        budget: share of the steps' time that the monitor may take, which it measures as it goes.
        optimizer: the one whose steps count. None: every optimizer with a parameter of the model;
            those that step one after another, without a forward pass between, take one step.
        backward: also read the gradients that come back to the outputs of modules with weights.
        details: at every so many steps that are looked at, subnormals are counted too.
        keep: number of steps that `history` keeps.
        on_finding: what happens when the training shows something wrong, once for each cause: a
            function that is called with the `Finding`; "warn" gives a `FindingWarning` with the
            step; "raise" raises a `FindingError` out of the optimizer's step, before a NaN changes
            weights, and for all else once it is taken (out of a backward pass, if the optimizer
            never steps); "stop" sets `stopped`, on which the callbacks end the training; None is
            silent.
        ignore: causes that nothing is said about, such as ("learning-rate-low",).
        log: a file that gets a line a step, for `vegrad watch` and `vegrad.read_run`; one that is
            there is gone on with. Each process needs one of its own.
        first_step: number of the first step, of a training that goes on; what the log has of it
            and of later ones is superseded.

    A step ends when the optimizer is about to take it, so that accumulated gradients are read once;
    without an optimizer, call `step()`. Gradients are read as they are then, after any clipping in
    place.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.
    """

    flush_gain: float | None = None
    """How many times faster `measure_flush` found a step without subnormals."""

    def __init__(
        self,
        model: Module,
        every: int | None = None,
        *,
        budget: float = 0.02,
        optimizer: Optimizer | None = None,
        backward: bool = True,
        details: int = 100,
        keep: int = 10_000,
        on_finding: OnFinding = "warn",
        ignore: Iterable[str] = (),
        log: str | PathLike[str] | None = None,
        first_step: int = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check(model, optimizer)
        every = None if every is None else as_count("every", every, 1)
        keep = min(as_count("keep", keep, 1), sys.maxsize)
        self._alarms = Alarms(on_finding, ignore)
        planned = Schedule(every, _as_share(budget), clock or schedule.clock)
        super().__init__(model, backward, optimizer, planned, as_count("details", details, 1), keep)
        named = zip(self.modules, self._watched, self.own, strict=True)
        self.owners.tell = partial(_strayed, weakref.ref(self))
        weighted = [(name, one) for name, one, own in named if own]
        self._looks = Looks(model, weighted, self._watch)
        self._spikes, self._again, self.track = Spikes(), Again(), Track(keep)
        self._batch: object = None
        self._due = False
        self._counted = self.first_step = as_count("first_step", first_step)
        self._begin()
        self._journal = Journal(self, log, self.steps)

    def __repr__(self) -> str:
        modules = count_of(len(self.modules), "module")
        return f"<Monitor of {self.kind}: {modules}, {count_of(self.steps, 'step')}>"

    def __deepcopy__(self, memo: dict[int, object]) -> Monitor:
        return self  # a copy of the model has our hooks, which know that it is not the model

    @property
    def stopped(self) -> bool:
        """True once there was a finding, with `on_finding="stop"`: the loop is to end."""
        return self._alarms.stopped

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings so far, in the order in which they came up."""
        return tuple(self._alarms.found.values())

    @property
    def spikes(self) -> tuple[Spike, ...]:
        """The last spikes of the loss or the gradient, each with the steps around it."""
        self._catch_up()
        return self._spikes.all

    def remove(self) -> None:
        """Take all hooks off the model; the records stay."""
        self._catch_up()
        super().remove()
        self._looks.remove()
        self._journal.close()

    def step(self, loss: float | Tensor | None = None, *, batch: object = None) -> None:
        """Give the loss and the batch of a step; without an optimizer, also end the step.

        Optimizers end steps by themselves, so that with one `step()` is needed for these only.

        Args:
            loss: the loss. Where an optimizer of the model ends the steps, giving it does not end
                one too: it is the loss of the step that was just taken, or of the one in progress.
            batch: the batch's index or name, for the records of `spikes`; likewise.
        """
        if self._is_given(loss, batch):
            return
        over = self._ender() is not None and self.loop.over
        if batch is not None:
            if over:
                self._spikes.set_batch(self.steps - 1, batch)
            else:
                self._batch = batch
            if loss is None and self._ender() is not None:
                return
        super().step(loss)
        self._journal.given(self)

    def _end(self, known: dict[int, float] | None) -> None:
        """End a step, and judge the training if it is time."""
        self._catch_up()
        step = self.steps
        super()._end(known)
        if not self._paused:
            loss, norm = self._history.last_sizes
            spike = self._see(SpikeStep(step, self._batch, loss, norm, nan))
            self._batch = None
            alone = self._ender() is None
            self._journal.ended(self, self._spikes if spike else None, alone)
            self._due = self._due or seen_at(step, self.nonfinite)
            if alone and self._due:
                self._judge()
            elif self._due and step < BEGINS:  # a first step may leave nothing of the model
                self._again.report(self, self.flush_gain, self._looks)
            if self._due and not self._on:
                self.schedule.ask()
                self._begin()
            if alone:
                self.schedule.ended(self._was_looked)
        self._looks.end(step, self.steps, looked=self._on)
        if self._due and seen_at(step, self.nonfinite):
            self._judge()  # before the step is taken

    def _has_stepped(self, optimizer: Optimizer) -> None:
        """Judge the training if it is time, now that the step is taken."""
        super()._has_stepped(optimizer)
        was_quiet = self._last_quiet == self.steps - 1
        if not was_quiet:
            self.track.stepped(self.steps - 1, optimizer, *self.loop.clip)
        if not was_quiet or self.updates.is_fresh:
            self._take_in()
        if optimizer is self._ender():
            self.schedule.ended(self._was_looked)

    def _judge(self) -> None:
        """Judge the training, if the last step was looked at; else the next one will be."""
        if not self._was_looked and self.nonfinite is None:
            return
        self._due, start = False, self.schedule.now()
        self._journal.tell(self._alarms, self._found().findings, self.history.last_step)
        self.schedule.leave_out(self.schedule.now() - start)

    def scalars(self, all: bool = False) -> dict[str, float]:
        """Return the last step as a flat dictionary for a logger; empty before the first step.

        Args:
            all: also the numbers of each parameter and module, by name.
        """
        counts = {"spikes": float(len(self.spikes)), "findings": float(len(self.findings))}
        if len(self.history):
            counts |= self.track.clip(self.history.last_step, self.history.last_sizes[1])
        return scalars(self, counts, everything=all)

    @property
    def run(self) -> Run:
        """The training so far, step by step; of a long one some steps of each stretch."""
        self._catch_up()
        met = zip(self._alarms.found.items(), self._alarms.steps.values(), strict=True)
        return run_of(
            self, self.track, [noted(step, one) for (_, one), step in met], self._spikes.all
        )

    def report(self, *, together: bool = False) -> Report:
        """Return a Diagnosis of the training so far, which prints a table of the modules.

        It begins with what went wrong first: after a divergence, with the cause that the steps
        before it show. What is new in it is told as `on_finding` says, but for a warning or an
        error, in the place of which it stands. With `together` all processes call this, and have
        the same of all they saw.

        Raises:
            ValueError: before the first step, unless backward passes show that none will come.
        """
        found = self._found()
        self._journal.tell(self._alarms, found.findings, self.history.last_step, reported=True)
        found = replace(found, findings=self._alarms.with_earlier(found), run=self.run)
        return united(found) if together else found

    def _found(self) -> Report:
        if not len(self.history):
            if not self._is_without_steps():
                raise ValueError(NO_STEP + NO_STEP_OF * (self.owners.passes > 0))
            super()._end(None)  # what has come is one step, that nobody has taken
        found = self._again.report(self, self.flush_gain, self._looks)
        return replace(found, findings=self._alarms.kept(found.findings))

    def measure_flush(self, step: Callable[[], object], repeats: int = 5) -> float:
        """Measure how many times faster `step()` is with torch.set_flush_denormal(True).

        The steps run by turns with and without, and the result is the ratio of the medians. They
        count as steps but are not looked at. They run on one thread: the setting is the calling
        thread's, and threads started before keep theirs. So set it before a program's first
        operation.

        Args:
            step: a function that does one training step.
            repeats: number of steps of each kind.
        """
        self._wake()
        self._paused = True
        self._clear(False, False)
        try:
            self.flush_gain = flush_gain(step, repeats)
        finally:
            self._paused = False
            self._begin()
        return self.flush_gain


def _as_share(budget: float) -> float:
    share = as_limit("budget", budget)
    if share > 1:
        raise ValueError(f"budget must be a share of the steps' time, 0.02 for 2 %, not {share:g}")
    return share


def _check(model: object, optimizer: object) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    models.refuse_scripted(model)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, not {type(optimizer).__name__}")


def _strayed(myself: weakref.ref[Monitor]) -> None:
    """Tell that no step is taken, or none of the model's; a monitor must not hold itself."""
    if (monitor := myself()) is not None:
        found = monitor._found().findings
        monitor._journal.tell(monitor._alarms, found, monitor.history.last_step)
