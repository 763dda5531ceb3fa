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
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import exp2

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
    if reading.loss_kind and not backward:
        return found
    return replace(
        found,
        cause="loss-domain",
        says="the output is finite, but the loss is not",
        advises="look at {words.loss} (a division, a root, a norm or a logarithm at 0) and at the "
        "target.",
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
