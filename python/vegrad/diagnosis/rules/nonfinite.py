"""Rules on NaN and infinity: in parameters, activations, gradients or the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

import numpy as np

from vegrad.arrays.checks import range_of
from vegrad.diagnosis.rules.culprits import DATA, Culprit, made_back, made_forward, site_of
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import NonFiniteData
from vegrad.flow.edits import Redraw, Scale
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.reading import INPUT, Chain, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp2

# What is said of an operation by its cause: what is wrong with its input, and what to do.
WORDS = {
    "sqrt-at-zero": (
        "its input is exactly 0 there, where a root or a norm has no finite derivative",
        "add a small number before the root ((x + 1e-8).sqrt()), not after it.",
    ),
    "where-branch": (
        "a where() or a mask leaves out what is not finite there, which stops the value and not "
        "the derivative: 0 · inf is NaN",
        "put a harmless value into the input of {operation} where it is left out, before it "
        "runs, and not only into its output afterwards.",
    ),
    "domain-edge": (
        "its input is at or beyond the edge of what it is made for",
        "keep the input of {operation} inside its domain: clamp it, or add a small number.",
    ),
    "loss-domain": (
        "its input is at or beyond the edge of what it is made for",
        "keep the input of {operation} inside its domain, or take the loss that needs no such "
        "function (log_softmax and cross_entropy for a logarithm of probabilities).",
    ),
    "zero-division": (
        "it divides by exactly 0, as a mean over nothing does",
        "add a small number to what {operation} divides by, or leave those elements out before.",
    ),
    "loss-normalizer": (
        "it divides by a count or a sum that is 0",
        "clamp what {operation} divides by: .clamp(min=1) for a count.",
    ),
    "empty-loss": (
        "it is a mean over nothing: nothing in this batch counts",
        "pass over batches in which nothing counts, or take a sum and divide it by the count, "
        "clamped at 1.",
    ),
    "masked-row": (
        "a row of it is masked altogether: the softmax of nothing but -inf is NaN",
        "leave at least one key in every row, or mask with a large negative number (-1e4) instead "
        "of -inf and leave the row out of the loss.",
    ),
    "infeasible-alignment": (
        "there are labels longer than their frames (a label that repeats needs one more between)",
        "leave out or shorten such labels, give more frames (less stride), or pass "
        "zero_infinity=True.",
    ),
    "norm-of-one": (
        "it normalizes over a single element, which has no deviation",
        "normalize over an axis that has more than one element, or leave {operation} out.",
    ),
    "overflow": (
        "what it makes of finite values is beyond the largest number of {dtype}",
        "scale down what comes into {operation}, or bound it (a clamp before an exponential).",
    ),
    "dtype-range": (
        "what it makes of finite values is beyond the largest number of float16, 65504",
        "scale down what comes into {operation}, or use bfloat16 or float32 for it.",
    ),
    "nonfinite-weights": (
        "a buffer or parameter that it uses is not finite",
        "load the model's state again, or reset running statistics.",
    ),
}
COMBINES = {
    *("mul", "rmul", "imul", "add", "radd", "iadd", "sub", "rsub", "isub", "sum", "mean", "cumsum"),
    *("matmul", "bmm", "einsum", "linear", "logsumexp"),
}
INFINITIES = (
    "it combines infinities (0 · inf and inf - inf are NaN)",
    "mask with a large negative number (-1e4) in place of -inf, and leave out what is masked "
    "before {operation}.",
)
REMOVE = "fill in or remove {these} (rows and columns are counted from 0), then "
FILL = REMOVE + "diagnose again."
REFILL = REMOVE + "train again, with new weights if a step has made these NaN."


@dataclass(frozen=True)
class Called:
    """An operation, as it is named in words: "sqrt in encoder"."""

    kind: str
    site: Site

    def __str__(self) -> str:
        name, kind = self.site.name, self.site.kind
        if kind == "parameter" and "." in name:
            name, kind = name.rpartition(".")[0], "module"
        what = "with" if kind == "parameter" else "in"
        return f"{self.kind} {what} {'the loss' if kind == 'loss' else name or kind}"


def _in_pass(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    known = list(_known(reading, rule, earlier))
    found = None if known or reading.chain is None else _in_values(reading, rule, reading.chain)
    if found is None and not known and reading.operations and _is_lost(reading):
        found = _unknown(reading, rule)
    yield from known if found is None else (found,)


def _known(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find what is not finite where it is known who made it."""
    found = _in_parameters(reading, rule) or _in_operations(reading, rule)
    if found is not None:
        more = f"; then the pass raised {reading.raised}" if reading.raised else ""
        yield replace(found, says=found.says + more.replace("{", "{{").replace("}", "}}"))


