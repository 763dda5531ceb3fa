"""From a reading to findings: the rules in order, then which finding explains which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite, isnan, log10

import numpy as np

from vegrad.diagnosis import causes, second
from vegrad.diagnosis.rules import normalization, table
from vegrad.diagnosis.rules.digest import Steps
from vegrad.diagnosis.rules.graph import enters_higher
from vegrad.diagnosis.rules.modules import DRIFT
from vegrad.diagnosis.rules.rule import Rule
from vegrad.diagnosis.rules.steps import of_history
from vegrad.diagnosis.rules.underflow import is_effect
from vegrad.flow.data import KnownLoss
from vegrad.flow.edits import Redraw, Scale, parts, together
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Chain, Reading

DRIFTS = (table.SHRINKS.name, table.GROWS.name)
FINAL = {"constant-output", "symmetry", "weight-decay"}  # which leave nothing to be judged
OF_DATA = {"input-scale", "target-scale"}
USED_UP = {"vanishing", "exploding", "saturated", "dead"}  # no trouble once the task is learnt
ALIKE = 1.0  # decades within which a gain is what weights drawn anew give


def judge(reading: Reading, history: Steps | None = None) -> tuple[Finding, ...]:
    """Return what is wrong, causes first, in the words of the reading's front end.

    Args:
        reading: of a network, or of what was recorded.
        history: of its training, whose findings are taken in.
    """
    if reading.problem is not None:
        findings = _asked(table.DATA, reading)
    elif reading.chain is not None:
        findings = _with_losses(reading, _of_chain)
    elif reading.operations:
        findings = _with_losses(reading, _of_graph)
    elif reading.modules:  # a monitor's report
        findings = _of_modules(reading)
    elif reading.watched is not None and reading.watched.recorded is not None:
        findings = _of_run(reading)
    else:
        findings = _with_ratios(_asked(table.GRADIENTS, reading), reading)
    findings = _with_history(findings, history)
    return tuple(
        replace(_possible(one, reading), vocabulary=reading.vocabulary) for one in findings
    )


def _possible(finding: Finding, reading: Reading) -> Finding:
    """Leave an edit only where it can be done.

    Values that are all 0 are drawn again rather than scaled. Of parameters that the network does
    not have under this name, as they are made of others, the advice speaks but the edit does not.
    """
    edit, known = finding.edit, reading.parameters
    names = (
        [name for part in parts(edit) for name in getattr(part, "parameters", ())] if edit else []
    )
    if edit is None or not known or not names:
        return finding
    if any(name not in known for name in names):
        return replace(finding, edit=None, facts={**finding.facts, "edit": edit})
    if isinstance(edit, Scale) and names and all(known[name].rms_log2 == -inf for name in names):
        return replace(finding, edit=Redraw(edit.parameters), advises="{edit}: all of it is 0.")
    return finding


def _asked(rules: Iterable[Rule], reading: Reading) -> list[Finding]:
    """Ask rules one after another; each sees what earlier ones found."""
    findings: list[Finding] = []
    for rule in rules:
        findings.extend(rule.find(reading, rule, findings))
    return findings


def _with_losses(reading: Reading, rest: Callable[[Reading], list[Finding]]) -> list[Finding]:
    """Find what is wrong at the loss, which is known for certain, then what is besides."""
    certain = _asked(table.LOSSES, reading)
    refused = any(one.refused for one in reading.compared) or reading.undefined is not None
    if any(one.cause in FINAL for one in certain) or (certain and refused):
        return certain
    besides = _normalized(_of_any(reading, rest), reading)
    if learnt(reading) is not None:
        besides = [one for one in besides if one.kind not in USED_UP or one.cause == "detached"]
    if reading.loss is not None and isnan(reading.loss):
        return besides or certain
    return [*certain, *besides] or _asked(table.LEFT, reading)


def _normalized(findings: list[Finding], reading: Reading) -> list[Finding]:
    """Say that normalizations do nothing in the place of the sizes that they would mend."""
    unseen = list(table.UNSEEN.find(reading, table.UNSEEN, findings))
    if not unseen:
        return findings
    return [*unseen, *(one for one in findings if one.cause not in normalization.SIZES)]


def learnt(reading: Reading) -> KnownLoss | None:
    """Return the loss of a network that has learnt its task; None if it has not.

    Units that are sure of themselves, and gradients that come to an end, are what that ends with.
    """
    known = [one for one in reading.losses if one.constant > 0]
    if not known or len(known) < len(reading.losses):
        return None
    worst = max(known, key=lambda one: one.value / one.constant)
    return worst if all(one.learnt for one in known) else None


def _of_any(reading: Reading, rest: Callable[[Reading], list[Finding]]) -> list[Finding]:
    """Find what is off by itself, then what is wrong besides: once that is put right."""
    stops = [one for one in _asked(table.OPERATIONS, reading) if one.cause != "overflow"]
    if stops:  # what was measured besides is only its effect
        return stops
    graph = reading.chain is None
    whole = _asked([table.WHOLE], reading) if graph else []
    if whole:
        return whole
    own = _asked(table.CELLS, reading)
    inputs = [] if own else _asked(table.INPUTS, reading)
    if inputs:
        return _asked([table.ENTRANCE], reading) or inputs  # it knows what to do besides
    own += rest(reading)
    first = list(table.SINGLE.find(reading, table.SINGLE, own))
    if not first:
        more = [] if graph else _asked([table.WHOLE], reading)
        return _drawn_rather(own, more, reading, rest)
    edits = [one.edit for one in first if one.edit is not None]
    what_if = reading.what_if
    again = what_if.reading(together(*edits)) if edits and what_if is not None else None
    return [*first, *([*_asked(table.CELLS, again), *rest(again)] if again is not None else [])]


def _drawn_rather(
    own: list[Finding],
    whole: list[Finding],
    reading: Reading,
    rest: Callable[[Reading], list[Finding]],
) -> list[Finding]:
    """Advise to draw all weights of a chain anew where none is as drawn, and that cures it."""
    if not own or not whole:
        return own or whole
    drift, what_if, drawn = own[0], reading.what_if, whole[0].edit
    if drift.rule not in DRIFTS or drift.edit is None or drawn is None or what_if is None:
        return own
    fresh = what_if.reading(drawn)
    if fresh is None or rest(fresh):
        return own
    return [replace(drift, edit=drawn, advises="{edit}."), *own[1:]]


def _of_graph(reading: Reading) -> list[Finding]:
    return _asked(table.GRAPH, reading)


def _of_chain(reading: Reading) -> list[Finding]:
    chain = reading.chain
    if chain is None:
        return []
    flow = chain.flow
    lost = np.isnan(flow.activation_rms).any() or np.isnan(flow.delta_log2).any()
    # Where there is a NaN, the first rule has said where; the others cannot compare with it.
    findings = _asked(table.CHAIN[:1] if lost else table.CHAIN, reading)
    findings = causes.detached(causes.begun(causes.in_order(findings, reading), chain), chain)
    findings = [one for one in findings if not _is_usual(one, reading, chain)]
    findings, renamed = normalization.named(findings, reading)
    findings = normalization.undone(findings, chain) if not chain.exact else findings
    streams = causes.unique([*_of_streams(reading), *renamed])

    def ends(finding: Finding) -> Sequence[str]:
        return chain.names[finding.layers[0] : finding.layers[0] + 2]

    return causes.with_streams(findings, streams, reading, chain.names, ends)


def _is_usual(finding: Finding, reading: Reading, chain: Chain) -> bool:
    """Return True of what is no fault of this network, though it is beyond a limit for chains.

    A single gain that weights drawn anew give too is the architecture's, which is at fault only if
    little comes to the first layers by all ways together. What a chain loses does not matter if the
    inputs come in by a shorter way too. Batch norms make gradients grow at the start.
    """
    if finding.is_departure:
        gain, expected = finding.evidence["gain"], finding.evidence.get("expected_gain", 0.0)
        alike = gain > 0 and expected > 0 and abs(log10(gain / expected)) < ALIKE
        return alike and not _asked([table.REACH], reading)
    if finding.rule == table.SHRINKS.name:
        return enters_higher(reading, chain, table.SHRINKS.warning)
    normed = any(one.kind == "batch_norm" for one in reading.operations)
    return normed and finding.rule == table.GROWS.name and finding.severity != "critical"


def _of_streams(reading: Reading) -> list[Finding]:
    return causes.unique(_asked(table.STREAMS, reading)) if reading.branches else []


def _of_modules(reading: Reading) -> list[Finding]:
    findings = causes.after_divergence(_asked(table.MODULES, reading))
    if any(one.rule in second.GONE for one in findings):
        findings = [one for one in findings if not is_effect(one)]
    if reading.watched is not None:
        findings = second.settled(findings, reading.watched.second, reading.modules)
    cut = any(f.rule == DRIFT.name and f.evidence["decades"] == -inf for f in findings)
    return sorted(findings, key=lambda f: (_rank(f), cut and f.kind != "dead"))


def _of_run(reading: Reading) -> list[Finding]:
    """Judge the steps of a run, and the gradients along its chain, if it has one."""
    chain = [] if reading.gradients is None else _asked(table.GRADIENTS, reading)
    found = _asked(table.RUNS, reading)
    known = {one.kind for one in found}
    return [*found, *(one for one in chain if one.kind not in known)]


def _rank(finding: Finding) -> int:
    """Put what is certain of the loop before a NaN, and what may be meant after all others."""
    if finding.rule == table.NONFINITE.name and finding.cause and not finding.evidence["step"]:
        return 0  # nothing can have come before it
    if finding.cause in second.UNFIT:
        return 0
    if finding.rule in (rule.name for rule in table.COURSE):
        return 1
    if finding.kind == "nonfinite":
        return 1
    if finding.rule not in (rule.name for rule in table.LOOP):
        return 2
    return 0 if finding.severity == "critical" else 3


def _with_ratios(findings: Sequence[Finding], reading: Reading) -> list[Finding]:
    """Add log10 ‖gradient‖/‖parameter‖ of the chain's ends to the evidence, if known."""
    recorded = reading.gradients
    if recorded is None or not recorded.ratios:
        return list(findings)
    ends = {
        "first_ratio_log10": recorded.ratios[recorded.chain[0]],
        "last_ratio_log10": recorded.ratios[recorded.chain[-1]],
    }
    more = {name: value for name, value in ends.items() if isfinite(value)}
    return [replace(one, evidence={**one.evidence, **more}) for one in findings]


def _with_history(findings: list[Finding], history: Steps | None) -> list[Finding]:
    """Take in a history: steps that are too long break a network, and broken gradients stall it."""
    if history is None:
        return findings
    seen = list(of_history(history))
    long = [place for place, finding in enumerate(seen) if finding.kind == "overshooting"]
    count = long[-1] + 1 if long else 0
    known = {finding.kind for finding in findings}
    if any(finding.cause == "weight-decay" for finding in findings):
        known |= {"stalled"}  # as it must
    before, after = (
        [one for one in part if one.kind not in known] for part in (seen[:count], seen[count:])
    )
    first = {one.finding.cause for one in history.noted if one.step == 0} & OF_DATA
    data = [one for one in findings if one.cause in first]  # it made the steps too long
    return [*data, *before, *(one for one in findings if one not in data), *after]
