"""Rules on units: dead ones, and elements that are saturated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from vegrad.activations import BOUNDED
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Edit, Normalize, Redraw, Scale, SetActivation, Shift
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.reading import Chain, Reading

ONE_SIDED = 0.9  # half the elements of a healthy ReLU layer have φ′ = 0
WIDE = 1.5  # standard deviation of pre-activations, from which weights are too large
THERE = ": the pre-activations there are {mean:.3g} ± {std:.3g}, not 0 ± 1."


def _flat(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find units that are dead (one-sided activations only), or elements that are saturated."""
    chain = reading.chain
    if chain is None:
        return
    dead = rule.kind == "dead"
    fractions = chain.flow.dead if dead else chain.flow.saturated
    known = {layer for f in earlier if f.kind == "dead" for layer in f.layers}
    found = []
    for layer, fraction in enumerate(fractions):
        last = layer == len(fractions) - 1
        bounded = (chain.output if last else chain.activation) in BOUNDED
        limit = rule.warning if bounded or dead else ONE_SIDED
        if fraction >= limit and layer not in known and not (dead and bounded):
            found.append(layer)
    if not found:
        return
    worst = max(found, key=lambda layer: float(fractions[layer]))
    what = "units" if dead else "elements"
    how = "derivative 0 on the whole batch" if dead else "a derivative below 5 % of its maximum"
    says = f"{{percent:.3g}} % of the {what} of {{worst}} have {how}"
    if len(found) > 1:
        says += f"; {len(found)} layers are {rule.kind} in all: {{sites}}"
    mean = float(chain.flow.preactivation_mean[worst])
    deviation = float(chain.flow.preactivation_std[worst])
    edit, advises = _mended(chain, worst, mean, deviation)
    fraction = float(fractions[worst])
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(fraction),
        rule=rule.name,
        cause=f"{rule.kind}-units",
        sites=layer_sites(found, chain.names),
        says=says,
        advises=advises,
        edit=edit,
        facts={"percent": 100 * fraction, "worst": layer_sites([worst], chain.names)},
        evidence={"fraction": fraction, "layer": float(worst), "mean": mean, "std": deviation},
    )


def _mended(chain: Chain, layer: int, mean: float, deviation: float) -> tuple[Edit, str]:
    """Return what brings a layer's pre-activations back to 0 ± 1, and the advice."""
    one = chain.layers[layer]
    if deviation == 0.0 and mean == 0.0:
        return Redraw((one.weight,)), "{edit}: the pre-activations there are all 0."
    if not (isfinite(mean) and isfinite(deviation)):
        return Redraw((one.weight,)), "{edit}: the pre-activations there are not finite."
    if abs(mean) > deviation:
        return (Shift((one.bias,), -mean) if one.bias else Redraw((one.weight,))), "{edit}" + THERE
    if chain.residual and chain.norm is None:
        return Normalize(), "{edit}, since skip connections make the signal grow" + THERE
    if deviation > WIDE:
        return Scale((one.weight,), 1.0 / deviation), "{edit}" + THERE
    return (
        SetActivation("leaky_relu"),
        "{edit}, which is nowhere flat, or draw the weights again" + THERE,
    )


RULES = (
    Rule(
        name="dead-units",
        kind="dead",
        warning=0.9,
        critical=0.99,
        measured="fraction of a layer's units with φ′ = 0 on the whole batch",
        reason="In a deep healthy He network all rows look alike, so that half the units are off "
        "for the whole batch (at most 0.62 of 64, 0.81 of 16 in 60 seeds); 0.5 and 0.7 alarm.",
        source="SageMaker Debugger and torchmortem 0.5, AUTOTRAINER and DeepDiagnosis 0.7",
        find=_flat,
    ),
    Rule(
        name="saturated-units",
        kind="saturated",
        warning=0.5,
        critical=0.9,
        measured="fraction of a layer's elements whose |φ′| is under 5 % of its largest",
        reason="tanh beyond ±2.2, where a unit learns 20 times slower; by the derivative, since "
        f"fixed bounds on the output differ by 10⁶ in it. {ONE_SIDED} for one-sided activations, "
        "which are flat for half their inputs by design.",
        source="DeepDiagnosis (half the elements beyond ±5); Karpathy (|tanh| > 0.97)",
        find=_flat,
    ),
)
