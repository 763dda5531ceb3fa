"""The examiner of a training: judges its network on a batch, notes what it finds, and tells."""

from __future__ import annotations

from functools import cached_property
from math import isfinite

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array
from vegrad.arrays.measurement import norm
from vegrad.diagnosis.alarms import Alarms
from vegrad.diagnosis.history import History
from vegrad.diagnosis.judge import judge
from vegrad.diagnosis.rules.long_steps import target_scale
from vegrad.flow.finding import Finding
from vegrad.flow.wording import DECADE
from vegrad.networks.network import Network
from vegrad.networks.reading import read

FEW, MANY = 32, 256  # rows of a quick look and of a close one
# A first batch that need not be judged: its loss, in those of the best constant output, its sizes,
# and the log2 of its gradients.
USUAL, PLAIN, FAINT = 2.0, 20.0, 20.0


class Examiner:
    """The judge of a network in training.

    Args:
        network: the network in training.
        history: its history, which findings are noted in.
        data: (N, I), as the network takes them.
        target: of all rows.
        alarms: told of findings when they appear.
    """

    def __init__(
        self, network: Network, history: History, data: Array, target: Array, alarms: Alarms
    ) -> None:
        self.network, self.history, self.alarms = network, history, alarms
        self.data, self.target = data, target
        alarms.known(one.finding for one in history.noted)

    @cached_property
    def constant(self) -> float:
        """The loss of the best output that is the same for all rows."""
        return _best_constant(self.target, self.network.config["loss"])

    def begin(self, order: npt.NDArray[np.intp], batch_size: int) -> None:
        """Judge the network on its first batch, and the data where there is a NaN in it."""
        few = order[: min(max(batch_size, FEW), 4 * MANY)]
        if not self._is_usual(few) and self.judged(few, resamples=0):
            many = order[: min(max(batch_size, MANY), 4 * MANY)]
            self.found(self.judged(many, resamples=4))

    def _is_usual(self, rows: Array) -> bool:
        """Return True if one pass shows nothing that comes near to a limit of any rule.

        It takes a tenth of a judgement's time, which short trainings would feel. What it cannot
        see, such as a bounded output, is judged.
        """
        loss = self.network.backward(self.data[rows], self.target[rows])
        if self.network.config["output"] != "identity" or not loss < USUAL * self.constant:
            return False
        if not 1 / PLAIN < self.constant < PLAIN:
            return False
        flow = self.network.flow
        gains, std, sizes = flow.delta_log2, flow.preactivation_std, flow.gradient_log2
        even = abs(sizes).max() < FAINT and gains.max() - gains.min() < USUAL * DECADE / 2
        alive = max(flow.dead.max(), flow.saturated[:-1].max(initial=0.0)) < 0.6
        if not (even and alive and std.min() > 1 / PLAIN and std.max() < PLAIN):
            return False
        weights = [w for w in self.network.parameters.values() if w.ndim == 2]
        return not any((w[:1] == w[1:2]).all() for w in weights if len(w) > 1)

    def judged(self, rows: Array, resamples: int = 0) -> tuple[Finding, ...]:
        """Judge the network as it is on these rows, by one pass and `resamples` more."""
        x, target = self.data[rows], self.target[rows]
        return judge(read(self.network, x, target, resamples=resamples, seed=0, theory=False))

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
        kinds = {one.kind for one in findings} & {"overshooting", "stalled"}
        if not kinds or self.network.config["loss"] != "mse":
            return False
        rms = norm(self.target) / self.target.size**0.5  # NaN and inf are no size
        found = [target_scale(kind, rms) for kind in sorted(kinds)] if isfinite(rms) else []
        for one in found:
            if one is not None:
                self.history.note(one, step=0)
        return any(found)

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
        bad = ~np.isfinite(self.data).reshape(len(self.data), -1).all(axis=1)
        bad |= ~np.isfinite(self.target).reshape(len(self.target), -1).all(axis=1)
        rows = np.flatnonzero(bad)
        if len(rows):
            self.found(self.judged(rows[:1], resamples=0))
        else:
            self.found(tuple(f for f in self.history.findings if f.kind == "overshooting"))

    def end(self) -> None:
        """Say what the training as a whole tells."""
        found = self.history.findings
        if self._blame_target(found):
            found = self.history.findings
        self.alarms.tell(found)


def _best_constant(target: Array, loss: str) -> float:
    """Return the mean loss of the best output that is the same for all rows."""
    if loss == "cross_entropy":
        share = np.bincount(target.ravel()) / target.size
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())
    wanted = target.reshape(len(target), -1)
    if loss == "mse":
        with np.errstate(all="ignore"):  # an infinite target
            return float(wanted.var(axis=0, dtype=np.float64).mean())
    mean = np.clip(wanted.mean(axis=0, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).mean())
