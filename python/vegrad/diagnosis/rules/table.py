"""The rules of a diagnosis: one table, one small measuring function a kind, and the advice.

A new rule is one row of `RULES` (at the end) and one function that yields its findings. Limits on
gradients are decades (powers of ten) between layers, never absolute sizes, so that neither the
scale of the loss nor the size of the batch changes a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite, log10, sqrt

import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.diagnosis.trend import Measured, Trend
from vegrad.flow.finding import Finding
from vegrad.flow.wording import DECADE, exp2, finite_mean, named, power, times

BOUNDED = {row.name: row.largest_slope for row in ACTIVATIONS.values() if row.bounded}
UNSTABLE = {row.name for row in ACTIVATIONS.values() if not row.stable}
BFLOAT16 = (2.0 - 2.0**-7) * 2.0**127  # the largest of a dtype that NumPy does not know
ONE_SIDED = 0.9  # half the elements of a healthy ReLU layer have φ′ = 0


@dataclass(frozen=True)
class Rule:
    """One row of `RULES`: `find` yields a finding where what is measured reaches `warning`."""

    kind: str
    warning: float
    critical: float
    measured: str
    reason: str
    source: str
    find: Callable[[Measured, Rule, Sequence[Finding]], Iterator[Finding]]

    def severity(self, value: float) -> str:
        """How bad `value` is, given that it reaches the limit of a warning."""
        return "critical" if abs(value) >= abs(self.critical) else "warning"


# What is measured ------------------------------------------------------------------------------


def _nonfinite(m: Measured, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    for name, value in m.network.parameters.items():
        bad = ~np.isfinite(value)
        if bad.any():
            place, count = tuple(np.argwhere(bad)[0].tolist()), int(bad.sum())
            message = f"the parameter {name}{list(place)} is {value[place]}"
            message += f", the first of {count} such values" if count > 1 else ""
            advice = (
                f"draw or load {name} again; if training made it so, lower the learning rate by a "
                "factor of 10 and clip the gradients' global norm at 1."
            )
            layer = int(name.split(".")[1])
            yield Finding(rule.kind, "critical", (layer,), message, advice, {"count": count})
            return
    rms, deltas, dtype = m.flow.activation_rms, m.flow.delta_log2, m.config["dtype"]
    largest = BFLOAT16 if dtype == "bfloat16" else np.finfo(dtype).max
    forward = tuple(np.flatnonzero(~(rms <= largest)).tolist())
    backward = tuple(np.flatnonzero(np.isnan(deltas) | (deltas == inf)).tolist())
    if forward:
        layers, message = forward, f"the activations pass {dtype}'s largest number in "
        message += named(forward)
    elif backward:
        layers, message = backward, f"the gradient is not finite in {named(backward)}"
    elif not isfinite(m.loss):
        layers, message = (len(rms) - 1,), f"the loss is {m.loss}"
    else:
        return
    sizes = np.log2(rms[np.isfinite(rms) & (rms > 0)])
    growth = float(sizes[-1] - sizes[0]) / (sizes.size - 1) if sizes.size > 1 else 0.0
    advice = "scale the data and targets to a size of about 1."
    if growth > 0:
        advice = f"multiply every weight by {exp2(-growth):.3g}: the activations grow "
        advice += f"{times(growth)} a layer."
    evidence = {"count": float(len(layers)), "activation_growth": exp2(growth)}
    yield Finding(rule.kind, "critical", layers, message, advice, evidence)


def _flat(m: Measured, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Units that are dead (one-sided activations only), elements that are saturated."""
    dead = rule.kind == "dead"
    fractions = m.flow.dead if dead else m.flow.saturated
    found = []
    for layer, fraction in enumerate(fractions):
        bounded = m.config["output" if layer == len(fractions) - 1 else "activation"] in BOUNDED
        limit = rule.warning if bounded or dead else ONE_SIDED
        known = any(f.kind == "dead" and layer in f.layers for f in earlier)
        if fraction >= limit and not known and not (dead and bounded):
            found.append(layer)
    if not found:
        return
    worst = max(found, key=lambda layer: float(fractions[layer]))
    fraction = float(fractions[worst])
    how = "derivative 0 on the whole batch" if dead else "a derivative under 5 % of its largest"
    message = f"{100 * fraction:.3g} % of the {'units' if dead else 'elements'} of layer {worst} "
    message += f"have {how}"
    if len(found) > 1:
        message += f"; {len(found)} layers are {rule.kind} in all: {named(found)}"
    mean = float(m.flow.preactivation_mean[worst])
    deviation = float(m.flow.preactivation_std[worst])
    yield Finding(
        rule.kind,
        rule.severity(fraction),
        tuple(found),
        message,
        _flat_advice(m, worst, mean, deviation),
        {"fraction": fraction, "layer": float(worst), "mean": mean, "std": deviation},
    )


