"""The rule on distributions: numbers for which one is not defined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from vegrad.diagnosis.rules.outputs import LOSS, TARGET
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import Undefined
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading


def _undefined(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a distribution that was given a parameter, or a target, that it does not take."""
    one = reading.undefined
    if one is None:
        return
    limits = _limits(one)
    cause, says = "loss-domain", f"{{parameter}} of {{distribution}} must be {limits}"
    if not one.parameter:
        cause, says = "target-range", f"{{distribution}} is a distribution of {limits}"
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause=cause,
        sites=(LOSS,) if one.parameter else (LOSS, TARGET),
        says=f"{says}, and is given numbers from {{low:.3g}} to {{high:.3g}}",
        advises=_advice(one),
        facts={"distribution": one.distribution, "parameter": one.parameter},
        evidence={"low": one.low, "high": one.high},
    )


def _limits(one: Undefined) -> str:
    what = "" if one.parameter else "numbers "
    if isfinite(one.least) and isfinite(one.most):
        return f"{what}from {one.least:.3g} to {one.most:.3g}"
    if isfinite(one.least):
        return f"{what}above {one.least:.3g}"
    return f"{what}below {one.most:.3g}" if isfinite(one.most) else f"{what or 'one '}of its own"


def _advice(one: Undefined) -> str:
    if not one.parameter:
        return "bring the targets into that range, or take a distribution that is made for them."
    if one.parameter == "probs":
        return "give it the model's output as logits instead."
    if one.least == 0 and not isfinite(one.most):
        return "put the model's output for it through a softplus or an exp, and add a small number."
    return "put the model's output for it through what keeps it there."


UNDEFINED = Rule(
    name="undefined-distribution",
    kind="nonfinite",
    warning=1,
    critical=1,
    measured="parameters and values of a distribution that its own check refuses",
    reason="It has no density for them, and PyTorch's raises an error.",
    source="PyTorch's documentation of torch.distributions",
    find=_undefined,
)
