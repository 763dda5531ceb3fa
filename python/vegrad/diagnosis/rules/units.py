"""Rules on units: dead ones, and elements that are saturated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

import numpy as np

from vegrad.activations import BOUNDED
from vegrad.diagnosis.rules.outputs import LOSS, SAME, shaped_by
from vegrad.diagnosis.rules.rule import Rule
from vegrad.diagnosis.rules.suspects import LARGE_INPUT
from vegrad.flow.data import Input
from vegrad.flow.edits import (
    Edit,
    Initialize,
    Normalize,
    Redraw,
    Scale,
    ScaleData,
    SetActivation,
    Shift,
    together,
)
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.reading import INPUT, MAPS, Chain, Operation, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE

ONE_SIDED = 0.9  # half the elements of a healthy ReLU layer have φ′ = 0
ALIKE = 0.1  # by which means differ at most that one shift mends
AXES = {"permute", "transpose", "t", "movedim", "swapaxes"}  # which make others of units
HOLDS = {"relu", "relu6", "hardtanh", "clamp", "clamp_min"}  # of derivative 0 beyond a bound
WIDE = 1.5  # standard deviation of pre-activations, from which weights are too large
RATHER = 0.1  # share of a layer's elements, from which it is rather flat
PASSED = 0.8  # decades within which gradients stay whose weights make up for flat units
DEEP = 5  # sigmoids, of which a quarter each leaves a thousandth
STEEP = ": weights that bring sigmoids back to 0 ± 1 leave each a quarter of the gradient."
RAW = 3.0  # root mean square of inputs that weights of the usual size make too large
THERE = ": the pre-activations there are {mean:.3g} ± {std:.3g}, not 0 ± 1."
THERE_WORST = ": the pre-activations of {worst} are {mean:.3g} ± {std:.3g}, not 0 ± 1."
BELOW = ": next to all pre-activations there are below 0, on every row."
FLAT = ": the pre-activations there are {mean:.3g} ± {std:.3g}, and no row moves these units to "
FLAT += "where they are not flat."
NOTHING = "look at how {inputs} is made: it is 0 in every row, and no weights tell rows apart then."


def _flat(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find units that are dead (one-sided activations only), or elements that are saturated."""
    chain = reading.chain
    if chain is None:
        return
    dead = rule.kind == "dead"
    fractions = chain.flow.dead if dead else chain.flow.saturated
    passed = not dead and _made_up(reading, chain)
    known = {layer for f in earlier if f.kind == "dead" for layer in f.layers}
    found = []
    for layer, fraction in enumerate(fractions):
        last = layer == len(fractions) - 1
        bounded = (chain.output if last else chain.activation) in BOUNDED
        limit = rule.warning if bounded or dead else ONE_SIDED
        if passed and not last:
            continue
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
    nothing = _nothing(reading) if dead and not worst else []
    edit, advises = _mended(chain, worst, mean, deviation)
    if nothing:
        advises = NOTHING
    elif dead:
        edit, advises = _revived(reading, chain, found, worst)
    elif _is_relu(chain, worst) and not isinstance(edit, Normalize):
        edit, advises = _drawn(chain, found), "{edit}" + BELOW  # which no factor changes
    elif chain.activation == "sigmoid" and len(found) >= DEEP:
        edit, advises = together(SetActivation("relu"), Initialize("he_normal")), "{edit}" + STEEP
    raw = [] if dead or worst or deviation < WIDE else _raw(reading, chain)
    if raw:
        edit, advises = ScaleData(), "{edit}" + THERE
        says += "; the values of {inputs} have a root mean square of {rms:.3g}, not about 1"
    fraction = float(fractions[worst])
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(fraction),
        rule=rule.name,
        cause="input-scale" if raw else _cause(rule, found, reading),
        sites=(*(Site("data", one.name) for one in raw), *layer_sites(found, chain.names)),
        says=says,
        advises=advises,
        edit=None if nothing else edit,
        facts={
            "percent": 100 * fraction,
            "worst": layer_sites([worst], chain.names),
            "rms": max((one.rms for one in raw), default=0.0),
            "inputs": ", ".join(one.name for one in raw or nothing),
        },
        evidence={"fraction": fraction, "layer": float(worst), "mean": mean, "std": deviation},
    )


