"""Which finding explains which: of all that is wrong, what is said, and in which order.

One thing that is wrong shows in many places. These functions drop what is only the effect of
something else that was found, and put causes before effects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite

import numpy as np

from vegrad.diagnosis.rules import collapse, divergence, loop, modules, underflow
from vegrad.diagnosis.rules.residual import faint
from vegrad.diagnosis.rules.table import CHAIN
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.site import Site

Findings = list[Finding]
GROWN = ("", "overflow", "dtype-range", "nonfinite-weights", "learning-rate-high")
"""Causes of a NaN that are the effects of a divergence where the steps before it show one."""
LOOP = {one.name for one in loop.RULES}


# A training --------------------------------------------------------------------------------------


def after_divergence(findings: Sequence[Finding]) -> Findings:
    """Drop the effects of a divergence.

    They are the module where a NaN that grew was seen first, and in a network that was thrown the
    sizes of its gradients.
    """
    rules = {one.rule: one.cause for one in findings}
    dropped = set[str]()
    lost = next((one for one in findings if one.rule == modules.NONFINITE.name), None)
    begins = lost is not None and bool(lost.cause) and not lost.evidence["step"]
    if rules.get(modules.NONFINITE.name, "") in GROWN and not begins:
        if rules.keys() & {one.name for one in (*divergence.FIRST, divergence.DIVERGED)}:
            dropped |= {modules.NONFINITE.name}
    else:  # an operation or the optimizer's ε is to blame, or the data
        dropped |= {divergence.DIVERGED.name}
    if begins:  # all sizes are those of a network that has made a NaN
        dropped |= {modules.DRIFT.name, modules.DEAD.name}
    thrown = (divergence.DIVERGED, divergence.OVERSHOOTS, underflow.THROWN, *collapse.RULES)
    decays = any(one.cause == "weight-decay" and one.rule in LOOP for one in findings)
    if decays or rules.keys() & {one.name for one in thrown}:
        dropped |= {modules.DRIFT.name}
    return decayed([one for one in findings if one.rule not in dropped])


def decayed(findings: Sequence[Finding]) -> Findings:
    """Drop that rows have become alike where decay has driven the weights to 0: they must be."""
    if not any(one.cause == "weight-decay" and one.rule in LOOP for one in findings):
        return list(findings)
    effects = {one.name for one in collapse.RULES}
    return [one for one in findings if one.rule not in effects]


def thrown(findings: Sequence[Finding]) -> Findings:
    """Drop that steps are too short if they were too long before: beside such weights they are."""
    if not any(one.cause == "learning-rate-high" for one in findings):
        return list(findings)
    return [one for one in findings if one.cause != "learning-rate-low"]


# A chain ----------------------------------------------------------------------------------------


def in_order(findings: Sequence[Finding], reading: Reading) -> Findings:
    """Put causes before effects: the order of the table, with two exceptions."""
    chain = reading.chain
    assert chain is not None
    order = list(dict.fromkeys(rule.kind for rule in CHAIN))
    blames = {f.blame for f in findings if f.kind == "vanishing"}
    saturated = {layer for f in findings if f.kind == "saturated" for layer in f.layers}
    if blames == {"weights"} and not saturated & chain.gains.broken.keys():
        order.append(order.pop(order.index("saturated")))  # it stops no gradient
    if np.isfinite(chain.flow.delta_log2).all() and isfinite(reading.loss or 0.0):
        order.append(order.pop(order.index("nonfinite")))  # overflow is the explosion's effect
    return sorted(findings, key=lambda f: (order.index(f.kind), f.severity))


def begun(findings: Sequence[Finding], chain: Chain) -> Findings:
    """Drop that weights which begin at 0 let no gradient through: the first step changes it."""
    begins = {(place,) for place in chain.begun}
    return [f for f in findings if f.layers[:1] not in begins or f.evidence.get("gain") != 0]


def detached(findings: Sequence[Finding], chain: Chain) -> Findings:
    """Say of a layer that no gradient comes back to that it is so, not that it shrinks one."""
    if not chain.cut or chain.cut == len(chain.layers):
        return list(findings)
    below, above = layer_sites([chain.cut - 1, chain.cut], chain.names)

    def told(finding: Finding) -> Finding:
        if finding.layers != (below.place,) or finding.evidence.get("gain") != 0:
            return finding
        return replace(
            finding,
            cause="detached",
            says="no gradient comes back to {below}: there is no way from the loss to it",
            advises="look between {below} and {above} for {words.cuts}, "
            "or a function without a derivative (argmax, round, a comparison).",
            facts={"below": below, "above": above},
            edit=None,
        )

    return [told(finding) for finding in findings]


# Streams and their branches ---------------------------------------------------------------------


def with_streams(
    findings: Sequence[Finding],
    streams: Sequence[Finding],
    reading: Reading,
    names: Sequence[str],
    ends: Callable[[Finding], Collection[str]],
) -> Findings:
    """Add what is wrong with branches, and drop what only that makes of single layers.

    `names` are the modules in their order, and `ends` gives the two modules between which
    gradients were compared.
    """
    inside = {_module(name) for name in faint(reading.branches)}
    own = {_module(site.name) for one in streams for site in _branch(one)}
    places = {module: place for place, module in enumerate(names)}
    drowned = [_place(one, places) for one in streams if one.kind == "exploding"]
    lowest = min(drowned, default=inf)  # above it the stream is large, and its gradient small

    def explained(finding: Finding) -> bool:
        if not finding.is_departure:
            return finding.rule == modules.DRIFT.name and bool(drowned)
        two = ends(finding)
        above = max((places.get(end, -1) for end in two), default=-1)
        if not own.isdisjoint(two) or len(inside.intersection(two)) == 1:
            return True
        return finding.kind == "vanishing" and above >= lowest

    kept = [finding for finding in findings if not explained(finding)]
    if not streams:
        return kept
    first = [finding for finding in kept if finding.kind == "nonfinite"]
    placed = [_at(one, places) for one in streams]
    return [*first, *placed, *(finding for finding in kept if finding not in first)]


def unique(findings: Sequence[Finding]) -> Findings:
    """Keep the first finding on each parameter."""
    by_parameter: dict[str, Finding] = {}
    for finding in findings:
        by_parameter.setdefault(finding.sites[0].name, finding)
    return list(by_parameter.values())


def _branch(finding: Finding) -> list[Site]:
    return [site for site in finding.sites[1:] if site.kind == "parameter"]


def _at(finding: Finding, places: Mapping[str, int]) -> Finding:
    """Add the module of the parameter, if it is one of those in order."""
    module = _module(finding.sites[0].name)
    if module not in places:
        return finding
    sites = [site for site in finding.sites if site.kind == "parameter"]
    return replace(finding, sites=(*sites, Site("module", module, places[module])))


def _place(finding: Finding, places: Mapping[str, int]) -> float:
    """Return where its parameter's module stands.

    Else that of the last one below it in the branch, or of the first in it.
    """
    branch, parameter = [site.name for site in _branch(finding)], finding.sites[0].name
    known = {name: places[_module(name)] for name in branch if _module(name) in places}
    if parameter in known:
        return known[parameter]
    below = branch[: branch.index(parameter)]
    below_it = [known[name] for name in below if name in known]
    return max(below_it) if below_it else min(known.values(), default=inf)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


# Modules and recorded gradients -----------------------------------------------------------------


def unused_steps(reading: Reading) -> list[str]:
    """Return recurrent weights without a gradient: only a first step's output is used."""
    names = [
        next(gate.parameter for gate in cell.gates if gate.part == "hh") for cell in reading.cells
    ]
    parameters = reading.parameters
    return [n for n in names if n in parameters and parameters[n].gradient_log2 == -inf]


def beginnings(reading: Reading) -> list[str]:
    """Return matrices that are exactly 0 and get a gradient, as many branches and heads begin."""
    maps = reading.maps | {name for branch in reading.branches for name in branch.trail}
    return [
        name
        for name, one in reading.parameters.items()
        if one.is_matrix and one.gradient_log2 > -inf and name in maps and one.rms_log2 == -inf
    ]
