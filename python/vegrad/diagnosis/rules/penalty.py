"""The rule on a penalty that has kept a network from learning anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log2, prod

from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import KnownLoss
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Parameter, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import Log2

PART = 0.5  # of the way that a plain fit goes; whoever is at less has been kept from learning
LITTLE = 0.05  # of the way: data of which so little can be told may as well be left alone
SHRUNK = -1.0  # log2 of the weights beside those that they began with
EVEN = -1.0  # log2 of the penalty's gradient beside the data's, which it is to balance at least
MOSTLY = 2 / 3  # of the matrices


def outweighs_log2(one: Parameter, decay: float) -> float:
    """Return log2 of the penalty's gradient over the data's; inf if there is none of these."""
    own = log2(decay) + one.rms_log2 + log2(max(prod(one.shape), 1)) / 2
    return own - one.gradient_log2


def _penalty(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find weights that their penalty has shrunk, in a network that has learnt far too little."""
    penalty, losses = reading.penalty, [one for one in reading.losses if one.constant > 0]
    if penalty is None or not penalty.decay > 0 or len(losses) != 1:
        return
    begun, part = penalty.begun_log2, _part(losses[0])
    found = [one for name, one in reading.parameters.items() if name in begun]
    shrunk = [
        one
        for one in found
        if one.rms_log2 - begun[one.name] < SHRUNK and outweighs_log2(one, penalty.decay) > EVEN
    ]
    if not shrunk or len(shrunk) < MOSTLY * len(found) or not part < rule.warning:
        return
    possible = 0.0 if penalty.possible is None else penalty.possible()
    if possible < LITTLE or not part < rule.warning * possible:
        return
    worst = min(shrunk, key=lambda one: one.rms_log2 - begun[one.name])
    left, ratio = worst.rms_log2 - begun[worst.name], outweighs_log2(worst, penalty.decay)
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="weight-decay",
        sites=(Site("optimizer"), *(Site("parameter", one.name) for one in shrunk)),
        says="{words.decay} has shrunk the weights, {worst} to {left:share} of the size that they "
        "began with, where its gradient is {ratio:times} the data's: {part:.0%} of the way from "
        "the best constant output to perfection is done, and a plain fit does {possible:.0%} on "
        "rows that it has not seen",
        advises="lower {words.decay}.",
        facts={"worst": worst.name, "left": Log2(left), "ratio": Log2(ratio)},
        evidence={"part": max(part, 0.0), "possible": possible, "decay": penalty.decay},
    )


def _part(loss: KnownLoss) -> float:
    """Return the part of the way from a constant output to perfection; of classes by rows."""
    if loss.guess > 0 and loss.wrong >= 0:
        return 1 - loss.wrong / loss.guess
    return 1 - loss.value / loss.constant


PENALTY = Rule(
    name="weight-decay",
    kind="vanishing",
    warning=PART,
    critical=PART,
    measured="part of the way from the best constant output to perfection, beside what a plain fit "
    "does on rows that it has not seen; found where it is less than half, decay has halved two "
    "thirds of the matrices at least, and its gradient balances the data's",
    reason="A penalty that only regularizes leaves a network no worse than a plain fit.",
    source="Krogh and Hertz 1991, A simple weight decay can improve generalization",
    find=_penalty,
)