def _made_up(reading: Reading, chain: Chain) -> bool:
    """Return True if all hidden units are rather flat, and weights pass on the gradient as it is.

    Critical weights of a sigmoid are so: few elements pass on a gradient, each of them more of it.
    """
    hidden, sizes = chain.flow.saturated[:-1], chain.flow.delta_log2
    if len(hidden) < 2 or chain.activation not in BOUNDED or chain.residual or chain.norm:
        return False
    if not hidden.min() >= RATHER or _raw(reading, chain):
        return False
    return bool(np.ptp(sizes) <= PASSED * DECADE)  # not of infinities


def _cause(rule: Rule, found: Sequence[int], reading: Reading) -> str:
    """Return the cause; of outputs at their bound, with a loss above that of a constant, theirs."""
    last = reading.chain is not None and list(found) == [len(reading.chain.layers) - 1]
    poor = any(one.value > one.constant for one in reading.losses)
    return "output-range" if last and poor else f"{rule.kind}-units"


def _raw(reading: Reading, chain: Chain) -> list[Input]:
    """Return inputs that are too large, which the first layer takes, with weights as usual."""
    first = reading.parameters.get(chain.layers[0].weight)
    usual = first is not None and first.through_log2 <= 1.0
    least = RAW if usual else LARGE_INPUT
    return [] if reading.tables else [one for one in reading.inputs if one.rms >= least]


def _nothing(reading: Reading) -> list[Input]:
    """Return the inputs if all of them are 0 in several rows, as standardized constants are."""
    return list(reading.inputs) if all(one.alike and not one.rms for one in reading.inputs) else []


def _revived(reading: Reading, chain: Chain, found: Sequence[int], layer: int) -> tuple[Edit, str]:
    """Return what brings dead units back to life, and the advice: no scale of weights does."""
    mean = float(chain.flow.preactivation_mean[layer])
    deviation = float(chain.flow.preactivation_std[layer])
    edit, advises = _mended(chain, layer, mean, deviation)
    if isinstance(edit, Shift):
        edit = _lifted(chain, found, edit)
        left = _left_flat(edit, reading)
        if left:
            edit, advises = _drawn(chain, sorted({*found, *left})), "{edit}" + THERE_WORST
        return edit, advises
    if isinstance(edit, Scale):
        one = chain.layers[layer]
        return Redraw((one.weight, one.bias) if one.bias else (one.weight,)), "{edit}" + FLAT
    return edit, advises.replace(THERE, FLAT) if isinstance(edit, SetActivation) else advises


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


def _is_relu(chain: Chain, layer: int) -> bool:
    return chain.activation == "relu" and layer < len(chain.layers) - 1


def _drawn(chain: Chain, found: Sequence[int]) -> Redraw:
    """Return that the weights and biases of layers are drawn again."""
    several = ((chain.layers[layer].weight, chain.layers[layer].bias) for layer in found)
    return Redraw(tuple(name for both in several for name in both if name))


def _lifted(chain: Chain, found: Sequence[int], edit: Shift) -> Shift:
    """Return one shift for all dead layers, if their biases are as far off as the worst's."""
    means = [float(chain.flow.preactivation_mean[layer]) for layer in found]
    deviations = [float(chain.flow.preactivation_std[layer]) for layer in found]
    biases = [chain.layers[layer].bias for layer in found]
    for mean, deviation in zip(means, deviations, strict=True):
        if not abs(mean) > deviation or abs(mean + edit.amount) > ALIKE * abs(edit.amount):
            return edit
    names = tuple(name for name in biases if name)
    return Shift(names, edit.amount) if len(names) == len(found) else edit


def _left_flat(edit: Edit, reading: Reading) -> list[int]:
    """Return the hidden layers that would be next to flat after an edit."""
    again = None if reading.what_if is None else reading.what_if.reading(edit)
    if again is None or again.chain is None or reading.chain is None:
        return []
    flat = again.chain.flow.saturated[: len(reading.chain.layers) - 1]
    return [layer for layer, share in enumerate(flat) if share >= ONE_SIDED]


