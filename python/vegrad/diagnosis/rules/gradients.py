"""Rules on gradients that were recorded, without the network that they belong to.

The chain goes through the weights, nearest the input first. Compared are logarithms of norms
between neighbours, never sizes, so that neither the loss's scale nor the batch matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf, log2

import numpy as np

from vegrad.diagnosis.rules.chain import BY_SIGN
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Scale
from vegrad.flow.finding import Finding
from vegrad.flow.gradients import Gradients
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.trend import Along, Trend
from vegrad.flow.wording import DECADE, Log2, exp2


def _nonfinite(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    recorded = reading.gradients
    if recorded is None:
        return
    measurement = recorded.measurement
    if measurement is None:
        yield from _lost(recorded, rule)
        return
    bad = [n for n, s in enumerate(measurement.buffers) if s.infs + s.nans > 0]
    if not bad:
        return
    one = measurement.buffers[bad[0]]
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="overflow",
        sites=tuple(Site("weights", measurement.names[n], n) for n in bad),
        says="{name}{index} is the first of {elements:d} elements of {name} that are {what}; "
        "{buffers:d} of {all:d} gradients have such elements",
        advises='skip this step (nonfinite="skip"), and look for the first layer of the forward '
        "pass whose activations are not finite.",
        facts={
            "name": measurement.names[bad[0]],
            "index": list(one.first_nonfinite or ()),
            "elements": one.infs + one.nans,
            "what": "inf or NaN" if one.infs else "NaN",
            "buffers": len(bad),
            "all": len(measurement.buffers),
        },
        evidence={"count": float(sum(s.infs + s.nans for s in measurement.buffers))},
    )


def _lost(recorded: Gradients, rule: Rule) -> Iterator[Finding]:
    """Find sizes that are not finite where only these are known."""
    sizes = recorded.sizes(recorded.chain)
    lost = np.flatnonzero(np.isnan(sizes) | (sizes == inf)).tolist()
    if lost:
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="overflow",
            sites=tuple(Site("weights", recorded.chain[n], n) for n in lost),
            says="the gradient of {name} was not finite in the last epoch",
            advises="lower the learning rate by a factor of 10 and clip the global norm at 1.",
            facts={"name": recorded.chain[lost[0]]},
            evidence={"count": float(len(lost))},
        )


def _zero(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    recorded = reading.gradients
    if recorded is None or recorded.measurement is None:
        return
    chain, sizes = recorded.chain, recorded.sizes(recorded.chain)
    zero = np.flatnonzero(sizes == -inf).tolist()
    if not zero:
        return
    first = zero == list(range(len(zero)))  # from the input on: it got smaller and smaller
    kind = "vanishing" if first and len(zero) < len(chain) else "dead"
    advises = "record them in float64, or with vegrad.MLP: what {dtype} stores as 0 may be 1e-50."
    if len(zero) == len(chain):
        advises = "the loss does not depend on these parameters, or a layer above them is dead."
    elif not first:
        advises = "look for units whose derivative is 0 on the whole batch just above them."
    yield Finding(
        kind=kind,
        severity="critical",
        rule=rule.name,
        cause="constant-output" if len(zero) == len(chain) else "",
        sites=tuple(Site("weights", chain[n], n) for n in zero),
        says="{count:d} of {all} gradients are exactly 0: {first}"
        + (" to {last}" if len(zero) > 1 else ""),
        advises=advises,
        facts={
            "all": len(chain),
            "first": chain[zero[0]],
            "last": chain[zero[-1]],
            "dtype": recorded.measurement.total.dtype,
        },
        evidence={"count": float(len(zero))},
    )


def _drift(
    sign: int, reading: Reading, rule: Rule, earlier: Sequence[Finding]
) -> Iterator[Finding]:
    """Find that gradients shrink (sign -1) or grow along the chain, or a stretch of it."""
    for one in _looked_at(reading, earlier):
        found = one.gains.drift(sign, abs(rule.warning))
        if found is not None:
            trend, stretch = found
            part = range(one.gains.total.size) if stretch is None else stretch
            yield _of_chain(rule, sign, trend, part, one)


def _gaps(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find single steps between neighbours that are unlike the others."""
    for one in _looked_at(reading, earlier):
        for place, usual in one.gains.broken.items():
            gain = float(one.gains.total[place])
            yield _of_gap(rule, gain, usual, one.site(place), one.site(place + 1))


