"""The rule on steps that lead nowhere: too short ones, and those that are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, nan

import numpy as np

from vegrad.diagnosis.rules.digest import Digest, middle
from vegrad.diagnosis.rules.rule import RuleOf
from vegrad.flow.edits import LearningRate
from vegrad.flow.finding import Finding
from vegrad.flow.site import Site

LONG, SHORT = 0.5, -0.99  # median α
FEW = 3  # steps downhill that were looked at
LITTLE = 0.1  # of its first value: what the loss must have lost not to be critical
SOME, MOST = 0.3, 0.8
BABY, NEARLY_ALL = 1e-3, 0.9  # 1 + α of the median step; share of the steps within 5 times that
ENOUGH = 20  # steps before anything is called stalled
# log2 of what a step moves weights, over their size: of one too large, the longest that is advised
# but of plain gradients, and one too small.
LARGE, FAST, TINY = -5.0, -7.0, -13.5
MUCH = 2.0  # times a learning rate, to be worth an advice
PLAIN = 0.1  # by which steps may differ from rate times gradient, and be no momentum's or Adam's
STARVES = ("vanishing", "dead", "saturated", "idle", "collapsed")


def _stalled(digest: Digest, rule: RuleOf[Digest], earlier: Sequence[Finding]) -> Iterator[Finding]:
    history = digest.history
    cause_known = next((one for one in earlier if one.kind in STARVES), None)
    long = any(one.kind == "overshooting" for one in earlier)
    if history.steps < ENOUGH or long or (earlier and cause_known is None):
        return
    if digest.learnt and (history.learning_rate != 0).any():
        return  # little may be left to learn
    fallen, alpha, median = digest.fallen, digest.alpha, digest.median
    if fallen >= MOST:
        return
    if median < SHORT:
        fallen = float(np.fmin(fallen, digest.fall_by_looks))
    baby = (len(alpha) >= FEW or fallen < SOME) and median < BABY - 1
    baby = baby and float(np.quantile(1 + alpha, NEARLY_ALL)) < 5 * BABY
    tiny = max(digest.moves, default=nan) < TINY and fallen < 1 - LONG and not median > -LONG
    if not (fallen < rule.warning or baby or tiny):
        return
    fallen, says = _how_little(digest, fallen)
    facts: dict[str, object] = {"percent": 100 * max(fallen, 0)}
    evidence: dict[str, float] = {"fall": fallen, "steps": history.steps}
    advises, edit, cause = "see what diagnose says of the gradients.", None, ""
    if cause_known is not None:
        says += ", as is to be expected: {effect}"
        facts["effect"] = cause_known.kind
        advises = "mend that first; no learning rate makes up for it."
    elif (history.learning_rate == 0).all():
        says = "the learning rate is 0: none of {steps:d} steps has changed anything"
        advises, cause = "give the optimizer a learning rate above 0.", "learning-rate-low"
    elif len(alpha):
        moves = of_looks(digest)
        if moves is None:
            return
        said, advises, more, cause = moves
        says, evidence = says + said, evidence | more
        if median < -LONG:
            facts |= {"way": float(f"{1 / (1 + median):.2g}") if median > -1 else inf}
            facts |= {"most": _longest(digest, inf)[1], "moved": float(np.exp2(digest.moved))}
        edit = LearningRate(more["wanted"]) if "wanted" in more else None
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


def of_looks(digest: Digest) -> tuple[str, str, dict[str, float], str] | None:
    """Return what the steps looked at say, what to do, evidence, cause; None if all is well."""
    last, median = int(digest.looks[-1]), digest.median
    rate = float(digest.history.learning_rate[last])
    evidence = {"step": last, "alpha": median, "learning_rate": rate}
    judge = "see what diagnose says of the gradients."
    if median >= -LONG:
        return (
            ", though they reach the minimum of their direction (α {alpha:+.2f})",
            judge,
            evidence,
            "",
        )
    wanted = rate / (1 + median) if median > -1 else inf
    bound, _ = _longest(digest, wanted)
    if bound > MUCH * rate:
        where = "which would land at the minimum along the step"
        if wanted > bound:
            where = "at which steps would move the weights by {most:.1g} of their size"
        wanted = min(wanted, bound)
        advises = "raise the learning rate from {learning_rate:.3g}"
        if 0 < wanted < inf:
            advises += f" towards {{wanted:.2g}}, {where}"
            evidence["wanted"] = wanted
        advises += "; if that does not help, " + judge
        part = "1/{way:g}" if median > -1 else "next to nothing"
        return (
            f": baby steps, {part} of the way to the minimum (α {{alpha:+.4f}})",
            advises,
            evidence,
            "learning-rate-low",
        )
    if digest.gets_on and digest.falls_late:
        return None
    says = ", though steps are not short: each moves the weights by {moved:.2g} of their size"
    return says, "train on, as a plateau may end; else " + judge, evidence, ""


def _longest(digest: Digest, wanted: float) -> tuple[float, float]:
    """Return the highest rate that may be advised, and by how much it would move the weights.

    On a plateau the parabola's minimum lies anywhere, and steps of momentum and Adam do not become
    shorter by a gradient that does. Steps of plain gradients may go as far as it says if that is
    no further than the weights' own size. The rate is inf if that is so, or if it is not known how
    far steps move.
    """
    history = digest.history
    if not digest.moves:
        return inf, nan
    with np.errstate(all="ignore"):
        plain = history.step_length / (history.learning_rate * history.gradient_norm)
    known, rate = np.abs(plain[digest.looks] - 1), float(history.learning_rate.max())
    limit, moved = FAST, max(digest.moves)
    if len(known) and middle(known) < PLAIN:
        limit = LARGE
        if wanted <= 1.01 * rate * 2**-moved:
            return inf, nan
    return rate * 2 ** (limit - moved), 2**limit


def _how_little(digest: Digest, fallen: float) -> tuple[float, str]:
    """Return the part that the loss has lost, and the words for it.

    The first batches may happen to have a higher loss than others: epochs are compared, if there
    are some.
    """
    losses, says = digest.history.epoch_loss, "the loss fell by {percent:.1f} % in {steps:d} steps"
    if len(losses) < 2 or not np.isfinite(losses).all():
        return fallen, says
    lost = float(losses[0] - losses[-1])
    if lost <= digest.noise(0, -1):
        says = "the loss of {steps:d} steps has not fallen by more than batches differ"
        return min(fallen, max(lost / digest.start, 0.0)), says
    return min(fallen, lost / digest.start), says


STALLED = RuleOf[Digest](
    name="stalled",
    kind="stalled",
    warning=LITTLE,
    critical=LITTLE,
    measured=f"part of its first value that the loss has lost after {ENOUGH} steps or more, "
    f"found where it is below the limit; also 1 + α below {BABY} at the median step, or "
    f"updates below 2^{TINY:g} of the weights while the loss loses less than half",
    reason="Asked only where no step overshoots and nothing else was found, which has a cause "
    "and a cure of its own.",
    source="Cockpit (Schneider et al. 2021, arXiv:2102.06604)",
    find=_stalled,
)