def _softmax(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a softmax between two maps where an activation belongs."""
    found, worst = list[str](), 0.0
    for place, one in enumerate(reading.operations):
        below = _maker(reading, one.below[0]) if len(one.below) == 1 else None
        if one.kind != "softmax" or below is None or below.kind not in MAPS:
            continue
        takers = _takers(reading, place)
        lost = (below.delta_log2 - one.delta_log2) / DECADE
        if not takers or not all(_narrows(reading, name) for name in takers):
            continue
        if lost <= rule.warning:
            found.append(one.name)
            worst = min(worst, lost)
    if not found:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical" if found[1:] else rule.severity(worst),
        rule=rule.name,
        cause="activation-derivative",
        sites=tuple(Site("module", name) for name in found if name) or (Site("model"),),
        says="a softmax is used as a hidden activation: its values sum to 1 over all units, so "
        "that each is next to nothing, and it passes on {lost:power} of the gradient",
        advises="{edit}; a softmax belongs to the output, or to attention.",
        evidence={"lost": worst, "count": float(len(found))},
        edit=SetActivation("relu"),
    )


def _maker(reading: Reading, place: int) -> Operation | None:
    """Return the operation that made values, whose last axis is still the last."""
    while place != INPUT:
        one = reading.operations[place]
        if one.kind not in SAME - AXES or len(one.below) != 1:
            return one
        place = one.below[0]
    return None


def _takers(reading: Reading, place: int) -> list[str]:
    """Return the weights of the maps that take an output; [] if anything else does."""
    found, ahead = list[str](), {place}
    for one in reading.operations[place + 1 :]:
        place += 1
        if ahead.isdisjoint(one.below):
            continue
        if one.kind in {*SAME, "dropout"} - AXES:
            ahead.add(place)
        elif one.kind in MAPS and one.parameters:
            found.append(one.parameters[0])
        else:
            return []
    return found


def _narrows(reading: Reading, name: str) -> bool:
    """Return True of a trained map with no more outputs than inputs.

    From a few topics to many words, proportions are a model.
    """
    weight = reading.parameters.get(name)
    return weight is not None and weight.trained and weight.fans[0] >= weight.fans[1] > 0


def _held(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find logits that a ReLU or a clamp holds at its bound: of whole classes, or of many rows."""
    for one in reading.compared:
        made = shaped_by(reading, one.place)
        if made is not None and made.kind == "log_softmax" and one.function == "nll_loss":
            made = shaped_by(reading, made.below[0]) if len(made.below) == 1 else None
        bound = made is not None and made.kind in HOLDS
        if made is None or not bound or not (one.held or one.at_bound >= rule.warning):
            continue
        yield Finding(
            kind=rule.kind,
            severity=rule.severity(one.at_bound),
            rule=rule.name,
            cause="output-range",
            sites=(LOSS, *((Site("module", made.name),) if made.name else ())),
            says="a {operation} makes the logits, and "
            + (
                "holds those of {held:.0f} of {units:.0f} classes at its bound on every row: no "
                "gradient comes to these, though there are rows of these classes"
                if one.held
                else "for {at_bound:.0%} of the rows it holds that of their own class at its "
                "bound, where no gradient comes to it"
            ),
            advises="leave the {operation} out of the last layer: {loss} takes logits of any sign.",
            facts={"operation": made.kind, "loss": one.function},
            evidence={
                "held": float(one.held),
                "units": float(one.units),
                "at_bound": one.at_bound,
            },
        )
        return


LOGITS_HELD = Rule(
    name="logits-held",
    kind="dead",
    warning=0.25,
    critical=0.75,
    measured="share of the rows whose own class has its logit at the bound of a ReLU or a clamp; "
    "or any class that has it there on every row",
    reason="The derivative is 0 there. Half the rows begin so, and of classes that are held on "
    "every row nothing is ever learned. Means of what a ReLU makes (SqueezeNet) are not held.",
    source="an arithmetic fact",
    find=_held,
)
SOFTMAX_WITHIN = Rule(
    name="softmax-within",
    kind="vanishing",
    warning=-0.9,
    critical=-2,
    measured="log10 of δ before a softmax between two maps over δ after it",
    reason="Of n units each passes on 1/n.",
    source="an arithmetic fact; Cao et al. 2022 (DeepFD) have it among their faults",
    find=_softmax,
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
        reason="tanh beyond ±2.2, where a unit passes on a twentieth; by the derivative, since "
        f"fixed bounds on the output differ by 10⁶ in it. {ONE_SIDED} for one-sided activations, "
        "which are flat for half their inputs by design. Where all layers are rather flat and δ "
        f"stays within {PASSED:g} decades, as with critical weights of a sigmoid, large weights "
        "make up for it: of networks whose like with usual weights trained, 27 of 36 trained, of "
        "those beyond it 28 of 89.",
        source="DeepDiagnosis (half the elements beyond ±5); Karpathy (|tanh| > 0.97)",
        find=_flat,
    ),
)