def _in_parameters(reading: Reading, rule: Rule) -> Finding | None:
    bad = [one for one in reading.parameters.values() if one.nonfinite is not None]
    if not bad:
        return None
    first, chain = bad[0].nonfinite, reading.chain
    assert first is not None
    more = ", the first of {count:d} such values" if first.count > 1 else ""
    more += " in it; {others:d} other parameters have some" if len(bad) > 1 else ""
    names = {one.name for one in bad}
    layers = [] if chain is None else chain.layers
    places = [n for n, layer in enumerate(layers) if names & {layer.weight, layer.bias}]
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="nonfinite-weights",
        sites=(
            *(Site("parameter", one.name) for one in bad),
            *layer_sites(places, None if chain is None else chain.names),
        ),
        says=f"the parameter {{site}}{{index}} is {{value}}{more}",
        advises="draw or load {names} again; if training made it so, lower the learning rate by a "
        "factor of 10 and clip the gradients' global norm at 1.",
        facts={
            "index": list(first.index),
            "value": first.value,
            "others": len(bad) - 1,
            "names": tuple(Site("parameter", one.name) for one in bad),
        },
        evidence={"count": first.count},
        edit=Redraw(tuple(one.name for one in bad)),
    )


def _in_values(reading: Reading, rule: Rule, chain: Chain) -> Finding | None:
    """Find values along a chain of layers that its dtype does not hold."""
    flow, dtype = chain.flow, reading.dtype
    rms, deltas = flow.activation_rms, flow.delta_log2
    _, largest = range_of(dtype)
    forward = np.flatnonzero(~(rms <= largest)).tolist()
    backward = np.flatnonzero(np.isnan(deltas) | (deltas == inf)).tolist()
    if forward:
        says, cause = "the activations exceed {dtype}'s largest number in {sites}", "overflow"
    elif backward:
        says, cause = "the gradient is not finite in {sites}", "overflow"
    elif reading.loss is not None and not isfinite(reading.loss) and not reading.operations:
        says, cause = "the loss is {loss}", "overflow"  # one that is known, of finite values
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
    return Finding(
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


def _in_operations(reading: Reading, rule: Rule) -> Finding | None:
    """Find the operation that made what is not finite in the loss, or in the gradient."""
    if not reading.operations or not _is_lost(reading):
        return None
    chain, ahead = reading.chain, reading.loss is not None and not isfinite(reading.loss)
    culprit = made_forward(reading) if ahead else made_back(reading)
    if culprit is None or culprit.cause in DATA:
        data = _of_data(reading, rule, culprit)
        return data or (None if culprit is None else _at(culprit, reading, rule))
    grown = ahead and chain is not None and not isfinite(float(chain.flow.activation_rms[-1]))
    if grown and chain is not None and culprit.cause == "overflow":
        return _in_values(reading, rule, chain)
    return _at(culprit, reading, rule)


def _is_lost(reading: Reading) -> bool:
    """Return True if the loss is not finite, or a gradient."""
    if reading.loss is not None and not isfinite(reading.loss):
        return True
    lost = any(one.lost for one in reading.parameters.values())
    return lost or any(one.delta_log2 == inf for one in reading.everything)


def _at(culprit: Culprit, reading: Reading, rule: Rule) -> Finding:
    """Say that an operation is to blame."""
    site, one = site_of(reading, culprit.place), culprit.operation
    reason, advises = WORDS.get(culprit.cause, WORDS["domain-edge"])
    if culprit.cause in ("domain-edge", "loss-domain") and one.kind in COMBINES:
        reason, advises = INFINITIES
    if culprit.cause == "overflow" and culprit.back and not one.edge:
        reason = "what it makes of the gradient is beyond the largest number of {dtype}"
    says = "the output of {operation} is not finite, though its inputs are: "
    if culprit.back:
        says = "the loss is finite, but the gradient is not from {operation} on its way down: "
    sites = [site]
    if culprit.back:
        bad = [one.name for one in reading.parameters.values() if one.lost]
        sites += [Site("parameter", name) for name in reversed(bad) if name != site.name]
    below = [reading.everything[n].rms_log2 for n in one.below if n != INPUT]
    large = max((size for size in below if isfinite(size)), default=-inf)
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause=culprit.cause,
        sites=tuple(sites),
        says=says + reason,
        advises=advises,
        facts={"operation": Called(one.kind, site), "dtype": reading.dtype},
        evidence={"input_log10": large / DECADE} if isfinite(large) else {},
    )


