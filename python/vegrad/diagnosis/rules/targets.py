"""Rules on targets: shape, range and size beside outputs, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from vegrad.diagnosis.rules.outputs import BINARY, CLASSES, EDGE, ERRORS, LOSS, TARGET, above
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import Compared
from vegrad.flow.edits import ScaleTarget
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Reading

LARGE, SMALL = 300.0, 1e-4  # root mean squares of targets
OFF, VERY_OFF = 20.0, 100.0  # standard deviations from the mean output to that of the targets
WAY = 10.0  # between these, that an untrained network's bias takes long to go
ENOUGH = 8  # targets, which hardly are that close to each other by chance
CHOSEN = {"max", "amax", "gather", "min", "amin", "logsumexp", "maximum", "minimum"}
SIGNED = {"soft_margin_loss", "hinge_embedding_loss"}
TIMES = {"mul", "rmul", "imul"}


def _broadcast(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that each output is compared with the targets of all rows."""
    for one in reading.compared:
        output, target = one.output.shape, one.target.shape
        own = one.function != "sub" or one.plain
        if one.function not in ERRORS or not own or output == target:
            continue
        both = _broadcasted(output, target)
        if both is None or both in (output, target):
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="broadcast",
            sites=(LOSS, TARGET),
            says=f"the output has the shape {output} and the target {target}: their difference "
            f"has the shape {both}, each output beside the targets of other rows too",
            advises="give both the same shape: take the last axis of the output away, or add one "
            "to the target."
            if len(output) >= len(target)
            else "give both the same shape: take the last axis of the target away, or add one to "
            "the output.",
            evidence={"rows": float(output[0] if output else 1)},
        )
        return


def _broadcasted(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a difference; None if there is none."""
    width = max(len(first), len(second))
    pairs = zip(
        (1,) * (width - len(first)) + first, (1,) * (width - len(second)) + second, strict=True
    )
    found = []
    for a, b in pairs:
        if a != b and 1 not in (a, b):
            return None
        found.append(max(a, b))
    return tuple(found)


# Targets that the loss is not made for -----------------------------------------------------------


def _target_range(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find targets outside of what a loss is made for."""
    for one in reading.compared:
        found = _outside(one, reading)
        if found is None:
            continue
        says, advises = found
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="target-range",
            sites=(TARGET, LOSS),
            says=says,
            advises=advises,
            facts={"loss": one.function},
            evidence={
                "low": one.target.low,
                "high": one.target.high,
                "units": float(one.units),
                "last": one.units - 1.0,
                "loss": reading.loss if reading.loss is not None else one.value,
            },
        )
        return


def _outside(one: Compared, reading: Reading) -> tuple[str, str] | None:
    """Return what is wrong with targets and what to do, as templates; None if they are right."""
    low, high = one.target.low, one.target.high
    if one.function in CLASSES and one.labels and (low < 0 or high >= one.units):
        return (
            "the labels reach from {low:.0f} to {high:.0f}, where {loss} over {units:.0f} units "
            "takes 0 to {last:.0f}",
            "give the last layer as many units as there are classes, and number these from 0; "
            "a label that does not count has to be named to the loss.",
        )
    if one.function in CLASSES and not one.labels:
        if len(one.target.shape) < len(one.output.shape):
            return (
                "the labels are floating-point numbers, where {loss} takes whole ones",
                "convert them to integers.",
            )
        if one.function == "cross_entropy" and (low < -EDGE or high > 1 + EDGE):
            return (
                "the targets reach from {low:.3g} to {high:.3g}, where {loss} takes probabilities "
                "of classes, or labels",
                "for numbers use a squared error; for classes labels, or rows that sum to 1.",
            )
    if one.function in BINARY and (low < -EDGE or high > 1 + EDGE):
        return (
            "the targets reach from {low:.3g} to {high:.3g}, where {loss} takes 0 to 1: beyond "
            "these it has no minimum, and falls below 0 for ever",
            "for several classes use as many units and a cross entropy; for two, targets of 0 and "
            "1; for numbers a squared error.",
        )
    if one.function in SIGNED and one.target.whole and (low, high) == (0, 1):
        return (
            "the targets are 0 and 1, where {loss} takes −1 and 1: those of 0 count for nothing",
            "use 2 * target - 1, or a binary cross entropy of logits.",
        )
    if one.function == "poisson_nll_loss" and low < -EDGE:
        return (
            "the targets reach down to {low:.3g}, where {loss} takes counts, which are 0 or more",
            "for numbers of both signs use a squared error.",
        )
    if one.function == "mul" and high > 1 + EDGE and _beside(one, reading):
        return (
            "the targets reach from {low:.3g} to {high:.3g}, where a binary cross entropy takes 0 "
            "to 1: beyond these it has no minimum, and falls below 0 for ever",
            "for several classes use as many units and a cross entropy; for numbers a squared "
            "error.",
        )
    return None


def _beside(one: Compared, reading: Reading) -> bool:
    """Return True if 1 - target is multiplied with a logarithm too, as of two classes."""
    return any(
        other.function == "mul" and abs(other.target.low + one.target.high - 1) < EDGE
        for other in reading.compared
    )


# Their size, and what they are made of -----------------------------------------------------------


