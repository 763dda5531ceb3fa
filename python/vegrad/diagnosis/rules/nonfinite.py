"""Rules on NaN and infinity: in parameters, activations, gradients or the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf, isfinite

import numpy as np

from vegrad.arrays.checks import range_of
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Redraw, Scale
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.reading import INPUT, Chain, Operation, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp2

EDGES = {
    *("sqrt", "rsqrt", "norm", "vector_norm", "cdist", "std", "var", "exp", "pow"),
    *("log", "log2", "log10", "log1p", "div", "truediv", "reciprocal"),
    *("acos", "arccos", "asin", "arcsin", "atan2"),
}  # operations that are not finite everywhere
NO_DERIVATIVE = (
    "what stands between {below} and {above} has no finite derivative there: a square root, a norm "
    "or a logarithm at 0, or a where() with an unused infinite branch."
)


def _in_pass(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    chain = reading.chain
    if chain is None:
        return
    found = _in_parameters(reading, rule, chain) or _in_values(reading, rule, chain)
    if found is not None:
        yield found


def _in_parameters(reading: Reading, rule: Rule, chain: Chain) -> Finding | None:
    for name, parameter in reading.parameters.items():
        first = parameter.nonfinite
        if first is None:
            continue
        places = (n for n, layer in enumerate(chain.layers) if name in (layer.weight, layer.bias))
        place = next(places, None)
        more = ", the first of {count:d} such values" if first.count > 1 else ""
        return Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="nonfinite-weights",
            sites=(Site("parameter", name), *layer_sites([] if place is None else [place])),
            says=f"the parameter {{site}}{{index}} is {{value}}{more}",
            advises="draw or load {site} again; if training made it so, lower the learning rate "
            "by a factor of 10 and clip the gradients' global norm at 1.",
            facts={"index": list(first.index), "value": first.value},
            evidence={"count": first.count},
            edit=Redraw((name,)),
        )
    return None


def _in_values(reading: Reading, rule: Rule, chain: Chain) -> Finding | None:
    flow, dtype = chain.flow, reading.dtype
    rms, deltas = flow.activation_rms, flow.delta_log2
    _, largest = range_of(dtype)
    forward = np.flatnonzero(~(rms <= largest)).tolist()
    backward = np.flatnonzero(np.isnan(deltas) | (deltas == inf)).tolist()
    if forward:
        says, cause = "the activations exceed {dtype}'s largest number in {sites}", "overflow"
    elif backward:
        says, cause = "the gradient is not finite in {sites}", "overflow"
    elif reading.loss is not None and not isfinite(reading.loss):
        says, cause = "the loss is {loss}", "overflow"
    else:
        return None
    sizes = np.log2(rms[np.isfinite(rms) & (rms > 0)])
    growth = float(sizes[-1] - sizes[0]) / (sizes.size - 1) if sizes.size > 1 else 0.0
    places = forward or backward or [len(rms) - 1]
    advises, edit = "scale the data and targets to a size of about 1.", None
    if growth > 0:
        edit = Scale(tuple(layer.weight for layer in chain.layers), exp2(-growth))
        advises = "multiply every weight by {factor:.3g}: the activations grow "
        advises += "{activation_growth:times} a layer."
    found = Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause=cause,
        sites=layer_sites(places, chain.names),
        says=says,
        advises=advises,
        facts={"dtype": dtype, "loss": reading.loss, "factor": exp2(-growth)},
        evidence={"count": float(len(places)), "activation_growth": exp2(growth)},
        edit=edit,
    )
    return found if chain.exact else _made_between(found, reading, chain, backward)


def _made_between(
    found: Finding, reading: Reading, chain: Chain, backward: Sequence[int]
) -> Finding:
    """Blame what is no layer where every layer's output is finite: an operation, or the loss."""
    if not np.isfinite(chain.flow.activation_rms).all():
        return found
    if backward and backward[-1] + 1 < len(chain.layers):
        below, above = layer_sites([backward[-1], backward[-1] + 1], chain.names)
        facts = {**found.facts, "below": below, "above": above}
        return replace(found, advises=NO_DERIVATIVE, cause="domain-edge", facts=facts, edit=None)
    if reading.loss_kind and not backward and reading.loss == inf:
        return found
    return replace(
        found,
        cause="loss-domain",
        sites=(Site("loss", "loss"),),
        says="the output is finite, but the loss is not",
        advises="look at {words.loss} (a mean over nothing, a division, a root, a norm or a "
        "logarithm at 0) and at the target.",
        edit=None,
    )


def _in_data(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    problem = reading.problem
    if problem is None:
        return
    first = problem.first
    row, column = (*first.index, 0, 0)[:2]
    among = "the only such value in {of} rows"
    if first.count > 1:
        among = "the first of {count:d} such values in {rows:d} of {of} rows"
    too_large = f"too large for {problem.too_large_for}"
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="nonfinite-input" if problem.kind == "data" else "nonfinite-target",
        sites=(Site(problem.kind, problem.name, rows=(row, column)),),
        says=f"{{site}}{{index}} is {{what}}, {among}; nothing was run",
        advises="fill in or remove {these} (rows and columns are counted from 0), then diagnose "
        "again.",
        facts={
            "index": list(first.index),
            "what": too_large if problem.too_large_for else first.value,
            "of": problem.of,
            "these": "it" if first.count == 1 else f"these {first.count} values",
        },
        evidence={"row": row, "column": column, "count": first.count, "rows": problem.rows},
    )


