"""Rules on a training's steps, from its history: too long, too short, up and down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.rule import RuleOf
from vegrad.flow.edits import Clip, LearningRate
from vegrad.flow.finding import Finding
from vegrad.flow.site import Site

LONG = 0.5  # median α
LITTLE = 0.1  # of its first value: what the loss must have lost not to be critical
THROWN = 100.0  # times its first value: a loss that has been there has lost what it knew
BABY, NEARLY_ALL = 1e-3, 0.9  # 1 + α of the median step; share of the steps within 5 times that
ENOUGH = 20  # steps before anything is called stalled
RISE, EPOCHS = 0.03, 5  # of the loss from epoch to epoch; at least so many


class Steps(Protocol):
    """The columns of a `vegrad.History` that these rules read."""

    loss: FloatArray
    loss_after: FloatArray
    slope: FloatArray
    step_length: FloatArray
    alpha: FloatArray
    learning_rate: FloatArray
    gradient_norm: FloatArray
    coefficient: FloatArray
    epoch_loss: FloatArray
    epoch_steps: FloatArray

    @property
    def steps(self) -> int:
        """The number of steps."""

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""


def of_history(history: Steps) -> tuple[Finding, ...]:
    """Find steps that overshoot, stall or oscillate, from the loss and the gauge α.

    α is Cockpit's gauge (Schneider et al. 2021, arXiv:2102.06604), seen at some of the steps. On
    the parabola along a step, lr/(1 + α) would have landed at the minimum. Where the loss climbs,
    the parabola is taken through the loss before, its slope and the loss after.

    - overshooting: the loss of the batch is higher after the step in a tenth of those looked at, or
      half of them go past the minimum by half its distance (α > 0.5), or past it at all while the
      loss is no lower at the end than at the start;
      It is critical if the loss has lost less than a tenth of its first value by the end, or was
      100 times that in between;
    - stalled: after 20 steps the loss has lost less than a tenth of what it was, or the steps
      looked at, each on its own batch, take so little off that all together cannot have (losses of
      single batches differ by more), or steps go less than a thousandth of the way to the minimum
      along them, and no step overshoots;
    - oscillating: of at least 5 epochs, a fifth end 3 % above the one before (the rule of
      AUTOTRAINER, Zhang et al. 2021, arXiv:2002.05945, on the loss).
    """
    found: list[Finding] = []
    for rule in RULES if history.steps else ():
        found.extend(rule.find(history, rule, found))
    return tuple(found)


def _looks(history: Steps) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    alpha = history.alpha
    steps = np.flatnonzero(~np.isnan(alpha))
    return steps, alpha[steps]


def _overshooting(
    history: Steps, rule: RuleOf[Steps], earlier: Sequence[Finding]
) -> Iterator[Finding]:
    steps, alpha = _looks(history)
    if not len(steps):
        return
    fallen = _fall(history)
    before, after = history.loss[steps], history.loss_after[steps]
    median, climbs = float(np.median(alpha)), ~(after <= before)
    diverged = not fallen > 0 and median > 0
    share = float(climbs.mean())
    if not (share >= rule.warning or median > LONG or diverged):
        return
    beyond = climbs if climbs.any() else alpha > min(LONG, median - 1e-12)
    first = int(steps[beyond][0])
    rate = float(history.learning_rate[first])
    if climbs.any():
        slope = (history.slope * history.step_length)[steps[climbs]]
        with np.errstate(all="ignore"):
            part = np.nan_to_num(slope / (2 * (slope + before[climbs] - after[climbs])))
        wanted = rate * float(np.median(part))
        past = "the loss of {percent:.0f} % of the batches is higher after the step than before"
    else:
        wanted = rate / (1 + float(np.median(alpha[beyond])))
        past = "they pass the minimum"
    says = f"from step {{step:d}} on steps are too long: {past} (α {{alpha:+.2g}})"
    says += "" if fallen > 0 else "; the loss is no lower than at the start"
    advises = "lower the learning rate from {learning_rate:.3g} to {wanted:.2g}, which would land "
    advises += "at the minimum along the step"
    facts: dict[str, object] = {"percent": 100 * share}
    if (history.coefficient == 1).all():
        facts["clip"] = Clip(float(np.nanmedian(history.gradient_norm[: first + 1])))
        advises += ", or {clip}, the norm that it had until then"
    thrown = not float(np.max(history.loss)) <= THROWN * history.loss[0]
    evidence = {"step": first, "alpha": median, "climbs": share}
    yield Finding(
        kind=rule.kind,
        severity="warning" if fallen > LITTLE and not thrown else "critical",
        rule=rule.name,
        cause="learning-rate-high",
        sites=(Site("step", f"step {first}", first),),
        says=says,
        advises=advises + ".",
        facts=facts,
        evidence=evidence | {"learning_rate": rate, "wanted": wanted},
        edit=LearningRate(wanted),
    )


def _stalled(history: Steps, rule: RuleOf[Steps], earlier: Sequence[Finding]) -> Iterator[Finding]:
    if earlier:
        return
    steps, alpha = _looks(history)
    fallen = float(np.fmin(_fall(history), _fall_by_looks(history, steps)))
    baby = len(steps) > 0 and np.median(1 + alpha) < BABY
    baby = baby and np.quantile(1 + alpha, NEARLY_ALL) < 5 * BABY
    if history.steps < ENOUGH or not (fallen < rule.warning or baby):
        return
    says = "the loss fell by {percent:.1f} % in {steps:d} steps"
    facts: dict[str, object] = {"percent": 100 * max(fallen, 0)}
    evidence: dict[str, float] = {"fall": fallen, "steps": history.steps}
    advises, edit, cause = "see what diagnose says of the gradients.", None, ""
    if len(steps):
        median, last = float(np.median(alpha)), int(steps[-1])
        rate = float(history.learning_rate[last])
        wanted = rate / (1 + median) if median > -1 else np.inf
        evidence |= {"step": last, "alpha": median, "learning_rate": rate, "wanted": wanted}
        if median < -LONG:
            facts["way"] = float(f"{1 / (1 + median):.2g}") if median > -1 else np.inf
            says += ": baby steps, 1/{way:g} of the way to the minimum (α {alpha:+.4f})"
            advises = "raise the learning rate from {learning_rate:.3g} towards {wanted:.2g}, "
            advises += "which would land at the minimum along the step; if that does not help, "
            advises += "see what diagnose says of the gradients."
            edit, cause = LearningRate(wanted), "learning-rate-low"
        else:
            says += ", though they reach the minimum of their direction (α {alpha:+.2f})"
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause=cause,
        sites=(Site("optimizer"),),
        says=says,
        advises=advises,
        facts=facts,
        evidence=evidence,
        edit=edit,
    )


def _oscillating(
    history: Steps, rule: RuleOf[Steps], earlier: Sequence[Finding]
) -> Iterator[Finding]:
    loss = history.epoch_loss
    if len(loss) < EPOCHS:
        return
    rises = np.diff(loss) > RISE * np.abs(loss[:-1])
    share = float(rises.mean())
    if share < rule.warning:
        return
    first = int(history.epoch_steps[: np.flatnonzero(rises)[0] + 1].sum())
    rate = float(history.learning_rate[-1])
    yield Finding(
        kind=rule.kind,
        severity="warning",
        rule=rule.name,
        cause="oscillating",
        sites=(Site("step", f"step {first}", first),),
        says="the loss rises from one epoch to the next in {percent:.0f} % of them, first at step "
        "{step:d}",
        advises="lower the learning rate, from {learning_rate:.3g} to {third:.2g}, or let it fall "
        "(cosine).",
        facts={"percent": 100 * share, "third": rate / 3},
        evidence={"share": share, "step": first, "learning_rate": rate},
        edit=LearningRate(rate / 3),
    )


def _fall(history: Steps) -> float:
    """Return the part of its first value that the loss has lost in the last epoch's steps."""
    loss = history.loss
    count = int(history.epoch_steps[-1]) if history.epochs else len(loss)
    with np.errstate(all="ignore"):
        return float(1 - np.mean(loss[-min(count, max(len(loss) // 2, 1)) :]) / loss[0])


def _fall_by_looks(history: Steps, steps: npt.NDArray[np.intp]) -> float:
    """Return the part that all steps would take off the loss if each did as those looked at.

    It is nan if none was looked at. The loss is that of a step's own batch, which falls by more
    than that of all rows.
    """
    before, after = history.loss[steps], history.loss_after[steps]
    with np.errstate(all="ignore"):
        part = np.log(after / before)
    part = part[np.isfinite(part)]
    return float(-np.expm1(history.steps * np.mean(part))) if part.size else np.nan


RULES = (
    RuleOf[Steps](
        name="overshooting",
        kind="overshooting",
        warning=0.1,
        critical=inf,  # by the loss: see `of_history`
        measured="share of the steps looked at after which the loss of their batch is higher; also "
        f"a median α above {LONG}, or above 0 where the loss is no lower at the end",
        reason="On the parabola along a step, α = 0 lands at the minimum and α = 1 climbs as far "
        "as it came down; single batches climb now and then in any training.",
        source="Cockpit (Schneider et al. 2021, arXiv:2102.06604)",
        find=_overshooting,
    ),
    RuleOf[Steps](
        name="stalled",
        kind="stalled",
        warning=LITTLE,
        critical=LITTLE,
        measured=f"part of its first value that the loss has lost after {ENOUGH} steps or more, "
        f"found where it is below the limit; also 1 + α below {BABY} at the median step",
        reason="Asked only where no step overshoots, which has a cause and a cure of its own.",
        source="Cockpit (Schneider et al. 2021, arXiv:2102.06604)",
        find=_stalled,
    ),
    RuleOf[Steps](
        name="oscillating",
        kind="oscillating",
        warning=0.2,
        critical=inf,
        measured=f"share of the epochs, of {EPOCHS} at least, that end with a loss {RISE:.0%} "
        "above the one before",
        reason="A loss that falls on the whole rises in single epochs too, but seldom.",
        source="AUTOTRAINER (Zhang et al. 2021, arXiv:2002.05945), on the loss",
        find=_oscillating,
    ),
)
