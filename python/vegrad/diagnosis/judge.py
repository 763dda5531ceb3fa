"""From a reading to findings: the rules in order, then which finding explains which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite, isnan, log10, nan

import numpy as np

from vegrad.diagnosis import causes, second
from vegrad.diagnosis.rules import normalization, table
from vegrad.diagnosis.rules.digest import Steps
from vegrad.diagnosis.rules.graph import enters_higher
from vegrad.diagnosis.rules.memory import own_reach
from vegrad.diagnosis.rules.modules import DRIFT
from vegrad.diagnosis.rules.recurrent import reach
from vegrad.diagnosis.rules.rule import Rule
from vegrad.diagnosis.rules.seen import rows_alike, run_looked_at
from vegrad.diagnosis.rules.steps import of_history
from vegrad.diagnosis.rules.underflow import is_effect
from vegrad.flow.cell import Cell
from vegrad.flow.data import KnownLoss
from vegrad.flow.edits import Redraw, Scale, parts, together
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.time_flow import TimeFlow
from vegrad.flow.trend import Trend
from vegrad.flow.wording import DECADE, listed, power, times
from vegrad.reports.values import count_of

DRIFTS = (table.SHRINKS.name, table.GROWS.name)
FINAL = {"constant-output", "symmetry"}  # which leave no gradient that could be judged
USED_UP = {"vanishing", "exploding", "saturated", "dead"}  # no trouble once the task is learnt
LEARNT = 0.1  # times the loss of the best constant output
NEAR = 1.0  # decades of a healthy chain, from which on it is said where health ends
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
    besides = _of_any(reading, rest)
    if learnt(reading) is not None:
        besides = [one for one in besides if one.kind not in USED_UP or one.cause == "detached"]
    if reading.loss is not None and isnan(reading.loss):
        return besides or certain
    return [*certain, *besides] or _asked(table.LEFT, reading)


def learnt(reading: Reading) -> KnownLoss | None:
    """Return the loss of a network that has learnt its task; None if it has not.

    Units that are sure of themselves, and gradients that come to an end, are what that ends with.
    """
    known = [one for one in reading.losses if one.constant > 0]
    if not known or len(known) < len(reading.losses):
        return None
    worst = max(known, key=lambda one: one.value / one.constant)
    return worst if all(one.value <= LEARNT * one.constant for one in known) else None


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
    if any(one.rule == table.NO_GRADIENT.name for one in findings):
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
    before, after = (
        [one for one in part if one.kind not in known] for part in (seen[:count], seen[count:])
    )
    return before + findings + after


# What was looked at -----------------------------------------------------------------------------


def trend_of(reading: Reading) -> Trend | None:
    """Return the trend of the chain's gains, or of the recorded weights' gradients."""
    if reading.chain is not None:
        return reading.chain.gains.trend
    recorded = reading.gradients
    if recorded is None or reading.modules:
        return None
    if not all(size < inf for size in recorded.norms_log2.values()):
        return None
    weights = recorded.along_weights
    return None if weights is None else weights.gains.trend


def looked_at(reading: Reading, trend: Trend | None) -> str:
    """Say what was looked at and how it is, for a network without findings."""
    done, said = learnt(reading), list(rows_alike(reading))
    if done is not None:
        beside = f"beside {done.constant:.3g} of guessing"
        said.append(f"it has learnt: its loss is {done.value:.3g}, {beside}")
    return "; ".join([*said, _seen(reading, trend)])


def _seen(reading: Reading, trend: Trend | None) -> str:
    if reading.chain is not None:
        return _chain_looked_at(reading.chain, trend)
    if reading.modules:
        return _modules_looked_at(reading)
    if reading.watched is not None and reading.watched.recorded is not None:
        return run_looked_at(reading.watched.recorded)
    if reading.cells:
        return _cells_looked_at(reading.cells, reading.memory)
    if reading.time_flow is not None:
        return _time_looked_at(reading.time_flow)
    recorded = reading.gradients
    if recorded is None or trend is None:
        return "there is no chain of gradients to compare"
    sizes = recorded.sizes(recorded.chain)
    reach = power(float(sizes[0] - sizes[-1]) / DECADE)
    return (
        f"the weights' gradients change {times(trend.gain)} a layer, from last to first to {reach} "
        "of their size"
    )


def _chain_looked_at(chain: Chain, trend: Trend | None) -> str:
    if chain.begun:
        weights = [chain.layers[place].weight for place in chain.begun]
        return begun_words(weights)
    if trend is None:
        sizes = chain.flow.delta_log2
        if len(sizes) == 1 and isfinite(sizes[0]):
            return "there is one layer, to which a gradient comes; there is none to compare it with"
        return "the gradient is exactly 0"
    interval = f" (95 % interval {times(trend.low)} to {times(trend.high)})"
    size = chain.flow.chain_log10
    rule = table.GROWS if size > 0 else table.SHRINKS
    return (
        f"the gradient passes each layer at {times(trend.gain)}{interval * (trend.count > 1)} and "
        f"reaches the first layer at {power(size)} {'times' if size >= 0 else 'of'} the last"
        + (f" ({rule.kind} begins at {10.0**rule.warning:g})" if abs(size) >= NEAR else "")
    )


def _cells_looked_at(cells: Sequence[Cell], memory: int) -> str:
    usual = min(reach(cell.sizes, cell.flat)[1].steps for cell in cells)
    own = min(own_reach(cell.sizes[:, 0], cell.length) for cell in cells)
    length = min(cell.length for cell in cells)
    far = f"{'all' if own >= length else f'{own} of'} {count_of(length, 'step')}"
    needed = f", and the task needs {memory}" if memory else ""
    return (
        f"a thousandth of the gradient of {listed([cell.label for cell in cells])} gets {far} back "
        f"(with weights drawn anew {usual}){needed}"
        + ("" if memory else "; if the task needs more, say so with memory=K")
    )


def _time_looked_at(flow: TimeFlow) -> str:
    """Say what a few steps tell, which are too few to compare cells with weights drawn anew."""
    steps = flow.gain_log2.shape[1]
    if steps == 1:
        return "there is one step, from which no gradient goes back through time"
    left = flow.left_log2[:, 0]
    if np.isnan(left).all():
        return "the gradient is exactly 0"
    layer = int(np.nanargmin(left))
    size = float(left[layer]) / DECADE
    return (
        f"the gradient {f'of layer {layer} ' * (len(left) > 1)}reaches the first of {steps} steps "
        f"at {power(size)} {'times' if size >= 0 else 'of'} the last"
    )


def _modules_looked_at(reading: Reading) -> str:
    chained = [one for one in reading.modules if one.chained]
    links = [one for one in chained if 0 < one.delta < inf]
    known = [one.delta for one in links]
    norm = _gradient_norm(reading)
    if len(known) < 2:
        whole = "" if isnan(norm) else f", the gradient's norm is {norm:.3g}"
        return f"every number is finite{whole}"
    whole = "" if isnan(norm) else f", its norm over all parameters is {norm:.3g}"
    size = log10(known[0] / known[-1])
    of = "times" if size >= 0 else "of"
    first = "the first module" if links[0] is chained[0] else links[0].name
    return f"the gradient reaches {first} at {power(size)} {of} the last{whole}"


def _gradient_norm(reading: Reading) -> float:
    if reading.watched is not None:
        return reading.watched.norm
    measured = reading.gradients and reading.gradients.measurement
    return measured.total.norm if measured else nan


def begun_words(names: Sequence[str]) -> str:
    """Say that weights begin at 0."""
    several = " and others are" if len(names) > 1 else " is"
    return (
        f"{names[0]}{several} 0, so that what lies below gets no gradient from there; diagnose "
        "again after a step"
    )
