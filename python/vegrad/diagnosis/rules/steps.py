"""Rules on a training's steps, from its history: too long, too short, up and down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, nan

import numpy as np

from vegrad.diagnosis.rules.digest import SWING, Digest, Steps, middle
from vegrad.diagnosis.rules.long_steps import BLOCK, LONG_STEPS, Window, start_of
from vegrad.diagnosis.rules.lost_steps import LOST
from vegrad.diagnosis.rules.rule import RuleOf
from vegrad.diagnosis.rules.stalled import (
    FEW,
    LARGE,
    LITTLE,
    LONG,
    PLAIN,
    SOME,
    STALLED,
    STARVES,
)
from vegrad.flow.edits import Clip, LearningRate
from vegrad.flow.finding import Finding
from vegrad.flow.site import Site

LOOKS = 8  # of steps downhill, before they say anything by themselves; FEW if the loss agrees
CLIMBS = 0.3  # share of the steps looked at
HIGH = 4.0  # times its first value: a mean loss that no good training comes to
THROWN = 100.0  # times its first value: a loss that has been there has lost what it knew
# log2 of what a step moves weights, over their size: of a usual one, and of one far too large.
USUAL, VERY_LARGE = -10.0, -4.2
RISE, EPOCHS = 0.03, 5  # of the loss from epoch to epoch; at least so many
LEAST = 1e-3  # of a learning rate: no advice goes below that without a trial


def of_history(history: Steps) -> tuple[Finding, ...]:
    """Return what a training has met and what its steps say, causes before effects.

    α is Cockpit's gauge (Schneider et al. 2021, arXiv:2102.06604), seen at some of the steps. On
    the parabola along a step, lr/(1 + α) would have landed at the minimum. A step that goes uphill
    on its own batch, as momentum, Adam and the noise of batches make some do, is no overshoot.

    - overshooting: a step has led the loss out of its range; or a mean of ten steps' losses was 4
      times the first, or has become NaN after it grew; or of at least 8 steps downhill 3 in 10
      climb, or the median goes past the minimum by half its distance (α > 0.5); or the loss has
      lost little while steps move weights by more than 1/32 of their size, or end past the minimum.
      It is critical if the loss has lost less than a tenth of its first value by the end, or was
      100 times that in between;
    - stalled: after 20 steps the loss has lost less than a tenth of what it was, or the steps
      looked at, each on its own batch, take so little off that all together cannot have (losses of
      single batches differ by more), or steps go less than a thousandth of the way to the minimum
      along them, and no step overshoots;
    - oscillating: of at least 5 epochs, a fifth end 3 % above the one before (the rule of
      AUTOTRAINER, Zhang et al. 2021, arXiv:2002.05945, on the loss), and by a tenth of all that
      the loss has lost.

    A network that had learnt before this training is held against its loss of many rows, not
    against its first batches, and does not stall.

    Of a network through which no gradient comes, or whose units are dead, it is only said that it
    stalls, if it does: its steps are not to blame.
    """
    at_first = [one.finding for one in history.noted if one.step == 0]
    later = [one.finding for one in history.noted if one.step > 0]
    long = [one for one in later if one.kind == "overshooting"]
    later = [one for one in later if one.kind != "overshooting"]
    if not history.steps:
        return _unique(at_first)
    found: list[Finding] = []
    digest, starved = Digest(history), any(one.kind in STARVES for one in at_first)
    for rule in [STALLED, LOST] if starved else OF_HISTORY:
        found.extend(rule.find(digest, rule, [*at_first, *later, *long, *found]))
    long = [one for one in found if one.kind == "overshooting"] + long
    rest = [one for one in found if one.kind != "overshooting"]
    return _unique([*at_first, *long, *later, *rest])


def _unique(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Keep the first of each kind and cause."""
    return tuple({(one.kind, one.cause): one for one in reversed(findings)}.values())[::-1]


# Too long ---------------------------------------------------------------------------------------


