"""Findings of a monitor that only sizes suggest, beside what a second look at the model tells.

Sizes of modules may have several causes. A diagnosis of the same step follows its graph: what it
finds is said in their place, and where it finds nothing wrong, a gradient that seems to drift
reaches the first modules by other ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf, isnan

from vegrad.diagnosis.rules import divergence, modules, underflow
from vegrad.diagnosis.rules.culprits import CUTS
from vegrad.diagnosis.rules.graph import FEWEST
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Module, Reading
from vegrad.flow.site import Site

MEASURED = (divergence.INPUTS.name, divergence.TARGETS.name)
STEPS = ("learning-rate-high", "weight-decay")
"""Causes of a drift that the steps before it show, of which one pass knows nothing."""
WEAK = (*MEASURED, modules.DRIFT.name, modules.DEAD.name)
NO_GRADIENT = "no gradient"
"""The question of parameters that get none, or next to none, though others do."""
ZERO = "a gradient of 0"
"""The question of gradients that are all exactly 0."""
AT_LOSS = "the loss"
"""The question of an output that may not be what the loss takes beside its target."""
UNFIT = {"constant-output", "double-softmax", "output-range", "loss-domain", "broadcast"}
UNFIT |= {"wrong-reduction"}
ENDS = {*CUTS, "detached", "masked-row", "collapse"}
GONE = (underflow.NO_GRADIENT.name, underflow.GONE.name)
Second = Mapping[str, tuple[Finding, ...]]


def questions(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the causes that are to be looked at twice before they are said."""
    doubted = (one.cause for one in findings if one.rule in WEAK and one.cause not in STEPS)
    return tuple(dict.fromkeys(doubted))


def can_contradict(reading: Reading) -> bool:
    """Return True if a gradient that shrinks or grows would be found in a reading."""
    if reading.chain is not None:
        return len(reading.chain.layers) > 1
    # Within checkpoints of the reentrant kind no δ is measured.
    maps = [one for one in reading.operations if one.kind in MAPS and one.parameters]
    return sum(not isnan(one.delta_log2) for one in maps) >= FEWEST


def settled(
    findings: Sequence[Finding], second: Second, watched: Sequence[Module]
) -> list[Finding]:
    """Put what second looks have found in the place of what sizes suggest.

    Args:
        findings: of a monitor's rules.
        second: by cause, what a diagnosis found as this was suggested; () if nothing. A cause that
            is missing was not looked at, or could not be.
        watched: the modules of the report, to which layers are translated.
    """
    found, known = list[Finding](), {one.cause for one in findings}
    thrown = not known.isdisjoint(STEPS)  # by which all that one pass tells may be made
    for one in findings:
        if one.rule not in WEAK or one.cause not in second or thrown:
            found.append(one)
            continue
        again = second[one.cause]
        if one.rule in MEASURED:  # of data, whose size is certain; only its meaning may not be
            again = tuple(other for other in again if other.severity == "critical")
        causes = {other.cause for other in again}
        same = one.cause in causes or (causes and causes <= known)  # else it is an effect
        if same or (not again and one.rule != modules.DRIFT.name):
            found.append(one)
        more = [_placed(other, watched) for other in again if other.cause not in known]
        found += [_in_dtype(other, one) for other in more]
    for question, causes in ((NO_GRADIENT, ENDS), (AT_LOSS, UNFIT)):
        certain = [one for one in second.get(question, ()) if one.cause in causes]
        found += [_placed(one, watched) for one in certain if one.cause not in known]
    reasons = [one for one in second.get(ZERO, ()) if one.severity == "critical"]
    if reasons and any(one.rule in GONE for one in found):
        found = [one for one in found if one.rule not in GONE]
        found += [_placed(one, watched) for one in reasons]
    return list({(one.cause or one.rule, one.sites): one for one in found}.values())


def _in_dtype(finding: Finding, drift: Finding) -> Finding:
    """Add that nothing of the gradient is left in its dtype, where so it was seen."""
    gone = drift.evidence.get("decades") == -inf and drift.cause != "detached"
    if not gone or finding.kind != "vanishing":
        return finding
    return replace(finding, says=f"{finding.says}; what is left of it is too small for its dtype")


def _placed(finding: Finding, watched: Sequence[Module]) -> Finding:
    """Return a finding whose layers are modules of the report."""
    places = {one.name: place for place, one in enumerate(watched)}
    sites = tuple(
        Site("module", site.name, places.get(site.name)) if site.place is not None else site
        for site in finding.sites
    )
    return replace(finding, sites=sites)