def _looked_at(reading: Reading, earlier: Sequence[Finding]) -> Iterator[Along]:
    """Yield the weights, then the biases if the weights show nothing; none if one is not finite.

    A weight's gradient is the product of δ and the layer's input: where one grows as the other
    shrinks it shows nothing, so the biases' gradients, sums of δ, are looked at too.
    """
    recorded = reading.gradients
    if recorded is None or any(f.kind == "nonfinite" for f in earlier):
        return
    weights, biases = recorded.along_weights, recorded.along_biases
    if weights is not None:
        yield weights
        gains = weights.gains
        if gains.broken or any(gains.drift(s, abs(BY_SIGN[s].warning)) for s in BY_SIGN):
            return
    if biases is not None:
        yield biases


def _of_chain(rule: Rule, sign: int, trend: Trend, part: range, one: Along) -> Finding:
    low, high = part[0], part[-1] + 1
    of = "of" if sign < 0 else "times"
    passed = "passes on {gain:share} of" if sign < 0 else "multiplies"
    by = "" if sign < 0 else " by {gain:share}"
    each = exp2(-trend.gain)
    scale = Scale(one.names[low : high + 1], each) if one.of == "weights" else None
    if sign < 0:
        advises = "each layer should pass on {each:.3g} times as much: larger initial weights, an "
        advises += "activation with a larger derivative, normalization or skip connections; a "
        advises += "clip does not help."
    else:
        advises = "multiply the initial weights of each layer by about {each:.3g}"
        if one.of == "weights":
            advises += "; until then clip the global norm at {clip:.2g}, what it would be if all "
            advises += "layers were as the last"
        advises += "."
    return Finding(
        kind=rule.kind,
        severity=rule.severity(trend.decades),
        rule=rule.name,
        cause="weight-scale-all",
        sites=tuple(one.site(n) for n in range(low, high + 1)),
        says=f"each layer {passed} the {one.of}' gradient{by}, which reaches {{low}} at "
        f"{{reach:power}} {of} {{high}}'s",
        advises=advises,
        facts={
            "gain": Log2(trend.gain),
            "low": one.names[low],
            "high": one.names[high],
            "reach": float(one.logs[low] - one.logs[high]) / DECADE,
            "each": each,
            "clip": exp2(float(one.logs[high]) + 0.5 * log2(len(one.names))),
        },
        evidence={
            "gain": exp2(trend.gain),
            "gain_low": exp2(trend.low),
            "gain_high": exp2(trend.high),
            "decades": trend.decades,
        },
        edit=scale if sign > 0 else None,
    )


def _of_gap(rule: Rule, gain: float, usual: float, below: Site, above: Site) -> Finding:
    factor = exp2(usual - gain)
    possible = above.kind == "weights" and 0 < factor < inf
    return Finding(
        kind="exploding" if gain > usual else "vanishing",
        severity=rule.severity((gain - usual) / DECADE),
        rule=rule.name,
        cause="weight-scale",
        sites=(above, Site("parameter", below.name)),
        says="between {above} and {below} below it the gradient is multiplied by {gain:share}, "
        "and by {usual_gain:share} between other layers",
        advises="look at {above}, which it passes through there: multiplying that by "
        "{factor:share} would bring it in line with the others.",
        facts={
            "above": above.name,
            "below": below.name,
            "factor": Log2(usual - gain),
            "gain": Log2(gain),
            "usual_gain": Log2(usual),
        },
        evidence={"gain": exp2(gain), "usual_gain": exp2(usual)},
        edit=Scale((above.name,), factor) if possible else None,
    )


NONFINITE = Rule(
    name="gradients-nonfinite",
    kind="nonfinite",
    warning=1,
    critical=1,
    measured="NaN or infinite elements of gradients",
    reason="One is enough: the next step spreads it to every parameter.",
    source="all tools of this kind",
    find=_nonfinite,
)
ZERO = Rule(
    name="gradients-zero",
    kind="vanishing",
    warning=1,
    critical=1,
    measured="gradients that are exactly 0",
    reason="Nothing is learnt there.",
    source="all tools of this kind",
    find=_zero,
)
DRIFTS = tuple(
    replace(BY_SIGN[sign], name=f"gradients-{BY_SIGN[sign].kind}", find=partial(_drift, sign))
    for sign in (+1, -1)
)
GAP = replace(BY_SIGN[-1], name="gradients-gap", find=_gaps)
RULES = (NONFINITE, ZERO, *DRIFTS, GAP)
