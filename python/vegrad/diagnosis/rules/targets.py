"""Rules on targets: their size beside that of outputs, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vegrad.diagnosis.rules.losses import ERRORS, LOSS, TARGET
from vegrad.diagnosis.rules.outputs import above
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Reading

LARGE, SMALL = 300.0, 1e-4  # root mean squares of targets
CHOSEN = {"max", "amax", "gather", "min", "amin", "logsumexp", "maximum", "minimum"}
TIMES = {"mul", "rmul", "imul"}


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
            advises="train on (target − mean) / standard deviation, and undo that when predicting.",
            evidence={"mean": one.target.mean, "std": spread, "output": output},
        )
        return


def _moving(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a target that the very head makes whose output is compared with it."""
    for one in reading.compared:
        if one.function not in ERRORS or one.target_place is None:
            continue
        stop = tuple(MAPS)
        kinds, theirs = above(reading, one.target_place, stop)
        _, own = above(reading, one.place, stop)
        everything = reading.everything
        heads = [{n for place in some for n in everything[place].parameters[:1]}
                 for some in (theirs, own)]  # fmt: skip
        bootstrapped = bool(kinds & TIMES) and (one.given or bool(kinds & CHOSEN))
        if not heads[0] or heads[0] != heads[1] or not bootstrapped or "grad" in kinds:
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="moving-target",
            sites=(LOSS, TARGET),
            says="the target of {loss} is made by the parameters that are trained, and gets a "
            "gradient: output and target run after each other",
            advises="compute the target under torch.no_grad(), or detach it; a copy of the network "
            "that is updated now and then keeps it still.",
            facts={"loss": "the difference" if one.function == "sub" else one.function},
        )
        return


TARGET_SCALE = Rule(
    name="target-scale",
    kind="exploding",
    warning=LARGE,
    critical=1e4,
    measured="root mean square of the targets over that of the outputs, or the other way round",
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
RULES = (TARGET_SCALE, MOVING_TARGET)