# In the graph of a pass -------------------------------------------------------------------------


def _in_graph(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    found = _in_any_parameters(reading, rule)
    if found is None and reading.loss is not None and not isfinite(reading.loss):
        found = _in_operations(reading, rule) or _in_loss(reading, rule)
    found = found or _in_gradients(reading, rule)
    if found is not None:
        yield found


def _in_any_parameters(reading: Reading, rule: Rule) -> Finding | None:
    bad = [one for one in reading.parameters.values() if one.nonfinite is not None]
    if not bad:
        return None
    first = bad[0].nonfinite
    assert first is not None
    more = ", the first of {count:d} such values" if first.count > 1 else ""
    more += " in it; {others:d} other parameters have some" if len(bad) > 1 else ""
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="nonfinite-weights",
        sites=tuple(Site("parameter", one.name) for one in bad),
        says=f"the parameter {{site}}{{index}} is {{value}}{more}",
        advises="draw or load {sites} again; if training made it so, lower the learning rate by a "
        "factor of 10 and clip the gradients' global norm at 1.",
        facts={"index": list(first.index), "value": first.value, "others": len(bad) - 1},
        evidence={"count": first.count},
        edit=Redraw(tuple(one.name for one in bad)),
    )


def _in_operations(reading: Reading, rule: Rule) -> Finding | None:
    """Find the first operation whose output is not finite, and whose NaN comes to the loss.

    Masks of infinities end in a softmax.
    """
    operations = reading.operations
    reach = {len(operations) - 1}
    for place in range(len(operations) - 1, -1, -1):
        if place in reach:
            reach.update(n for n in operations[place].below if n != INPUT and operations[n].lost)
    for one in (operations[place] for place in sorted(reach)[:-1]):
        site = _site(one)
        below = [reading.operations[n].rms_log2 for n in one.below if n != INPUT]
        large = max((size for size in below if isfinite(size)), default=-inf)
        _, largest = range_of(reading.dtype)
        facts = {"operation": one.kind, "largest": largest}
        overflow = one.rms_log2 == inf and one.kind not in EDGES
        advises = "scale down what comes into {site}, or use a wider dtype."
        if not overflow:
            advises = "look at the input of {operation} in {site}: a division, a root, a logarithm "
            advises += "or an exponential of what has no finite value there."
        return Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="overflow" if overflow else "domain-edge",
            sites=(site,),
            says="the output of {operation} in {site} is not finite, though its inputs are",
            advises=advises,
            facts=facts,
            evidence={"input_log10": large / DECADE} if isfinite(large) else {},
        )
    return None


def _in_loss(reading: Reading, rule: Rule) -> Finding | None:
    if reading.loss is None or isfinite(reading.loss):
        return None
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="loss-domain",
        sites=(Site("loss", "loss"),),
        says="what the model returns is finite, but the loss is {loss}",
        advises="look at {words.loss} (a mean over nothing, a division, a root, a norm or a "
        "logarithm at 0) and at the target.",
        facts={"loss": reading.loss},
    )


def _in_gradients(reading: Reading, rule: Rule) -> Finding | None:
    """Find where the way back stops being finite: the operation that is nearest the loss."""
    bad = [one for one in reading.parameters.values() if one.lost]
    if not bad:
        return None
    operations = reading.operations
    lost = [place for place, one in enumerate(operations) if one.delta_log2 == inf]
    above = next((one for one in operations if lost and lost[-1] in one.below), None)
    sites = [Site("parameter", one.name) for one in reversed(bad)]
    at = sites[0]
    if above is not None:
        at = _site(above)
        sites.insert(0, at)
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="domain-edge",
        sites=tuple(sites),
        says="the loss is finite, but the gradient is not from {operation} on its way down",
        advises="look at {operation}: the derivative of a square root, a norm or a logarithm at 0, "
        "a where() with an unused infinite branch, or a product that is too large for {dtype}.",
        facts={
            "operation": at
            if above is None or at.kind == "parameter"
            else f"{above.kind} in {at.name}",
            "dtype": reading.dtype,
        },
        evidence={"count": float(len(bad))},
    )


def _site(one: Operation) -> Site:
    if one.parameters:
        return Site("parameter", one.parameters[0])
    return Site("module", one.name) if one.name else Site("model", "the model")


GRAPH = Rule(
    name="graph-nonfinite",
    kind="nonfinite",
    warning=1,
    critical=1,
    measured="NaN or infinite values in the parameters, in what operations make, the loss or "
    "gradients",
    reason="One is enough: the next step spreads it to every parameter.",
    source="all tools; naming the first place: pytorch#86362, #160016",
    find=_in_graph,
)
NONFINITE_DATA = Rule(
    name="nonfinite-data",
    kind="nonfinite",
    warning=1,
    critical=1,
    measured="NaN or infinite values in the inputs or the target",
    reason="One is enough: every gradient would be NaN.",
    source="all tools of this kind",
    find=_in_data,
)
RULES = (
    Rule(
        name="nonfinite-pass",
        kind="nonfinite",
        warning=1,
        critical=1,
        measured="NaN or infinite values in the parameters, activations, gradients or the loss",
        reason="One is enough: the next step spreads it to every parameter.",
        source="all tools; naming the first place: pytorch#86362, #160016",
        find=_in_pass,
    ),
)
