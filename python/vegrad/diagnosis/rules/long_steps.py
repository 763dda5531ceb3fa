"""Steps that are too long, seen while a training runs: before its loss says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.rule import RuleOf
from vegrad.flow.edits import LearningRate, ScaleTarget
from vegrad.flow.finding import Finding
from vegrad.flow.site import Site

LOOKS = 6  # steps that are looked at in a row once something is suspicious
SUSPICIOUS = -0.5  # α of a single look
MOVED = -5.3  # log2 of ‖ΔW‖/‖W‖ of a step, below which no step is called long
NEAR = -0.45  # median α, with a learning rate that rises
LATER = 80  # steps, that a warm-up may take
LIFTED = 1.5  # times the learning rate of half the steps ago: one that rises
BACK = 1.5  # times its best mean of ten steps: a loss that is looked at closely
MATERIAL = 0.005  # of the first loss, below which its ups and downs do not matter
LARGE_TARGET = 30.0  # root mean square
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
    learning_rate: FloatArray
    """Of all steps."""

    @property
    def rises(self) -> bool:
        """True if the learning rate has been rising for half of all steps, beyond a warm-up."""
        rate, first = self.learning_rate, self.first
        return first >= LATER and bool(
            rate[first] > max(LIFTED * rate[first // 2], rate[first - 9])
        )

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
    alpha, rate = window.downhill, float(window.learning_rate[window.first])
    alpha_limit, moved = (NEAR, MOVED - 1.2) if window.rises else (rule.warning, MOVED)
    if not alpha > alpha_limit or window.moved < moved:
        return
    if window.falls and not (window.rises and alpha > rule.warning):
        return
    last = len(window.loss) - 1
    where = "past the minimum along them"
    if not alpha > 0:
        where = "next to the minimum along them, and the learning rate rises"
    yield Finding(
        kind=rule.kind,
        severity="warning",
        rule=rule.name,
        cause="learning-rate-high",
        sites=(Site("step", f"step {window.first}", window.first),),
        says=f"from step {{step:d}} on steps end {where} (α {{alpha:+.2g}} at the "
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
    f"move the weights by more than 2^{MOVED:g} of their size, while the loss does not fall; "
    f"{NEAR} is enough where the learning rate rises",
    reason="Beyond the minimum along nearly every step the loss cannot fall for long. Of trainings "
    "on four data sets, two in three that were about to diverge were told of five steps before "
    "their loss had doubled, and one in a hundred of the healthy ones (bench/trainings.py).",
    source="Cockpit (Schneider et al. 2021, arXiv:2102.06604); the edge of stability (Cohen et al. "
    "2021, arXiv:2103.00065)",
    find=_long,
)


def target_scale(kind: str, rms: float) -> Finding | None:
    """Blame the targets' size for steps that are too long, or that lead nowhere.

    Args:
        kind: "overshooting" or "stalled", as the steps were found.
        rms: root mean square of the targets of a mean square.
    """
    if not rms >= LARGE_TARGET:
        return None
    return Finding(
        kind=kind,
        severity="critical",
        rule="long-steps" if kind == "overshooting" else "stalled",
        cause="target-scale",
        sites=(Site("target", "target"),),
        says="the targets have a root mean square of {rms:.3g}, not about 1: the loss begins at "
        "its square, and its gradients are as many times too large for the usual rates",
        advises="{edit}{words.undoing}.",
        evidence={"rms": rms},
        edit=ScaleTarget(),
    )
