"""Steps that nobody looks at: their loss, the norms of their gradients, and whether all is usual.

Between two looks a row of such steps is `_core.Quiet`'s, in C++: after a pass of a network nothing
of Python is in a cache, so that a few of its frames take longer than to read the gradients. What
it has kept of the steps is taken in at the end of the row, and at once if a loss or a norm is odd.
Whatever is not as usual wakes Python, which goes on with that step as with any other: a value that
is not finite, gradients that were not emptied, another optimizer, a GradScaler. It then keeps the
steps up to the next look. It always does so with vegrad's own optimizers, which have taken the
norms anyway, with several optimizers, and where there is a log.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from math import inf, isnan, nan, sqrt

import numpy as np
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from vegrad._core import Clipped
from vegrad.diagnosis.rules.course import BEGINS, promise_of
from vegrad.runs.spikes import Spikes, SpikeStep
from vegrad.torch.clip import Heard
from vegrad.torch.monitor import listening
from vegrad.torch.monitor.alarms import Alarms
from vegrad.torch.monitor.journal import Journal
from vegrad.torch.monitor.looks import Looks
from vegrad.torch.monitor.loop import go_on, is_clipped
from vegrad.torch.monitor.steps import StepHooks
from vegrad.torch.monitor.track import Track, rate_of
from vegrad.torch.optimizer_step import CoreStep

MOST = 16  # steps of a row
TIMED = 2  # steps at the beginning of a row that are timed
CALLED, BACK = 1, 2  # where `_core.Quiet` is in a step: the model was called, gradients are there


class QuietHooks(StepHooks):
    """The steps that are not looked at."""

    track: Track
    _alarms: Alarms
    _batch: object
    _due: bool
    """True if the training is to be judged, at the next step that is looked at."""
    _journal: Journal
    _looks: Looks
    _spikes: Spikes
    _was_odd = False
    """True if Python was woken since the last look."""
    _last_quiet = -1
    """The number of the last step that was taken in as one of these."""

    def _listen(self) -> None:
        self._ear = Ear(self)
        listening.listen(self._ear)

    def remove(self) -> None:
        """Take all hooks off the model; the records stay."""
        self._wake()
        listening.leave(self._ear)
        super().remove()

    # A row --------------------------------------------------------------------------------------

    def _begin_row(self) -> None:
        """Leave the next steps to `_core.Quiet`, if they are likely to be as usual."""
        self._was_odd = self._was_odd and not self._was_looked
        if self._on or self._paused or self._was_odd or self._due or self._others:
            return
        optimizer, loop = self.loop.steps.only, self.loop
        if optimizer is None or optimizer is not self._ender() or isinstance(optimizer, CoreStep):
            return
        if self._journal.log is not None or self.first.risky or loop.depth:
            return
        most, number = 0, self.steps - self.first_step + 1
        longest = min(MOST, self._alarms.ahead)
        while most < longest and not self.schedule.wants(self.steps + most, self.first_step):
            if self.updates.wants(number + most, False):
                break
            most += 1
        if most == 0:
            return
        highest, largest = self._alarms.limits
        self._ear.whole = (0, None, None)
        self._quiet.begin(
            self._params,
            loop.steps.probes,
            loop.steps.left,
            weakref.ref(optimizer),
            len(self.modules),
            most,
            self.steps,
            self.schedule.part_of(sum(map(Tensor.numel, self._params))),
            highest,
            largest,
            self.schedule.now,
            TIMED,
        )

    def _row_ends(self) -> None:
        """Take in a row of steps, and begin another or a look."""
        quiet = self._quiet
        quiet.on = False
        count = self._drain()
        self.loop.steps.pass_over(count, quiet.left)
        self.loop.over, self._watch.seen = True, False
        if self._due:
            self.schedule.ask()
        self.schedule.resume()
        if self.schedule.wants(self.steps, self.first_step):
            self._begin()
            self._looks.end(self.steps - 1, self.steps, looked=self._on)
        self._begin_row()

    def _drain(self) -> int:
        """Take in the steps that wait; return their number."""
        taken, count = self._quiet.taken() if self._quiet.count else (), len(self._params)
        for joint, numbers, loss, rate, before, limit, batch, seconds in taken:
            step = self._counted
            self._history.add(step, count, joint, numbers, loss, looked=False)
            self.track.passed(step, rate, None if isnan(before) else before, limit, nan)
            self.schedule.took(False, seconds)
            self._counted += 1
            self._see(SpikeStep(step, batch, loss, joint, nan))
            self._joint, self._was_looked, self._pending = joint, False, None
            self._last_quiet = step
        return len(taken)

    def _catch_up(self) -> None:
        if self._quiet.count:
            self.loop.steps.pass_over(self._drain(), self._quiet.left)

    def _is_given(self, loss: float | Tensor | None, batch: object) -> bool:
        """Take the loss or the batch of a step from the user, if it is one of a row."""
        quiet = self._quiet
        if quiet.on and quiet.count and quiet.stage == 0:
            value = loss.detach() if isinstance(loss, Tensor) else loss
            quiet.give(None if value is None else float(value), batch)
            return True
        if quiet.on and quiet.stage and loss is None:
            quiet.batch = batch
            return True
        self._wake()
        return False

    def _wake(self) -> None:
        """Go on in Python with the step in progress, and with all up to the next look."""
        quiet = self._quiet
        if not quiet.on:
            return
        quiet.on, self._was_odd = False, True
        stage, is_added = quiet.stage, quiet.is_added
        emptied = stage == BACK and not is_added
        self.loop.steps.pass_over(self._drain(), None if emptied else quiet.left)
        if is_added:
            self.loop.steps.stamp(self._params)
        self.schedule.resume(cut=stage > 0)
        self.loop.over, self._watch.seen = stage != BACK, False
        if stage > 0:
            self._batch = quiet.batch if self._batch is None else self._batch
            self.first.call = quiet.call
        if stage == BACK:
            go_on(self.loop, *quiet.passes, *quiet.clipped)

    # A step in Python ---------------------------------------------------------------------------

    def _see(self, step: SpikeStep) -> bool:
        """Take in a step; return True if it is a spike."""
        spike = self._spikes.see(step)
        self._due = self._alarms.due(step.loss, step.gradient_norm) or spike or self._due
        return spike

    def _is_to_judge(self) -> None:
        self._due = True

    def _glance(self, optimizer: Optimizer, report: Clipped | None) -> bool:
        loop = self.loop
        if self._on or self._paused or self._others or self._journal.log is not None:
            return False
        if not loop.has_gone_back:
            return False
        known = self._watched_norms() if report is None else self._norms_of(optimizer)
        if known is None:
            return False
        (joint, numbers), loss, (before, limit) = known, loop.loss(), loop.clip
        clips = isinstance(optimizer, CoreStep) and optimizer.clip is not None
        after = report.norm_after if report is not None and clips else nan
        step, self._last_quiet = self.steps, self.steps
        self._history.add(step, len(self._params), joint, numbers, loss, looked=False)
        self.track.passed(step, rate_of(optimizer), before, limit, after)
        batch, self._batch = self._batch, None
        self.first.clear()
        self._joint, self._was_looked, self._pending = joint, False, None
        self.schedule.took(False)
        self._counted += 1
        self._see(SpikeStep(step, batch, loss, joint, nan))
        if self._due:
            self.schedule.ask()
        loop.over, self._watch.seen = True, False
        if self.schedule.wants(self.steps, self.first_step):
            self._begin()
            self._looks.end(step, self.steps, looked=self._on)
        return True

    def _take_in(self) -> None:
        """Keep what is known of a step that was taken, and judge the training if it is time."""
        sample = self.updates.fresh() if len(self.history) else None
        if sample is not None:
            self._spikes.set_update(sample.step, sample.ratio)
            self.track.updated(sample.step, sample.middle)
            loss, _ = self._history.last_sizes
            if self.steps > BEGINS and self._alarms.promises(promise_of(sample), loss):
                self._due = True
        self._journal.stepped(self, self.track, sample)
        if self._due:
            self._judge()

    def _judge(self) -> None:
        """Judge the training, if the last step was looked at; else the next one will be."""
        raise NotImplementedError

    def _norms_of(self, optimizer: Optimizer) -> tuple[float, bytes] | None:
        """Return what `_watch` records, of norms that a vegrad optimizer has taken."""
        if not isinstance(optimizer, CoreStep) or (known := optimizer.norms()) is None:
            return None
        norms = np.full(len(self._params) + 2 * len(self.modules), nan)
        for place, one in enumerate(self._params):
            if (size := known.get(id(one))) is not None:
                norms[place] = size
            elif one.grad is not None:
                return None
        found = np.array(list(known.values()))
        joint = sqrt(float(found @ found))
        return (joint, norms.tobytes()) if joint < inf else None


class Ear:
    """A monitor's listener: `_core.Quiet` hears first, then what Python has for all steps."""

    def __init__(self, monitor: QuietHooks) -> None:
        self._monitor = monitor
        self.whole: tuple[int, object, object] = (0, None, None)
        """A clip in this row that was of all gradients: its parameters' number, first and last."""
        self.backward_begins = monitor._quiet.begins(self._begins)
        self.backward_ends = monitor._quiet.ends(self._ends)

    def _begins(self, roots: Sequence[object], weights: Sequence[Tensor | None]) -> None:
        self._monitor._wake()
        self._monitor.loop.backward_begins(roots, weights)
        self._monitor.first.backward_begins(roots, weights)

    def _ends(self) -> None:
        quiet = self._monitor._quiet
        if quiet.on and quiet.is_added:
            self._monitor._wake()
            return
        self._monitor.loop.backward_ends()
        self._monitor.first.backward_ends()
        self._monitor.has_gone_back()

    def scaled(self, scaler: GradScaler, raw: object, result: object) -> None:
        """Hear that a GradScaler has scaled a loss."""
        self._monitor._wake()
        self._monitor.loop.scaled(scaler, raw, result)
        self._monitor.first.scaled(scaler, raw, result)

    def unscaled(self, optimizer: Optimizer) -> None:
        """Hear that a GradScaler has scaled an optimizer's gradients back."""
        self._monitor._wake()
        self._monitor.loop.unscaled(optimizer)

    def clips(self, clipped: Heard) -> None:
        """Hear of a clip."""
        monitor = self._monitor
        quiet, named, norm = monitor._quiet, clipped.parameters, clipped.norm
        if not quiet.on or not named:
            monitor.loop.clips(clipped)
            return
        count, first, last = self.whole
        mine = of_all = len(named) == count and named[0] is first and named[-1] is last
        if not mine:
            mine, of_all = is_clipped(monitor._params, clipped)
            if of_all:
                self.whole = len(named), named[0], named[-1]
        if quiet.stage == BACK and clipped.kind == "norm" and mine and norm is not None:
            if 0 < clipped.limit < inf:  # to measure a norm is no clip
                quiet.clip(float(norm), clipped.limit, of_all)
        elif mine:
            monitor._wake()
            monitor.loop.clips(clipped)
