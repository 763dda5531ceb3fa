"""Rules on a chain of layers: what shrinks or grows along it, and the layer that departs.

Limits are decades (powers of ten) between layers, never absolute sizes, so that neither the scale
of the loss nor the size of the batch changes a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import inf, isfinite, log10, sqrt

import numpy as np

from vegrad.activations import BOUNDED, UNSTABLE
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import (
    AddSkips,
    Edit,
    Initialize,
    Normalize,
    Redraw,
    Scale,
    ScaleData,
    SetActivation,
    Zero,
    together,
)
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.site import Site
from vegrad.flow.trend import Trend
from vegrad.flow.ways import joined
from vegrad.flow.wording import DECADE, Log2, exp2, finite_mean


def _whole(
    sign: int, reading: Reading, rule: Rule, earlier: Sequence[Finding]
) -> Iterator[Finding]:
    """Find that the whole chain shrinks (sign -1) or grows; if not, its steepest stretch."""
    chain = reading.chain
    if chain is None:
        return
    found = chain.gains.drift(sign, abs(rule.warning))
    if found is None:
        return
    trend, stretch = found
    layers, weights, where, facts = _extent(sign, rule, chain, stretch)
    blame = trend.blame(sign)
    edit, advises, more = _chain_edit(chain, trend, sign, weights)
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(trend.decades),
        rule=rule.name,
        cause=_cause(blame, sign, stretch),
        sites=layer_sites(layers, chain.names),
        says=f"{_passed_on(sign)}, {where}; {_to_blame(chain, blame)}",
        advises=advises,
        facts=facts
        | more
        | {
            "gain": Log2(trend.gain),
            "weight_gain": Log2(trend.weights),
            "activation_gain": Log2(trend.activation),
        },
        evidence={
            "gain": exp2(trend.gain),
            "gain_low": exp2(trend.low),
            "gain_high": exp2(trend.high),
            "weight_gain": exp2(trend.weights),
            "activation_gain": exp2(trend.activation),
            "decades": trend.decades,
            "underflowed_layers": float(len(chain.underflowed)),
            "overflowed_layers": float(len(chain.overflowed)),
        },
        blame=blame,
        edit=edit,
    )


def _cause(blame: str, sign: int, stretch: range | None) -> str:
    """Return the cause; where derivatives multiply, weights that are as large are to blame."""
    if blame == "activation" and sign < 0:
        return "activation-derivative"
    return "weight-scale-all" if stretch is None else "weight-scale"


def _passed_on(sign: int) -> str:
    if sign < 0:
        return "each layer passes on {gain:share} of the gradient"
    return "each layer multiplies the gradient by {gain:share}"


def _to_blame(chain: Chain, blame: str) -> str:
    if blame == "weights":
        return (
            "the weights are to blame ({weight_gain:share} a layer, the derivative "
            "{activation_gain:share})"
        )
    more = ["the normalization"] if chain.norm is not None else []
    more += ["the skip connection"] if chain.residual else []
    derivative = "the activation's derivative" + (f" with {' and '.join(more)}" if more else "")
    return (
        f"{derivative} is to blame ({{activation_gain:share}} a layer, the weights "
        "{weight_gain:share})"
    )


def _extent(
    sign: int, rule: Rule, chain: Chain, stretch: range | None
) -> tuple[Sequence[int], range, str, dict[str, object]]:
    """Return the layers in question, those whose weights are, and how far the gradient comes."""
    deltas, names = chain.flow.delta_log2, chain.names
    of = "of" if sign < 0 else "times"
    if stretch is not None:
        ends = {
            "first": layer_sites([stretch[0]], names),
            "last": layer_sites([stretch[-1] + 1], names),
        }
        where = f"from {{last}} down to {{first}}, in all {{decades:power}} {of} its size"
        return stretch, range(stretch[0] + 1, stretch[-1] + 2), where, {**ends}
    known = np.flatnonzero(np.isfinite(deltas))
    first, last = int(known[0]), int(known[-1])
    far = sign * (deltas - deltas[last]) >= abs(rule.warning) * DECADE
    layers = np.flatnonzero(far).tolist() or [first]
    reach = float(deltas[first] - deltas[last]) / DECADE
    where = "the first layer" if first == 0 else "{first}"
    where = f"so that {where} gets {{reach:power}} {of} what the last gets"
    facts: dict[str, object] = {"reach": reach, "first": layer_sites([first], names)}
    return layers, range(first + 1, last + 1), where, facts


def _one_layer(
    sign: int, reading: Reading, rule: Rule, earlier: Sequence[Finding]
) -> Iterator[Finding]:
    """Find single gains far from the rest, unless the layer is known to be dead or saturated."""
    chain = reading.chain
    if chain is None:
        return
    gains = chain.gains
    explained = {layer for f in earlier if f.kind in ("dead", "saturated") for layer in f.layers}
    beside = joined(reading) if gains.broken else set()
    explained |= {n for n, layer in enumerate(chain.layers) if layer.weight in beside}
    for place, usual in gains.broken.items():
        gain = float(gains.local[place]) if isfinite(gains.local[place]) else -inf
        if sign * (gain - usual) < 0 or place in explained:
            continue
        weight, activation = (
            float(factor[place] - finite_mean(np.delete(factor, place)))
            for factor in (gains.weights, gains.activation)
        )
        part = "activation" if sign * activation > sign * weight else "weights"
        at = place if part == "activation" else place + 1  # whose weights the gain contains
        edit, advises, cause, facts = _one_edit(chain, part, at, gain, usual)
        facts |= {"gain": Log2(gain), "usual_gain": Log2(usual)}
        evidence = {"gain": exp2(gain), "usual_gain": exp2(usual)}
        says = "the gradient is multiplied by {gain:share} in passing {site}, and by "
        says += "{usual_gain:share} in other layers"
        expected = chain.expected
        if expected is not None and isfinite(expected.gain_log2[place]):
            evidence["expected_gain"] = exp2(float(expected.gain_log2[place]))
            source = "weights drawn anew give" if chain.drawn else "theory expects"
            says += f"; {source} {{expected_gain:share}}"
        yield Finding(
            kind=rule.kind,
            severity=rule.severity((gain - usual) / DECADE),
            rule=rule.name,
            cause=cause,
            sites=(Site(part, chain.names[at], at),),
            says=says,
            advises=advises,
            facts=facts,
            evidence=evidence,
            blame=part,
            edit=edit,
        )


def _one_edit(
    chain: Chain, part: str, at: int, gain: float, usual: float
) -> tuple[Edit, str, str, dict[str, object]]:
    """Return the edit for a single layer, the advice, the cause and what the advice names."""
    layer, flow = chain.layers[at], chain.flow
    if part == "activation":
        redraw: Edit = Redraw((layer.weight,))
        edit = redraw if layer.bias is None else together(Zero((layer.bias,)), redraw)
        facts: dict[str, object] = {
            "mean": float(flow.preactivation_mean[at]),
            "std": float(flow.preactivation_std[at]),
        }
        advises = "{edit}: its pre-activations are {mean:.3g} ± {std:.3g}."
        return edit, advises, "saturated-units", facts
    redraw = Redraw((layer.weight,))
    if gain == -inf:
        return redraw, "{edit}: they let no gradient through.", "weight-scale", {}
    factor = exp2(usual - gain)
    if not 0 < factor < inf:
        return redraw, "{edit}: no factor of a float makes up for it.", "weight-scale", {}
    return Scale((layer.weight,), factor), "{edit}.", "weight-scale", {}


def _entrance(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a signal far too large from the first layer on, which unbounded activations pass on."""
    chain = reading.chain
    if chain is None:
        return
    std = float(chain.flow.preactivation_std[0])
    bounded = chain.activation in BOUNDED or chain.norm is not None or chain.layers[0].rescaled
    if bounded or any(f.kind == rule.kind for f in earlier) or not std >= 10.0**rule.warning:
        return
    if reading.tables or len(chain.layers) == 1:
        return  # no inputs of the user's, or no layer above
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(log10(std)),
        rule=rule.name,
        cause="input-scale",
        sites=layer_sites([0], chain.names),
        says="the first layer's pre-activations have a standard deviation of {std:.3g}, not about "
        "1, and every layer above passes that on",
        advises="{edit}; if they are scaled already, {instead}.",
        edit=ScaleData(),
        facts={"instead": Scale((chain.layers[0].weight,), 1.0 / std)},
        evidence={"std": std, "layer": 0.0},
        blame="weights",
    )