def _chain(sign: int, m: Measured, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """The whole chain shrinks (sign -1) or grows; if not, then its steepest stretch."""
    found, deltas = m.chain(sign, abs(rule.warning)), m.flow.delta_log2
    if found is None:
        return
    trend, stretch = found
    if stretch is not None:
        layers, weights = tuple(stretch), range(stretch[0] + 1, stretch[-1] + 2)
        passed = f"a layer from layer {stretch[-1] + 1} down to layer {stretch[0]}"
    else:
        known = np.flatnonzero(np.isfinite(deltas))
        first, last = int(known[0]), int(known[-1])
        far = sign * (deltas - deltas[last]) >= abs(rule.warning) * DECADE
        layers = tuple(np.flatnonzero(far).tolist()) or (first,)
        weights = range(first + 1, last + 1)
        where = "the first layer" if first == 0 else f"layer {first}"
        reach = power(float(deltas[first] - deltas[last]) / DECADE)
        passed = f"a layer and reaches {where} at {reach} {'of' if sign < 0 else 'times'} the last"
    if not passed.endswith("last"):
        passed += f", in all to {power(trend.decades)} {'of' if sign < 0 else 'times'} its size"
    blame = trend.blame(sign)
    texts = {"weights": "the weights are to blame ({} a layer, {} {})"}
    texts["activation"] = f"{_derivative(m)} is to blame ({{}} a layer, {{}} {{}})"
    factors = (times(trend.weights), "derivative", times(trend.activation))
    if blame == "activation":
        factors = (times(trend.activation), "weights", times(trend.weights))
    verb = "shrinks" if sign < 0 else "grows"
    yield Finding(
        rule.kind,
        rule.severity(trend.decades),
        layers,
        f"the gradient {verb} {times(trend.gain)} {passed}; {texts[blame].format(*factors)}",
        _chain_advice(m, trend, sign, weights),
        {
            "gain": exp2(trend.gain),
            "gain_low": exp2(trend.low),
            "gain_high": exp2(trend.high),
            "weight_gain": exp2(trend.weights),
            "activation_gain": exp2(trend.activation),
            "decades": trend.decades,
            "underflowed_layers": float(len(m.underflowed)),
            "overflowed_layers": float(len(m.overflowed)),
        },
        blame,
    )


def _one_layer(sign: int, m: Measured, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Single gains far from the rest, unless the layer is known to be dead or saturated."""
    explained = {layer for f in earlier if f.kind in ("dead", "saturated") for layer in f.layers}
    for place, usual in m.broken.items():
        gain = float(m.local[place]) if isfinite(m.local[place]) else -inf
        if sign * (gain - usual) < 0 or place in explained:
            continue
        factors = (m.flow.weight_gain_log2, m.flow.activation_gain_log2)
        weight, activation = (float(f[place] - finite_mean(np.delete(f, place))) for f in factors)
        part = "activation" if sign * activation > sign * weight else "weights"
        layer = place if part == "activation" else place + 1  # whose weights the gain contains
        if part == "activation":
            advice = (
                f"set the biases of layer {layer} to 0 and draw its weights again: its "
                f"pre-activations are {m.flow.preactivation_mean[layer]:.3g} ± "
                f"{m.flow.preactivation_std[layer]:.3g}."
            )
        elif gain == -inf:
            advice = f"draw the weights of layer {layer} again: they let no gradient through."
        else:
            advice = f"multiply the weights of layer {layer} by {exp2(usual - gain):.3g}."
        message = f"the gradient {'shrinks' if sign < 0 else 'grows'} {times(gain)} in passing the "
        message += f"{part} of layer {layer}, and {times(usual)} in other layers"
        evidence = {"gain": exp2(gain), "usual_gain": exp2(usual)}
        if m.expected is not None and isfinite(m.expected.gain_log2[place]):
            evidence["expected_gain"] = exp2(float(m.expected.gain_log2[place]))
            message += f"; theory expects {times(float(m.expected.gain_log2[place]))}"
        severity = rule.severity((gain - usual) / DECADE)
        yield Finding(rule.kind, severity, (layer,), message, advice, evidence, part)


def _entrance(m: Measured, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """The signal is far too large from the first layer on, which unbounded activations pass on."""
    std = float(m.flow.preactivation_std[0])
    bounded = m.config["activation"] in BOUNDED or m.config["norm"] is not None
    if bounded or any(f.kind == rule.kind for f in earlier) or not std >= 10.0**rule.warning:
        return
    yield Finding(
        rule.kind,
        rule.severity(log10(std)),
        (0,),
        f"the first layer's pre-activations have a standard deviation of {std:.3g}, not about 1, "
        "and every layer above passes that on",
        "scale the columns of x to mean 0 and standard deviation 1; if they are, divide the "
        f"weights of layer 0 by {std:.3g}.",
        {"std": std, "layer": 0.0},
        "weights",
    )


# What to do ------------------------------------------------------------------------------------


def _flat_advice(m: Measured, layer: int, mean: float, deviation: float) -> str:
    if deviation == 0.0 and mean == 0.0:
        return f"draw the weights of layer {layer} again: its pre-activations are all 0."
    if abs(mean) > deviation:
        advice = f"add {-mean:.3g} to the biases of layer {layer}"
    elif m.config["residual"] and m.config["norm"] is None:
        advice = 'use norm="layer", since skip connections make the signal grow'
    elif deviation > 1.5:
        advice = f"divide the weights of layer {layer} by {deviation:.3g}"
    else:
        advice = 'use activation="leaky_relu", which is nowhere flat, or draw the weights again'
    return f"{advice}: the pre-activations there are {mean:.3g} ± {deviation:.3g}, not 0 ± 1."


def _derivative(m: Measured) -> str:
    """What the activation's factor of a gain contains."""
    more = ["the normalization"] if m.config["norm"] is not None else []
    more += ["the skip connection"] if m.config["residual"] else []
    return "the activation's derivative" + (f" with {' and '.join(more)}" if more else "")


def _chain_advice(m: Measured, trend: Trend, sign: int, weights: range) -> str:
    activation, norm, residual = (m.config[name] for name in ("activation", "norm", "residual"))
    depth = len(m.flow.delta_log2)
    where = named(weights) if len(weights) < depth - 1 else "every layer"
    scale = f"multiply the weights of {where} by "
    if activation in ("sigmoid", "softplus") and sign < 0:
        most = "never above 0.25" if activation == "sigmoid" else "about 0.5"
        return (
            f"{activation}'s derivative is {most}, which larger weights do not make up for: use "
            'activation="relu" with init="he_normal", or "tanh" with "lecun_normal".'
        )
    if activation in UNSTABLE and norm is None:
        return (
            f"no scale of the weights is stable for {activation} (what shrinks at one grows at the "
            'next): use norm="layer", or activation="relu" with init="he_normal".'
        )
    if norm is not None:
        other = 'activation="relu"' if residual else "residual=True"
        return f"the normalization undoes any scaling of the weights: use {other}."
    if residual and sign > 0:
        return (
            f"{scale}1/√{depth} = {1 / sqrt(depth):.2g}, so that {depth} skip connections together "
            'add a factor of about 3 at most; or use norm="layer".'
        )
    if activation in BOUNDED and sign > 0:
        return f"{scale}{exp2(-trend.weights) / BOUNDED[activation]:.3g}, for 1× at most."
    if activation in BOUNDED and trend.blame(sign) == "activation":
        mean = float(np.abs(m.flow.preactivation_mean).max())
        return (
            f"bring the pre-activations (mean up to {mean:.3g}, standard deviation up to "
            f"{m.flow.preactivation_std.max():.3g}) back to where {activation} is steep: zero "
            'biases and init="lecun_normal".'
        )
    return f"{scale}{exp2(-trend.gain):.3g}, so that each passes about 1×."


# The table -------------------------------------------------------------------------------------

CHAIN = (
    "Trainability, not taste: in 400 steps of SGD on the digits (tanh and ReLU, 20 to 80 layers of "
    "64, learning rates 0.001 to 0.1) no network beyond 2 decades reached an accuracy of 0.7, none "
    "beyond 3 reached 0.45; the best tanh networks within 1 reached 0.88 at every depth. But Adam, "
    "which undoes the size of each gradient, trains most networks of 2 to 3 decades and few beyond "
    "(the zoo, bench/zoo.md: at 3 its half for tuning has the fewest errors). Chance is far off: "
    "50 He layers of 64 have -0.15 ± 0.32 decades over 150 seeds, LeCun tanh -0.93 ± 0.14."
)
CHAIN_SOURCE = (
    "AUTOTRAINER (first/last below 1e-3, above 70), torchmortem (100 and 1000 times), but by the "
    "slope; Schoenholz 2017 (depth 6 ξ: 1.3 decades); Hanin & Nica 2020 (spread at finite width)"
)
RULES = (
    Rule(
        kind="nonfinite",
        warning=1,
        critical=1,
        measured="NaN or infinite values in the parameters, activations, gradients or the loss",
        reason="One is enough: the next step spreads it to every parameter.",
        source="all tools; naming the first place: pytorch#86362, #160016",
        find=_nonfinite,
    ),
    Rule(
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
        kind="exploding",
        warning=3,
        critical=4,
        measured="log10 of the fitted gain over the chain or a stretch of it, first over last",
        reason=CHAIN,
        source=CHAIN_SOURCE,
        find=partial(_chain, +1),
    ),
    Rule(
        kind="exploding",
        warning=2,
        critical=3,
        measured="log10 of one layer's gain over the median of the others'",
        reason="One layer that does what a whole chain must not; widths that change by 100 from "
        "layer to layer shift a gain by 1 decade.",
        source="the chain's limits",
        find=partial(_one_layer, +1),
    ),
    Rule(
        kind="exploding",
        warning=1.5,
        critical=2,
        measured="log10 of the standard deviation of the first layer's pre-activations, where "
        "neither the activation nor a normalization bounds what is passed on",
        reason="Gradients of the weights grow by as much: of the zoo's ReLU, GELU and ELU "
        "networks with data times 100, 18 of 34 did not train (seed 1). He's weights make it 1.4.",
        source="LeCun et al. 1998, Efficient BackProp (inputs of mean 0 and variance 1)",
        find=_entrance,
    ),
    Rule(
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
    Rule(
        kind="vanishing",
        warning=-3,
        critical=-4,
        measured="log10 of the fitted gain over the chain or a stretch of it, first over last",
        reason=CHAIN,
        source=CHAIN_SOURCE,
        find=partial(_chain, -1),
    ),
    Rule(
        kind="vanishing",
        warning=-2,
        critical=-3,
        measured="log10 of one layer's gain over the median of the others'",
        reason="As for exploding.",
        source="the chain's limits",
        find=partial(_one_layer, -1),
    ),
)