def _overshooting(
    digest: Digest, rule: RuleOf[Digest], earlier: Sequence[Finding]
) -> Iterator[Finding]:
    seen = _too_long(digest)
    if seen is None:
        return
    history, fallen, high = digest.history, digest.fallen, digest.highest
    first, says, facts = seen
    rate = float(history.learning_rate[first])
    wanted, where = _shorter(digest, rate)
    advises = "lower the learning rate from {learning_rate:.3g}"
    if isfinite(wanted):
        advises += f" to {{wanted:.2g}}, {where}"
    else:
        advises += " by powers of ten, until the loss falls from the first steps on"
    limit, why = _limit(digest, first)
    if 0 < limit < inf:
        facts["clip"] = Clip(limit)
        advises += f", or {{clip}}, {why}"
    thrown = not high <= THROWN or not float(digest.loss.max()) <= THROWN * digest.start
    evidence = {
        "step": first,
        "alpha": digest.median,
        "climbs": float(digest.climbs.mean()) if len(digest.climbs) else nan,
        "highest": high,
        "fall": fallen,
        "learning_rate": rate,
    }
    yield Finding(
        kind=rule.kind,
        severity="warning" if fallen > LITTLE and not thrown else "critical",
        rule=rule.name,
        cause="learning-rate-high",
        sites=(Site("step", f"step {first}", first),),
        says=says + ("" if fallen > 0 else "; the loss is no lower than at the start"),
        advises=advises + ".",
        facts=facts,
        evidence=evidence | ({"wanted": wanted} if isfinite(wanted) else {}),
        edit=LearningRate(wanted) if isfinite(wanted) else None,
    )


