"""The log of a monitor: what it has seen of each step goes to a file."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isnan, log2, nan
from os import PathLike
from typing import TypeAlias

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.noted import noted
from vegrad.flow.finding import Finding
from vegrad.runs.log import RunLog
from vegrad.runs.spikes import AFTER, Spikes
from vegrad.torch.monitor.alarms import Alarms
from vegrad.torch.monitor.run import by_depth, floor_of, settings_of
from vegrad.torch.monitor.steps import StepHooks
from vegrad.torch.monitor.track import Track
from vegrad.torch.monitor.updates import Taken

Known: TypeAlias = tuple[float | None, float | None, float | None, float | None]
"""The joint norm before and after a clip, the rate and the update of a step."""


class Journal:
    """Writes a monitor's steps to a log; it does nothing without a path.

    Args:
        monitor: the monitor.
        path: the log.
        first_step: the number of its first step.

    Raises:
        TypeError, ValueError, OSError: as `RunLog` says.
    """

    def __init__(
        self, monitor: StepHooks, path: str | PathLike[str] | None, first_step: int
    ) -> None:
        self.log: RunLog | None = None
        self._last, self._noted, self._open = -1, 0, -1
        self._pending: tuple[int, Known, list[float] | None] | None = None
        """A step whose loss is not known yet: norms before and after, rate and update; sizes."""
        self._spikes: Spikes | None = None
        if path is None:
            return
        places = {name: place for place, name in enumerate(monitor.parameters)}
        self._count = len(places)
        self._weighted = [n for n, own in enumerate(monitor.own) if own]
        parts = [[places[name] for name in monitor.own[n]] for n in self._weighted]
        self._places = np.array([place for part in parts for place in part], np.intp)
        self._begins = np.cumsum([0, *map(len, parts[:-1])]) if parts else np.zeros(0, np.intp)
        self._ordered = False
        self.log = RunLog(
            path,
            modules=[monitor.modules[n] for n in self._weighted],
            floor_log2=floor_of(monitor),
            about={
                "model": monitor.kind,
                "source": "vegrad.torch.Monitor",
                "parameters": len(monitor.parameters),
            },
            first_step=first_step,
        )

    def stepped(
        self,
        monitor: StepHooks,
        track: Track | None = None,
        sample: Taken | None = None,
    ) -> None:
        """Write the last step, now that it was taken; if its loss is known, at once."""
        newest = None if self.log is None else monitor.history.newest
        if self.log is None or newest is None or newest[0] == self._last:
            return
        if self._pending is not None:
            self._flush(None)
        step, loss, norm = newest
        self._last = step
        before, after, rate = (norm, norm, nan) if track is None else track.last(norm)
        known = (
            None if before != before else before,
            None if after == before or after != after else after,
            None if rate != rate else rate,
            None if sample is None or isnan(sample.middle) else sample.middle,
        )
        sizes = None
        if self.log.wants_sizes(step):
            sizes = self._sizes(monitor, track, before / norm if norm > 0 else 1.0)
        if loss == loss or monitor.nonfinite is not None:
            self.log.step(step, loss, *known, sizes)
        else:
            self._pending = step, known, sizes
        if self._spikes is not None and step >= self._open + AFTER:
            self.log.spike(self._spikes.all[-1])
            self._spikes = None

    def given(self, monitor: StepHooks) -> None:
        """Write the step that has waited for its loss, which was given."""
        if self._pending is not None and self._pending[0] == monitor.history.last_step:
            loss, _ = monitor.history.last_sizes
            if not isnan(loss):
                self._flush(loss)

    def ended(self, monitor: StepHooks, spikes: Spikes | None, alone: bool) -> None:
        """Write a spike, if the step is one, and the step itself if no optimizer will take it."""
        if self.log is not None and spikes is not None:
            self._spikes = spikes
            self._open = spikes.all[-1].step
            self.log.spike(spikes.all[-1])
        if alone:
            self.stepped(monitor)

    def tell(
        self, alarms: Alarms, findings: Iterable[Finding], step: int, *, reported: bool = False
    ) -> None:
        """Let alarms tell of findings, which may stand in a report, and write those new ones."""
        try:
            alarms.tell(findings, step, reported=reported)
        finally:
            if self.log is not None:
                for cause in list(alarms.found)[self._noted :]:
                    self.log.note(noted(alarms.steps[cause], alarms.found[cause]))
                self._noted = len(alarms.found)

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self.log is not None:
            self._flush(None)
            self.log.close()

    def _flush(self, loss: float | None) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and self.log is not None:
            step, known, sizes = pending
            self.log.step(step, loss, *known, sizes)

    def _sizes(self, monitor: StepHooks, track: Track | None, clip: float) -> list[float] | None:
        """Return the sizes of modules' gradients, as they were before a clip of all."""
        assert self.log is not None
        if not self._ordered:
            self._ordered = True
            self.log.more_about({"settings": settings_of(monitor, track)} if track else {})
            rank = {n: place for place, n in enumerate(self._weighted)}
            order = [rank[n] for n in by_depth(monitor.run_order, monitor.ran) if n in rank]
            if order != sorted(order):
                self.log.order(order)
        norms = monitor.history.last_norms
        if len(norms) != self._count:
            return None
        sizes = _joined(norms[self._places], self._begins)
        return (sizes + log2(clip)).tolist() if 0 < clip < inf and clip != 1 else sizes.tolist()


def _joined(norms: FloatArray, begins: np.ndarray) -> FloatArray:
    """Return log2 of the joint norms of parts; nan of those of which none is known."""
    sums = np.add.reduceat(norms * norms, begins)
    if np.isfinite(sums).all() and sums.all():
        return 0.5 * np.log2(sums)
    known = ~np.isnan(norms)
    with np.errstate(divide="ignore"):
        logs = 2 * np.log2(np.where(known, norms, 0.0))
        sums = np.logaddexp2.reduceat(logs, begins) / 2
    return np.where(np.logical_or.reduceat(known, begins), sums, nan)