# What to do -------------------------------------------------------------------------------------


def _chain_edit(
    chain: Chain, trend: Trend, sign: int, weights: range
) -> tuple[Edit | None, str, dict[str, object]]:
    """Return the edit for a whole chain, the advice, and what the advice names."""
    activation, depth = chain.activation, len(chain.layers)

    def scale(factor: float) -> Edit:
        return Scale(tuple(chain.layers[n].weight for n in weights), factor)

    relu = together(SetActivation("relu"), Initialize("he_normal"))
    if activation in ("sigmoid", "softplus") and sign < 0:
        most = "never above 0.25" if activation == "sigmoid" else "about 0.5"
        advises = (
            f"{activation}'s derivative is {most}, which weights of the usual size do not make up "
            "for: "
        )
        instead = together(SetActivation("tanh"), Initialize("lecun_normal"))
        return relu, advises + "{edit}, or {instead}.", {"instead": instead}
    if activation in UNSTABLE and chain.norm is None:
        advises = (
            f"no scale of the weights is stable for {activation} (one makes it shrink, a little "
        )
        return (
            Normalize(),
            advises + "more makes it grow): {edit}, or {instead}.",
            {"instead": relu},
        )
    if chain.norm is not None:
        other = SetActivation("relu") if chain.residual else AddSkips()
        return other, "the normalization undoes any scaling of the weights: {edit}.", {}
    if chain.residual and sign > 0:
        advises = "{edit} (1/√{depth}), so that {depth} skip connections together add a factor of "
        advises += "about 3 at most; or {instead}."
        return scale(1 / sqrt(depth)), advises, {"depth": depth, "instead": Normalize()}
    if activation in BOUNDED and sign > 0:
        factor = exp2(-trend.weights) / BOUNDED[activation]
        return scale(factor), "{edit}, so that each passes on 1× at most.", {}
    if activation in BOUNDED and trend.blame(sign) == "activation":
        flow = chain.flow
        sizes: dict[str, object] = {
            "mean": float(np.abs(flow.preactivation_mean).max()),
            "std": float(flow.preactivation_std.max()),
        }
        advises = "bring the pre-activations (mean up to {mean:.3g}, standard deviation up to "
        advises += f"{{std:.3g}}) back to where {activation} is steep: set the biases to 0 and "
        return Initialize("lecun_normal"), advises + "{edit}.", sizes
    return scale(exp2(-trend.gain)), "{edit}, so that each passes on about 1×.", {}