def _too_long(digest: Digest) -> tuple[int, str, dict[str, object]] | None:
    """Return the first step that was too long, what says so, and what the words name."""
    begins = "from step {step:d} on steps are too long: "
    alpha, climbs, median, fallen = digest.alpha, digest.climbs, digest.median, digest.fallen
    left = np.flatnonzero(~(np.isfinite(alpha) & np.isfinite(digest.after)))
    if len(left):
        lost = int(left[0])
        on_end = int(np.argmin(np.append(climbs[:lost][::-1], False)))  # which climbed before it
        says = begins + "that of step {lost:d} led the loss out of its range (α {alpha:+.2g})"
        return int(digest.looks[lost - on_end]), says, {"lost": int(digest.looks[lost])}
    share = float(climbs.sum()) / max(len(climbs), 1)
    few = len(alpha) >= FEW and not fallen > 0
    spread = len({step // BLOCK for step in digest.looks.tolist()}) >= FEW
    enough = few or (len(alpha) >= LOOKS and spread and fallen < 1 - LITTLE)
    if enough and share >= CLIMBS:
        part = "the loss of {percent:.0f} % of the batches is higher after the step than before"
        part += " (α {alpha:+.2g})"
        return int(digest.looks[climbs][0]), begins + part, {"percent": 100 * share}
    if not digest.highest <= HIGH and _grew(digest):
        risen = int(np.flatnonzero(~(digest.loss <= 2 * digest.start))[0])
        first = max(risen - 1, 0)  # whose step has led there
        much = "the loss rose to {highest:.3g} times what it was"
        much = much if digest.highest < inf else "the loss rose until it was no number"
        return first, begins + much, {}
    if digest.settled:
        return None
    if (enough and median > LONG) or (few and median > 0):
        first = int(digest.looks[alpha > min(LONG, median - 1e-12)][0])
        return first, begins + "they pass the minimum (α {alpha:+.2g})", {}
    if not median > -LONG:
        return None
    if (digest.moved > LARGE and fallen < SOME) or (
        digest.moved > VERY_LARGE and fallen < 1 - LITTLE
    ):
        says = "each moves the weights by {moved:.2g} of their size, and the loss has lost "
        says += "{percent:.0f} % only"
        moved = float(np.exp2(digest.moved))
        return 0, begins + says, {"moved": moved, "percent": 100 * max(fallen, 0.0)}
    return None


def _limit(digest: Digest, first: int) -> tuple[float, str]:
    """Return a limit of the norm that would have helped, and what says so; nan if none is known.

    It is the norm from before it grew. Steps that are too long from the beginning on are only
    shortened by less: by what leads the first of them to its minimum, if it is as long as its
    gradient says, which those of momentum and Adam are not.
    """
    history = digest.history
    if not (history.coefficient == 1).all():
        return nan, ""
    norms = history.gradient_norm[: first + 1]
    norms = norms[~np.isnan(norms)]
    if not norms.size:
        return nan, ""
    usual = float(min(norms[0], np.median(norms)))
    began = digest.looks < max(first + 1, FEW)
    began &= (digest.alpha > 0) | digest.climbs
    if not began.any():
        if first == 0 and not (len(digest.looks) and digest.looks[0] == 0):
            return nan, ""  # the first step may have been the one that was too long
        return usual, "the norm that it had before"
    at = int(np.argmax(began))  # later ones begin where this one has thrown the network
    step, past = int(digest.looks[at]), max(float(digest.alpha[at]), 0.0)
    norm, rate = float(history.gradient_norm[step]), float(history.learning_rate[step])
    with np.errstate(all="ignore"):
        plain = history.step_length[step] / (rate * norm)
        slope = history.slope[step] * history.step_length[step]
        share = float(np.fmin(1 / (1 + past), slope / (2 * (slope - digest.rise[at]))))
    if not abs(plain - 1) < PLAIN or not share >= LEAST:
        return nan, ""
    return min(usual, norm * share), "with which the first step would have landed at its minimum"


def _shorter(digest: Digest, rate: float) -> tuple[float, str]:
    """Return a rate that is possible and what says so; nan if nothing does.

    Where the loss climbs, the parabola is taken through the loss before, its slope and the loss
    after; else it is that of α. Steps that are long by their size alone are made of a usual one.
    """
    history, climbs = digest.history, digest.climbs
    where = "which would land at the minimum along the step"
    with np.errstate(all="ignore"):
        if climbs.any():
            up = digest.looks[climbs]
            slope = (history.slope * history.step_length)[up]
            rise = digest.rise[climbs]
            wanted = rate * float(np.median(np.nan_to_num(slope / (2 * (slope - rise)))))
        elif digest.median > 0:
            wanted = rate / (1 + middle(digest.alpha[digest.alpha > 0]))
        else:
            wanted = rate * float(np.exp2(USUAL - digest.moved))
            where = "at which they would move the weights by a thousandth of their size"
    return (wanted, where) if LEAST * rate <= wanted < rate else (nan, "")


def _grew(digest: Digest) -> bool:
    """Return True if the loss was seen to grow before it was no number, or stayed one."""
    loss = digest.loss
    bad = np.flatnonzero(~np.isfinite(loss))
    if not len(bad):
        return True
    known = loss[: bad[0]]
    if not len(known):
        return False
    norms = digest.history.gradient_norm[: bad[0] + 1]
    if not np.isfinite(norms[:-1]).all() or digest.moved > LARGE:
        return True
    norms = norms[np.isfinite(norms)]
    return bool(
        known[-5:].max() > 2 * start_of(known) or norms[-5:].max() > HIGH * np.median(norms)
    )


# Up and down ------------------------------------------------------------------------------------


def _oscillating(
    digest: Digest, rule: RuleOf[Digest], earlier: Sequence[Finding]
) -> Iterator[Finding]:
    history = digest.history
    loss = history.epoch_loss
    if len(loss) < EPOCHS or earlier or not np.isfinite(loss).all():
        return
    rise, lost = np.diff(loss), max(digest.most, loss.max()) - loss.min()
    rises = (rise > RISE * np.abs(loss[:-1])) & (rise > SWING * lost)
    for n in np.flatnonzero(rises).tolist():
        rises[n] = rise[n] > digest.noise(n, n + 1)
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


# The table --------------------------------------------------------------------------------------

OVERSHOOTING = RuleOf[Digest](
    name="overshooting",
    kind="overshooting",
    warning=HIGH,
    critical=THROWN,
    measured="highest mean loss of ten steps over the first loss; also, of the steps looked at "
    f"that go downhill on their batch, {LOOKS} at least: {CLIMBS:.0%} of them climb, or their "
    f"median α is above {LONG}; also updates above 2^{LARGE:g} of the weights while the loss "
    "loses little",
    reason="On the parabola along a step, α = 0 lands at the minimum and α = 1 climbs as far "
    "as it came down; single batches climb now and then in any training, and losses near 0 go "
    "up and down for nothing. No good training of bench/trainings.py came to 4 times its loss.",
    source="Cockpit (Schneider et al. 2021, arXiv:2102.06604)",
    find=_overshooting,
)
OSCILLATING = RuleOf[Digest](
    name="oscillating",
    kind="oscillating",
    warning=0.2,
    critical=inf,
    measured=f"share of the epochs, of {EPOCHS} at least, that end with a loss {RISE:.0%} "
    f"above the one before, and {SWING:.0%} of all that it has lost",
    reason="A loss that falls on the whole rises in single epochs too, but seldom; near its "
    "lowest it goes up and down by a part of itself that is nothing beside what it has lost.",
    source="AUTOTRAINER (Zhang et al. 2021, arXiv:2002.05945), on the loss",
    find=_oscillating,
)
OF_HISTORY = (OVERSHOOTING, STALLED, OSCILLATING, LOST)
RULES: tuple[RuleOf[Digest] | RuleOf[Window], ...] = (*OF_HISTORY, LONG_STEPS)