def _scale(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find targets of a regression that are far from the outputs' size."""
    if any(one.cause in ("output-range", "target-range") for one in earlier):
        return
    for one in reading.compared:
        if one.function not in ERRORS or not one.given or one.target_place is not None:
            continue
        size, spread, output = one.target.rms, one.target.std, one.output.rms
        large = size >= LARGE and size >= LARGE * output
        small = 0 < size <= SMALL and spread > 0 and size <= 10 * SMALL * output
        if not large and not small:
            yield from _off(one, rule)
            continue
        beside = size / max(output, 1.0) if large else output / size
        yield Finding(
            kind="exploding" if large else "stalled",
            severity=rule.severity(beside),
            rule=rule.name,
            cause="target-scale",
            sites=(TARGET,),
            says="the targets are {mean:.3g} ± {std:.3g}, where the outputs are {output:.3g}: "
            + (
                "the loss and its gradients are as large, and training diverges or crawls"
                if large
                else "beside the error that the outputs start with, what they tell is lost"
            ),
            advises="{edit}{words.undoing}.",
            evidence={"mean": one.target.mean, "std": spread, "output": output},
            edit=ScaleTarget(),
        )
        return


def _off(one: Compared, rule: Rule) -> Iterator[Finding]:
    """Find targets whose mean is far from the outputs, beside what they differ by."""
    spread, way = one.target.std, abs(one.target.mean - one.output.mean)
    if prod(one.target.shape) < ENOUGH:
        return
    if abs(one.target.mean) < abs(one.output.mean):  # no scaling of the target mends that
        return
    if not (spread > 0 and way >= WAY and way >= OFF * max(spread, one.output.std)):
        return
    yield Finding(
        kind="stalled",
        severity="critical" if way >= VERY_OFF * spread else "warning",
        rule=rule.name,
        cause="target-scale",
        sites=(TARGET,),
        says="the targets are {mean:.3g} ± {std:.3g}, where the outputs are {output_mean:.3g} ± "
        "{output_std:.3g}: nearly all of the loss is the way to their mean, and steps that go it "
        "learn nothing of what makes rows differ",
        advises="{edit}{words.undoing}.",
        evidence={
            "mean": one.target.mean,
            "std": spread,
            "output_mean": one.output.mean,
            "output_std": one.output.std,
        },
        edit=ScaleTarget(),
    )


def _moving(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a target that the very head makes whose output is compared with it."""
    for one in reading.compared:
        if one.function not in ERRORS or one.target_place is None:
            continue
        pair = (one.place, one.target_place)
        if not any(_bootstraps(reading, one, *two) for two in (pair, pair[::-1])):
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="moving-target",
            sites=(LOSS, TARGET),
            says="the target of {loss} is made by the parameters that are trained, and gets a "
            "gradient: output and target run after each other",
            advises="compute the target without a gradient; a copy of the network that is updated "
            "now and then keeps it still.",
            facts={"loss": "the difference" if one.function == "sub" else one.function},
        )
        return


def _bootstraps(reading: Reading, one: Compared, place: int, target: int) -> bool:
    """Return True if a target is a share of what the output's own head says of other rows."""
    kinds, theirs = above(reading, target, tuple(MAPS))
    more, own = above(reading, place, tuple(MAPS))

    def weights(places: set[int]) -> set[str]:
        return {name for n in places for name in reading.everything[n].parameters[:1]}

    same = bool(theirs) and weights(theirs) == weights(own) != set()
    apart = theirs.isdisjoint(own) or bool(kinds & CHOSEN)
    derived = "grad" in kinds | more
    made = bool(kinds & TIMES) and (one.given or bool(kinds & CHOSEN))
    return same and apart and made and not derived


BROADCAST = Rule(
    name="broadcast",
    kind="stalled",
    warning=1,
    critical=1,
    measured="shapes of output and target, and of their difference",
    reason="(N, 1) beside (N,) makes (N, N): the best output is then the mean of all targets.",
    source="PyTorch's own warning of mse_loss",
    find=_broadcast,
)
TARGET_RANGE = Rule(
    name="target-range",
    kind="stalled",
    warning=1,
    critical=1,
    measured="lowest and highest target beside what the loss takes",
    reason="A cross entropy is bounded below only for probabilities.",
    source="PyTorch's documentation of BCELoss and CrossEntropyLoss",
    find=_target_range,
)
TARGET_SCALE = Rule(
    name="target-scale",
    kind="exploding",
    warning=LARGE,
    critical=1e4,
    measured="root mean square of the targets over that of the outputs, or the other way round; "
    f"also a mean of the targets {WAY:g} and {OFF:g} of their standard deviations from that of the "
    f"outputs, which is critical from {VERY_OFF:g} on",
    reason="An untrained network's outputs are of order 1. Means of 10 and deviations of 3 do no "
    "harm; ages, prices and years do.",
    source="LeCun et al. 1998, Efficient BackProp",
    find=_scale,
)
MOVING_TARGET = Rule(
    name="moving-target",
    kind="stalled",
    warning=1,
    critical=1,
    measured="the graph of the target",
    reason="With the gradient through both, the step that lowers the error is not the one that "
    "brings the output to the target.",
    source="Mnih et al. 2015 (target networks); Baird 1995 (residual gradients)",
    find=_moving,
)
RULES = (BROADCAST, TARGET_RANGE, TARGET_SCALE, MOVING_TARGET)