# The table --------------------------------------------------------------------------------------

CHAIN = (
    "Trainability, not taste: in 400 steps of SGD on the digits (tanh and ReLU, 20 to 80 layers of "
    "64, learning rates 0.001 to 0.1) no network beyond 2 decades reached an accuracy of 0.7, none "
    "beyond 3 reached 0.45; the best tanh networks within 1 reached 0.88 at every depth. But Adam, "
    "which undoes the size of each gradient, trains most networks of 2 to 3 decades and few beyond "
    "(the zoo, bench/results/zoo.md: at 3 its half for tuning has the fewest errors). Chance is "
    "far off: 50 He layers of 64 have -0.15 ± 0.32 decades over 150 seeds, LeCun tanh -0.93 ± 0.14."
)
CHAIN_SOURCE = (
    "AUTOTRAINER (first/last below 1e-3, above 70), torchmortem (100 and 1000 times), but by the "
    "slope; Schoenholz 2017 (depth 6 ξ: 1.3 decades); Hanin & Nica 2020 (spread at finite width)"
)
EXPLODING = Rule(
    name="exploding-chain",
    kind="exploding",
    warning=3,
    critical=4,
    measured="log10 of the fitted gain over the chain or a stretch of it, first over last",
    reason=CHAIN,
    source=CHAIN_SOURCE,
    find=partial(_whole, +1),
)
EXPLODING_LAYER = Rule(
    name="exploding-layer",
    kind="exploding",
    warning=2,
    critical=3,
    measured="log10 of one layer's gain over the median of the others'",
    reason="One layer that does what a whole chain must not; widths that change by 100 from "
    "layer to layer shift a gain by 1 decade.",
    source="the chain's limits",
    find=partial(_one_layer, +1),
)
ENTRANCE = Rule(
    name="exploding-entrance",
    kind="exploding",
    warning=1.5,
    critical=2,
    measured="log10 of the standard deviation of the first layer's pre-activations, where "
    "neither the activation nor a normalization bounds what is passed on",
    reason="Gradients of the weights grow by as much: of the zoo's ReLU, GELU and ELU "
    "networks with data times 100, 18 of 34 did not train (seed 1). He's weights make it 1.4.",
    source="LeCun et al. 1998, Efficient BackProp (inputs of mean 0 and variance 1)",
    find=_entrance,
)
VANISHING = Rule(
    name="vanishing-chain",
    kind="vanishing",
    warning=-3,
    critical=-4,
    measured="log10 of the fitted gain over the chain or a stretch of it, first over last",
    reason=CHAIN,
    source=CHAIN_SOURCE,
    find=partial(_whole, -1),
)
VANISHING_LAYER = Rule(
    name="vanishing-layer",
    kind="vanishing",
    warning=-2,
    critical=-3,
    measured="log10 of one layer's gain over the median of the others'",
    reason="As for exploding.",
    source="the chain's limits",
    find=partial(_one_layer, -1),
)
BY_SIGN = {1: EXPLODING, -1: VANISHING}
