"""The steps of a monitor that nobody looks at: what was glanced at waits, and is taken in."""

from __future__ import annotations

from math import nan

from torch.optim import Optimizer

from vegrad._core import Clipped
from vegrad.diagnosis.rules.course import BEGINS, promise_of
from vegrad.runs.spikes import Spikes, SpikeStep
from vegrad.torch.monitor.alarms import Alarms
from vegrad.torch.monitor.glances import MOST, Glances
from vegrad.torch.monitor.journal import Journal
from vegrad.torch.monitor.looks import Looks
from vegrad.torch.monitor.steps import StepHooks
from vegrad.torch.monitor.track import Track


class GlanceHooks(StepHooks):
    """The end of a step that is not looked at."""

    track: Track
    _alarms: Alarms
    _batch: object
    _due: bool
    """True if the training is to be judged, at the next step that is looked at."""
    _glances: Glances
    _journal: Journal
    _looks: Looks
    _spikes: Spikes

    def _see(self, step: SpikeStep) -> bool:
        """Take in a step; return True if it is a spike."""
        spike = self._spikes.see(step)
        self._due = self._alarms.due(step.loss, step.gradient_norm) or spike or self._due
        return spike

    def _is_to_judge(self) -> None:
        self._due = True

    def _catch_up(self) -> None:
        if self._glances.waiting:
            count = len(self._params)
            for one in self._glances.taken():
                self._history.add(one.step, count, one.joint, one.numbers, one.loss, looked=False)
                self.track.passed(one.step, one.rate, one.before, one.limit, one.after)
                self._see(SpikeStep(one.step, one.batch, one.loss, one.joint, nan))

    def _glance(self, optimizer: Optimizer, report: Clipped | None) -> bool:
        if self._on or self._paused or self._others or self._journal.log is not None:
            return False
        if not self._glances.take(self, optimizer, report, self._batch):
            return False
        self._batch, one = None, self._glances.waiting[-1]
        self.first.clear()
        self._joint, self._was_looked, self._pending = one.joint, False, None
        self.schedule.took(False)
        self.steps += 1
        full = len(self._glances.waiting) >= MOST
        if full or self._alarms.may_be_odd(one.loss, one.joint):
            self._catch_up()
        if self._due:
            self.schedule.ask()
        self.loop.over, self._watch.seen = True, False
        if self.schedule.wants(self.steps, self.first_step):
            self._catch_up()
            self._begin()
            self._looks.end(one.step, self.steps, looked=self._on)
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
