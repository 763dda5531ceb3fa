"""Steps that are too long, seen while a training runs: before its loss says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.rule import RuleOf
from vegrad.flow.edits import LearningRate
from vegrad.flow.finding import Finding
from vegrad.flow.site import Site

LOOKS = 6  # steps that are looked at in a row once something is suspicious
SUSPICIOUS = -0.5  # α of a single look
MOVED = -5.3  # log2 of ‖ΔW‖/‖W‖ of a step, below which no step is called long
BACK = 1.5  # times its best mean of ten steps: a loss that is looked at closely
MATERIAL = 0.005  # of the first loss, below which its ups and downs do not matter
BLOCK = 10  # steps
RISEN = 1.2  # times the best mean of a block: a loss that does not fall any more
EARLY, STAYS = 40, 0.9  # the first steps, and times the loss just before: one that does not fall


@dataclass(frozen=True)
class Window:
    """Steps that were looked at one after another, with what is known of those before."""

    first: int
    alpha: FloatArray
    slope: FloatArray
    loss: FloatArray
    """Of all steps from the first of the training on."""
    moved: float
    """log2 of the median step's length over the size of all parameters."""
    learning_rate: float

    @property
    def downhill(self) -> float:
        """The median α of the steps that go downhill on their batch; nan if they are too few.

        A step that goes uphill (momentum, Adam) says nothing of its length.
        """
        alpha = self.alpha[self.slope < 0]
        return float(np.median(alpha)) if len(alpha) >= LOOKS - 2 else nan

    @property
    def falls(self) -> bool:
        """True if the loss still falls, or is so low that its ups and downs do not matter."""
        here, before = self.loss[self.first :], self.loss[: self.first]
        start = start_of(self.loss)
        if not np.isfinite(here).all():
            return False
        if not self.first:
            return bool(here[LOOKS // 2 :].mean() < STAYS * start)
        if self.first < EARLY:
            return bool(here.mean() < STAYS * before[-LOOKS:].mean())
        best = before[: self.first // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1).min()
        return bool(here.mean() <= MATERIAL * start or here.mean() < RISEN * best)


def start_of(loss: FloatArray) -> float:
    """Return the loss that a training began with; a single batch may happen to have little."""
    first: list[float] = [one for one in loss[:5].tolist() if isfinite(one)]
    if not first:
        return nan
    # Twice the first at most: the next ones may have been thrown far already.
    return max(first[0], min(sorted(first)[len(first) // 2], 2 * first[0]))


def _long(window: Window, rule: RuleOf[Window], earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that steps end past the minimum along them, one after another."""
    alpha, rate = window.downhill, window.learning_rate
    if not alpha > rule.warning or window.moved < MOVED or window.falls:
        return
    last = len(window.loss) - 1
    yield Finding(
        kind=rule.kind,
        severity="warning",
        rule=rule.name,
        cause="learning-rate-high",
        sites=(Site("step", f"step {window.first}", window.first),),
        says="from step {step:d} on steps end past the minimum along them (α {alpha:+.2g} at the "
        "median of {looks:d} in a row), and each moves the weights by {moved:.2g} of their size: "
        "the loss is about to rise",
        advises="lower the learning rate, from {learning_rate:.3g} to {wanted:.2g} to begin with, "
        "or let it rise more slowly.",
        facts={"looks": int((window.slope < 0).sum())},
        evidence={
            "step": window.first,
            "seen": last,
            "alpha": alpha,
            "moved": float(np.exp2(window.moved)),
            "learning_rate": rate,
            "wanted": rate / 3,
        },
        edit=LearningRate(rate / 3),
    )


LONG_STEPS = RuleOf[Window](
    name="long-steps",
    kind="overshooting",
    warning=1e-3,
    critical=inf,
    measured=f"median α of {LOOKS} steps in a row, of those that go downhill on their batch and "
    f"move the weights by more than 2^{MOVED:g} of their size, while the loss does not fall",
    reason="Beyond the minimum along nearly every step the loss cannot fall for long. Of trainings "
    "on four data sets, three in four that were about to diverge were seen five steps before "
    "their loss had doubled, and one in a hundred of the healthy ones (bench/trainings.py).",
    source="Cockpit (Schneider et al. 2021, arXiv:2102.06604); the edge of stability (Cohen et al. "
    "2021, arXiv:2103.00065)",
    find=_long,
)
