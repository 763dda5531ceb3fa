"""The examiner of a training: judges its network on a batch, notes what it finds, and tells."""

from __future__ import annotations

import copy
from math import isfinite

import numpy as np
import numpy.typing as npt

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array
from vegrad.arrays.measurement import norm
from vegrad.diagnosis.alarms import Alarms
from vegrad.diagnosis.history import History
from vegrad.diagnosis.rules.long_steps import target_scale
from vegrad.diagnosis.rules.nonfinite import NONFINITE_DATA
from vegrad.flow.finding import Finding
from vegrad.networks.network import Network
from vegrad.networks.reading import best_constant
from vegrad.networks.rows import Batch, Rows

FEW, MANY = 32, 256  # rows of a quick look and of a close one
BETTER = 0.5  # times the loss of the best constant: no network begins with that


class Examiner:
    """The judge of a network in training.

    Args:
        network: the network in training.
        history: its history, which findings are noted in.
        rows: the data, as the network takes them.
        alarms: told of findings when they appear.
    """

    def __init__(self, network: Network, history: History, rows: Rows, alarms: Alarms) -> None:
        self.network, self.history, self.alarms = network, history, alarms
        self.rows = rows
        self._first: Network | None = None
        """The network as it was before the first step, if its targets may depend on far ones."""
        alarms.known(one.finding for one in history.noted)

    @cached_property
    def constant(self) -> float:
        """The loss of the best output that is the same for all rows."""
        return best_constant(self.rows.wanted, self.network.config["loss"])

    def begin(self, order: npt.NDArray[np.intp], batch_size: int) -> None:
        """Judge the network on its first batch, and the data where there is a NaN in it."""
        self._first = None if self.network.few_tell else copy.deepcopy(self.network)
        few = order[: min(max(batch_size, FEW), 4 * MANY)]
        first = self.rows.take(few)
        usual = self.network.is_usual(first, self.constant)
        self._note_learnt(first)
        if usual:
            return
        many = order[: min(max(batch_size, MANY), 4 * MANY)]
        if not self.network.few_tell or self.judged(few, resamples=0):
            self.found(self.judged(many, resamples=4))

    def _note_learnt(self, first: Batch) -> None:
        """Note that the network has learnt before this training, if it has."""
        if not self.network.loss_of(first) < BETTER * self.constant:
            return
        count = len(self.rows)
        rows = np.linspace(0, count - 1, min(count, 4 * MANY)).astype(np.intp)
        loss = self.network.loss_of(self.rows.take(rows))
        if loss < BETTER * self.constant:
            self.history.learnt = loss, self.constant

    def judged(
        self, rows: Array, resamples: int = 0, *, whole: bool = False
    ) -> tuple[Finding, ...]:
        """Judge the network as it is on these rows, by one pass and `resamples` more."""
        found = self.network.judged(self.rows.take(rows, whole=whole), resamples)
        if whole or not any(one.rule == NONFINITE_DATA.name for one in found):
            return found
        return self._data() or found

    def _data(self) -> tuple[Finding, ...]:
        """Name what is not finite among all the data, if something is."""
        rows = self.rows.broken()
        return self.judged(rows, whole=True) if len(rows) else ()

    def found(self, findings: tuple[Finding, ...]) -> None:
        """Note findings and tell of them, but not of what steps that are too long have done."""
        if self.overshoots:
            self.alarms.known(findings)
        self._blame_target(findings)
        for finding in findings:
            self.history.note(finding)
        self.alarms.tell(one.finding for one in self.history.noted)

    def _blame_target(self, findings: tuple[Finding, ...]) -> bool:
        """Note before all else that the targets' size makes steps too long, or lead nowhere.

        Return True if that was so.
        """
        kinds = {one.kind for one in findings if one.cause != "target-scale"}
        kinds &= {"overshooting", "stalled"}
        if not kinds or self.network.config["loss"] != "mse":
            return False
        wanted = self.rows.wanted
        rms = norm(wanted) / wanted.size**0.5  # NaN and inf are no size
        found = [target_scale(kind, rms) for kind in sorted(kinds)] if isfinite(rms) else []
        for one in found:
            if one is not None:
                self.history.note(one, step=0)
        return any(found)

    def blame_memory(self, findings: tuple[Finding, ...]) -> bool:
        """Note before all else that a training stalls as the network forgets what it needs.

        Return True if that was so.
        """
        if not any(one.kind == "stalled" for one in findings):
            return False
        count = len(self.rows)
        rows = np.linspace(0, count - 1, min(count, 4 * MANY)).astype(np.intp)
        found = self.network.forgotten(self.rows.take(rows), self._first)
        for one in found:
            self.history.note(one, step=0)
        return bool(found)

    @property
    def overshoots(self) -> bool:
        """True if steps that are too long were noted."""
        return any(one.finding.kind == "overshooting" for one in self.history.noted)

    def broken(self, *, ending: bool = False) -> None:
        """Say why the loss or a gradient is no number any more, as far as that can be told.

        Where an error is `ending` the training, whoever catches it has the findings from there.
        """
        if ending and self.alarms.on_finding != "warn":
            self.alarms = Alarms("stop", self.history)  # it tells nobody
        found = self._data()
        self.found(found or tuple(f for f in self.history.findings if f.kind == "overshooting"))

    def end(self) -> None:
        """Say what the training as a whole tells."""
        found = self.history.findings
        if self._blame_target(found) or self.blame_memory(found):
            found = self.history.findings
        self.alarms.tell(found)
