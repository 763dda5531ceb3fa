"""Where the weights of a layer are not to blame: a normalization or what stands beside it is.

A gain that departs from the others is laid to the weights of a layer or to what its activation's
factor contains. If a normalization's weights (or any other parameter that is no layer's) are as
far from their kin as the gain is from the others, they are named themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, log10

from vegrad.diagnosis.rules.residual import apart
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Scale
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp10

EXPLAINS = 0.5  # of the decades by which a gain is off, at least, what is to blame is off

SIZES = {"input-scale", "activation-derivative", "weight-scale-all"}
"""Causes that a normalization by the batch would undo."""

# Where to look: parameters, and the sign with which their size changes a gain.
Where = Callable[[int, Chain, Reading], tuple[list[str], float]]


def named(findings: Sequence[Finding], reading: Reading) -> tuple[list[Finding], list[Finding]]:
    """Part findings about layers into those that stay and those that name another parameter."""
    chain = reading.chain
    if chain is None:
        return list(findings), []
    renamed: dict[str, Finding] = {}
    left = list(findings)
    for where in (_between, _below, _inside):  # what stands between two layers explains the most
        kept = []
        for finding in left:
            one = _renamed(finding, chain, reading, where)
            if one is None:
                kept.append(finding)
            else:
                renamed.setdefault(one.sites[0].name, one)
        left = kept
    if chain.drawn:
        left = [_beside_the_weights(finding, chain, reading) for finding in left]
    return left, list(renamed.values())


def _between(place: int, chain: Chain, reading: Reading) -> tuple[list[str], float]:
    """Look at what gradients pass on their way: its size makes them larger."""
    return _others(place, chain, reading), 1.0


def _below(place: int, chain: Chain, reading: Reading) -> tuple[list[str], float]:
    """Look at what makes activations, which a normalization above divides by their size."""
    return _others(place - 1, chain, reading) if place else [], -1.0


def _inside(place: int, chain: Chain, reading: Reading) -> tuple[list[str], float]:
    """Look at branches that begin between two layers: small ones let little reach the upper."""
    here, above = (layer.weight for layer in chain.layers[place : place + 2])
    begun = [one for one in reading.branches if above in one.trail and here not in one.trail]
    matrices = {layer.weight for layer in chain.layers}
    return [name for one in begun for name in one.trail if name not in matrices], -1.0


def _renamed(finding: Finding, chain: Chain, reading: Reading, where: Where) -> Finding | None:
    """Name the parameter that is as far from its kin as the gain is from others, if any is."""
    e = finding.evidence
    if finding.blame != "activation" or not e.get("gain") or not e.get("usual_gain"):
        return None
    off = log10(e["gain"] / e["usual_gain"])
    place = finding.layers[0]
    some, sign = where(place, chain, reading)
    away = {name: apart(name, reading.parameters) for name in some}
    worst = max(away, key=lambda name: sign * away[name] / off, default="") if off else ""
    if not worst or sign * away[worst] / off < EXPLAINS:
        return None
    factor = 10.0 ** -away[worst]
    whole = next((one.trail for one in reading.branches if worst in one.trail), ())
    ends = (layer.weight for layer in chain.layers[place : place + 2])
    around = (*whole, next(ends), worst, *ends)
    return replace(
        finding,
        cause="normalization-weight" if _is_scale(worst, reading) else "weight-scale",
        sites=(
            Site("parameter", worst),
            *(Site("parameter", name) for name in around),
            Site("layer", chain.names[place], place),
        ),
        facts={**finding.facts, "site": finding.sites[0], "apart": exp10(away[worst])},
        advises="{edit}: it is {apart:times} as large as others of its kind.",
        evidence={**e, "factor": factor},
        blame="weights",
        edit=Scale((worst,), factor),
    )


def _is_scale(name: str, reading: Reading) -> bool:
    return name.endswith("weight") and not reading.parameters[name].is_matrix


def _beside_the_weights(finding: Finding, chain: Chain, reading: Reading) -> Finding:
    """Say what to look at where a layer passes on what it passes on with new weights too."""
    e = finding.evidence
    if finding.blame != "activation" or not {"gain", "expected_gain"} <= e.keys() or not e["gain"]:
        return finding
    if not 0.5 < e["expected_gain"] / e["gain"] < 2.0:
        return finding
    place = finding.layers[0]
    here, above = chain.names[place : place + 2]
    others = _others(place, chain, reading)
    first = f", first at {', '.join(others[:3])}" if others else ""
    facts: Mapping[str, object] = {
        "here": Site("layer", here, place),
        "above": Site("layer", above, place + 1),
        "first": first,
    }
    return replace(
        finding,
        advises="new weights would not change it: look at what stands between {here} and "
        "{above}{first}.",
        facts={**finding.facts, **facts},
        edit=None,
    )


def _others(place: int, chain: Chain, reading: Reading) -> list[str]:
    """Return what is no layer's of the parameters from a layer's weights to the next one's."""
    known = list(reading.parameters)
    ends = (layer.weight for layer in chain.layers[place : place + 2])
    first, last = (known.index(name) if name in known else 0 for name in ends)
    own = {name for layer in chain.layers for name in (layer.weight, layer.bias)}
    return [name for name in known[first:last] if name not in own]


def undone(findings: Sequence[Finding], chain: Chain) -> list[Finding]:
    """Drop what a normalization makes of weights that are off: it undoes their size.

    Then the gradient shrinks by the weights as it grows by the normalization, or the other way.
    """
    own = {
        f.layers: f.kind
        for f in findings
        if f.is_departure
        and f.blame == "weights"
        and f.layers
        and chain.layers[f.layers[0]].norm is not None
    }
    return [
        f
        for f in findings
        if not f.is_departure or f.blame == "weights" or own.get(f.layers, f.kind) == f.kind
    ]


# Running statistics that have seen no batch ------------------------------------------------------


def _unseen(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find sizes that batch normalizations leave as they are, since they have seen no batch.

    In evaluation mode the running statistics stand in for the batch's own. As long as they are as
    they begin, with a variance of 1, nothing is normalized.
    """
    blamed = [one for one in earlier if one.cause in SIZES]
    own = [one for one in reading.parameters.values() if one.role == "variance"]
    known = [one for one in own if isfinite(one.batch_log2)]
    if not blamed or not known or any(one.rms_log2 != 0.0 for one in own):
        return
    worst = max(known, key=lambda one: abs(one.batch_log2))
    if not abs(worst.batch_log2) / DECADE >= rule.warning:
        return
    yield Finding(
        kind=blamed[0].kind,
        severity=blamed[0].severity,
        rule=rule.name,
        cause="running-statistics",
        sites=(Site("parameter", worst.name),),
        says="the model is in evaluation mode, and the running statistics of its "
        "{count:d} batch normalization{s} have seen no batch: {site} is 1, as it begins, and the "
        "batch's own variance is {variance:.3g}, so that they normalize nothing",
        advises="{words.trains}; evaluation mode is for predictions alone.",
        facts={"s": "s" * (len(own) > 1), "count": len(own)},
        evidence={"variance": exp10(worst.batch_log2 / DECADE), "statistics": float(len(own))},
    )


UNSEEN = Rule(
    name="unseen-batches",
    kind="vanishing",
    warning=1.0,
    critical=1.0,
    measured="decades between the batch's variance and a running variance that is still 1, where "
    "inputs, all weights or all derivatives seem to be of the wrong size",
    reason="A normalization in evaluation mode that has seen no batch multiplies by 1.",
    source="Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2",
    find=_unseen,
)