def _unknown(reading: Reading, rule: Rule) -> Finding:
    """Say that something is not finite where no operation is known that made it."""
    finite = reading.loss is None or isfinite(reading.loss)
    place = -1 if finite else _first_lost(reading)
    if place >= 0:
        site, one = site_of(reading, place), reading.operations[place]
        return Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="overflow",
            sites=(site,),
            says="the output of {operation} is not finite, though its inputs are",
            advises="scale down what comes into {operation}, and look for a division, a root or a "
            "logarithm at 0 in it.",
            facts={"operation": Called(one.kind, site)},
            evidence={"count": 1.0},
        )
    bad = [Site("parameter", one.name) for one in reading.parameters.values() if one.lost]
    narrow = finite and reading.dtype == "float16"
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="dtype-range" if narrow else "overflow" if finite else "loss-domain",
        sites=tuple(bad) if finite and bad else (Site("loss", "loss"),),
        says="the loss is finite, but the gradient of {sites} is not"
        if finite
        else "what the model returns is finite, but the loss is {loss}",
        advises="scale the loss down, or use a wider dtype than {dtype}."
        if finite
        else "look at {words.loss} (a mean over nothing, a division, a root, a norm or a logarithm "
        "at 0) and at the target.",
        facts={"loss": reading.loss, "dtype": reading.dtype},
        evidence={"count": float(len(bad))},
    )


def _first_lost(reading: Reading) -> int:
    """Return the place of the first operation that makes what is not finite; -1 if only loss is."""
    own = reading.operations[:-1]  # the last is the loss
    return next((n for n, one in enumerate(own) if one.lost), -1)


# Data -------------------------------------------------------------------------------------------


def _of_data(reading: Reading, rule: Rule, culprit: Culprit | None) -> Finding | None:
    """Blame inputs or targets that are not finite, if the network does not leave them out."""
    kind = None if culprit is None else DATA[culprit.cause]
    for problem in reading.data:
        if kind in (None, problem.kind):
            says, advises = "", FILL
            if culprit is not None and culprit.back:
                says = "; it is left out of the loss, but not of the gradient: 0 · NaN is NaN"
                advises = "take out the rows or elements that are known before anything is "
                advises += "computed with {these} (x[known], not where() or nanmean() after it)."
            return _data(problem, rule, says, advises)
    return None


def _in_data(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    if reading.problem is not None and reading.problem.trained:
        its = "the loss of a batch with {these} is not finite"
        if reading.problem.first.count > 1:
            its = "the loss of a batch with any of {these} is not finite"
        yield _data(reading.problem, rule, f"; {its}", REFILL)
    elif reading.problem is not None:
        yield _data(reading.problem, rule, "; nothing was run", FILL)


def _data(problem: NonFiniteData, rule: Rule, more: str, advises: str) -> Finding:
    first = problem.first
    row, column = (*first.index, 0, 0)[:2]
    step = {"step": column} if problem.steps and len(first.index) > 1 else {}
    if step:
        column = (*first.index, 0)[2]
    among = "the only such value in {of} rows"
    if first.count > 1:
        among = "the first of {count:d} such values in {rows:d} of {of} rows"
    too_large = f"too large for {problem.too_large_for}"
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="nonfinite-input" if problem.kind == "data" else "nonfinite-target",
        sites=(Site(problem.kind, problem.name, rows=(row, column)),),
        says=f"{{site}}{{index}} is {{what}}, {among}{more}",
        advises=advises,
        facts={
            "index": list(first.index),
            "what": too_large if problem.too_large_for else first.value,
            "of": problem.of,
            "these": "it" if first.count == 1 else f"these {first.count} values",
        },
        evidence={"row": row, **step, "column": column, "count": first.count, "rows": problem.rows},
    )


PASS = Rule(
    name="nonfinite-pass",
    kind="nonfinite",
    warning=1,
    critical=1,
    measured="NaN or infinite values in the parameters, in what operations make, the loss or "
    "gradients",
    reason="One is enough: the next step spreads it to every parameter.",
    source="all tools; naming the first place: pytorch#86362, #160016",
    find=_in_pass,
)
KNOWN = replace(PASS, find=_known)
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
