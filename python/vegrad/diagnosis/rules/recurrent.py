"""Rules on recurrent cells: how far back through time the gradient goes, and what stops it.

Beside a cell's own gradient goes that of weights drawn anew on the same inputs: what an LSTM
forgets, fresh ones forget too. Where the two part, the parameter is named that brings them together
again if it is made as fresh ones are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.cell import Cell, Gate
from vegrad.flow.edits import Edit, Scale, Zero, together
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp2, exp10

LOST = 3.0  # decades: a gradient that is smaller than this has not reached a step
SHORT = 2.5  # decades below what fresh weights give where theirs is lost
GROWN, BEYOND = 1.0, 3.0  # decades, and so far beyond what they give there, or
EXPLODED = 3.0  # decades, whatever fresh weights do
SATURATED = 0.9  # of the gates' elements
CLOSED = 2.0  # decades below fresh weights: what outputs, or inputs, add to the gates
OFF = 2.0  # times fresh weights: smaller ones are not blamed
ALIKE = 4.0  # times, between the gates of a matrix that is off as a whole
ROUNDS = 3  # parameters that may be off together
FLOOR = -999.0  # decades, that stand for nothing at all
PARTS = (
    "; of it the {part} is at fault: carry and matrix pass on {carry:.2g} and {matrix:.2g}, where "
    "{expected_carry:.2g} and {expected_matrix:.2g} are to be expected"
)


@dataclass(frozen=True)
class Reach:
    """How far a gradient goes back."""

    steps: int
    """The last ones, that get a thousandth, or more, of what fresh weights get at the last."""
    start: float
    """Decades over fresh weights, at the last step."""
    gain: float
    """log2 a step, as far as fresh weights reach."""
    growth: float
    """Decades at most over what it, or fresh weights, begin with."""
    beyond: float
    """Decades over fresh weights, as far back as they reach, or as there are steps."""
    flat: float
    """Share of the gates' elements that is saturated."""
    usual_flat: float
    """The same, of fresh weights."""

    @property
    def kind(self) -> str:
        """The kind of finding that this is; "" if it is none."""
        if min(self.flat, self.usual_flat) >= SATURATED:
            return "saturated"  # where sizes differ by decades from draw to draw
        if self.growth >= EXPLODED or (self.growth >= GROWN and self.beyond >= BEYOND):
            return "exploding"
        if self.beyond <= -SHORT:
            return "vanishing"
        return "saturated" if self.flat >= SATURATED else ""


def reach(sizes: FloatArray, flat: FloatArray) -> tuple[Reach, Reach]:
    """Return the reach of a set of weights (the first column) and of weights drawn anew."""
    own, fresh = sizes[:, 0] / DECADE, sizes[:, 1:].mean(axis=1) / DECADE
    steps = _steps(fresh, fresh[0])
    at = steps - 1

    def of(some: FloatArray, saturated: float) -> Reach:
        gain = float(some[at] - some[0]) * DECADE / max(at, 1) if isfinite(some[0]) else -inf
        return Reach(
            steps=_steps(some, fresh[0]),
            start=float(some[0] - fresh[0]),
            gain=gain,
            growth=float(some.max() - max(some[0], fresh[0])),
            beyond=float(some[at] - fresh[at]),
            flat=saturated,
            usual_flat=float(flat[1:].mean()),
        )

    with np.errstate(invalid="ignore"):  # -inf where nothing comes at all
        return of(own, float(flat[0])), of(fresh, float(flat[1:].mean()))


def parted(cell: Cell, gain: float) -> dict[str, float]:
    """Return a step's gain and its parts beside what theory expects of weights drawn anew."""
    carry, matrix = (float(part[0]) for part in cell.parts)
    usual_carry, usual_matrix = (float(part[1:].mean()) for part in cell.expected)
    found = {
        "gain": exp2(gain),
        "carry": carry,
        "matrix": matrix,
        "expected_gain": usual_carry + usual_matrix,
        "expected_carry": usual_carry,
        "expected_matrix": usual_matrix,
    }
    return {name: value for name, value in found.items() if isfinite(value)}


def _part(evidence: Mapping[str, float]) -> str:
    """Return the part of the gain that is further from what theory expects: carry or matrix."""
    off = {
        name: abs(evidence.get(name, 0.0) - evidence.get(f"expected_{name}", 0.0))
        for name in ("carry", "matrix")
    }
    return max(off, key=lambda name: off[name])


def _steps(sizes: FloatArray, start: float) -> int:
    """Return how many come before the first that nothing reaches."""
    lost = np.flatnonzero(~(sizes >= start - LOST))
    return int(lost[0]) if lost.size else len(sizes)


def _through_time(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    places = {module.name: place for place, module in enumerate(reading.modules)}
    for layer, cell in enumerate(reading.cells):
        site = Site("cell", cell.module, places.get(cell.module))
        if not any(gate.rms for gate in cell.gates if gate.part == "hh"):
            continue  # begins closed: its gradient is not 0, and the first step changes it
        own, fresh = reach(cell.sizes, cell.flat)
        if own.kind and not (own.kind == "exploding" and _stays(reading, layer, own)):
            yield _found(cell, site, own, fresh, rule, set(reading.parameters))
        else:
            yield from _closed(cell, site, rule, set(reading.parameters))


def _stays(reading: Reading, layer: int, own: Reach) -> bool:
    """Return True if the loss's own gradient does not grow, where others grow by little.

    What a cell has learnt to keep goes far beyond fresh weights, which forget.
    """
    flow = reading.time_flow
    if flow is None or own.growth >= EXPLODED or len(flow.left_log2) != len(reading.cells):
        return False
    left = flow.left_log2[layer]
    return bool(np.isfinite(left).all() and left.max() < GROWN * DECADE)


def _found(
    cell: Cell, site: Site, own: Reach, fresh: Reach, rule: Rule, known: set[str]
) -> Finding:
    kind, steps = own.kind, len(cell.sizes)
    says, size = _said(kind, own, steps)
    changes = _causes(cell, known)
    evidence = {
        "reach": float(own.steps),
        "fresh_reach": float(fresh.steps),
        "growth": own.growth,
        "flat": own.flat,
        **parted(cell, own.gain),
    }
    if kind != "saturated":
        evidence["decades"] = max(size, FLOOR)
    if changes:
        factor = changes[0].factor
        evidence["factor"] = factor
    if says.endswith(PARTS) and not {"carry", "expected_carry"} <= evidence.keys():
        says = says.removesuffix(PARTS)
    advises = "{edit}." if changes else _without_cause(kind, fresh)
    names = [n for change in changes for n in change.parameters if n != site.name]
    return Finding(
        kind=kind,
        severity=rule.severity(size),
        rule=rule.name,
        cause=_cause(changes),
        sites=(site, *(Site("parameter", name) for name in names)),
        says=says,
        advises=advises,
        facts={
            "cell": cell.label,
            "steps": steps,
            "gain": exp2(own.gain),
            "fresh_gain": exp2(fresh.gain),
            "grown": exp10(own.growth),
            "start": exp10(own.start),
            "percent": 100 * own.flat,
            "fresh_percent": 100 * fresh.flat,
            "input_rms": cell.input_rms,
            "part": _part(evidence),
        },
        evidence=evidence,
        blame="weights",
        edit=together(*(change.edit for change in changes)) if changes else None,
    )


def _said(kind: str, own: Reach, steps: int) -> tuple[str, float]:
    """Return the template of the message and the size of what it is about, in decades."""
    if kind == "exploding" and own.gain * steps < own.growth * DECADE / 2:
        says = "through time the gradient grows to {grown:times} within {steps} steps in {cell}, "
        says += "but unevenly: {gain:times} a step back over the last {fresh_reach:d}, as far as "
        return says + "weights drawn anew reach, which give {fresh_gain:times}" + PARTS, own.growth
    if kind == "exploding":
        says = "through time the gradient grows {gain:times} a step back in {cell}, to "
        says += "{grown:times} within {steps} steps; weights drawn anew give {fresh_gain:times}"
        return says + PARTS, own.growth
    if kind == "saturated":
        says = "{percent:.0f} % of the gates' elements in {cell} are saturated: they learn 20 "
        says += "times slower, or not at all; with weights drawn anew {fresh_percent:.0f} %"
        return says, own.beyond
    if not own.steps:
        says = "the gradient does not get into {cell}: at the last step its gates have "
        return says + "{start:times} of what weights drawn anew give", own.beyond
    count = "step" if own.steps == 1 else "{reach:d} steps"
    says = f"the gradient through time of {{cell}} reaches the last {count} of {{steps}} "
    says += "({gain:times} a step back); with weights drawn anew the last {fresh_reach:d} "
    return says + "({fresh_gain:times})" + PARTS, own.beyond


def _without_cause(kind: str, fresh: Reach) -> str:
    if kind == "saturated" and fresh.flat > SATURATED / 2:
        return "scale its inputs, whose root mean square is {input_rms:.3g}, to about 1."
    if kind == "exploding":
        return "draw its recurrent weights again, orthogonal, and clip the gradients' joint norm."
    return "draw its weights again, and look at the size of its inputs."


# Which parameter it is --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """Something that makes a parameter, or one gate's part of it, as fresh ones are."""

    parameters: tuple[str, ...]
    rows: tuple[int, int] | None
    gate: str
    factor: float
    """0 of biases."""

    @property
    def edit(self) -> Edit:
        if self.factor:
            return Scale(self.parameters, float(f"{self.factor:.4g}"), self.rows, self.gate)
        return Zero(self.parameters, self.rows, self.gate)


def _cause(changes: Sequence[_Change]) -> str:
    return "gate-bias" if changes and not changes[0].factor else "recurrent-weights"


def _causes(cell: Cell, known: set[str]) -> list[_Change]:
    """Return the changes that bring the gradient back to where fresh weights have it, if any do."""
    chosen, scaled = list[_Change](), dict[Gate, float]()
    for _ in range(ROUNDS):
        candidates = _candidates(cell, scaled, known)
        if not candidates:
            return []
        ranks = _ranked(cell, [[*chosen, change] for change in candidates])
        best = ranks.index(min(ranks))
        chosen.append(candidates[best])
        for gate in cell.gates:
            if gate.parameter in candidates[best].parameters and (
                candidates[best].rows in (None, gate.rows)
            ):
                scaled[gate] = scaled.get(gate, 1.0) * candidates[best].factor
        if not ranks[best][0]:
            return chosen
    return []


def _ranked(cell: Cell, several: Sequence[Sequence[_Change]]) -> list[tuple[bool, int, float]]:
    """Rank by: still sick, parameters that change, distance from weights drawn anew."""
    exact = [[_exactly(change) for change in changes] for changes in several]
    sizes, flat = cell.if_changed(exact)
    ranks = []
    for n, changes in enumerate(several):
        columns = np.column_stack([sizes[:, n], cell.sizes[:, 1:]])
        shares = np.array([flat[n], *cell.flat[1:]])
        sick = bool(reach(columns, shares)[0].kind)
        apart = abs(float(flat[n] - shares[1:].mean())) + _apart(columns)
        ranks.append((sick, 0 if sick else len(changes[-1].parameters), apart))
    return ranks


def _exactly(change: _Change) -> Edit:
    """Return the edit with a factor that is not rounded."""
    if change.factor:
        return Scale(change.parameters, change.factor, change.rows)
    return Zero(change.parameters, change.rows)


def _apart(sizes: FloatArray) -> float:
    """Return the mean distance from weights drawn anew, as far back as these reach."""
    usual = sizes[:, 1:].mean(axis=1)
    steps = _steps(usual / DECADE, usual[0] / DECADE)
    with np.errstate(invalid="ignore"):
        return float(np.abs(sizes[:steps, 0] - usual[:steps]).mean())


def _candidates(cell: Cell, scaled: dict[Gate, float], known: set[str]) -> list[_Change]:
    """Return parameters that are off the size of fresh ones, or the part of a gate that is."""
    found: list[_Change] = []
    usual = cell.bound / sqrt(3.0)
    biases: dict[str, list[Gate]] = {}
    for name in dict.fromkeys(gate.parameter for gate in cell.gates):
        gates = [gate for gate in cell.gates if gate.parameter == name]
        if name not in known:
            continue
        sizes = [gate.rms * scaled.get(gate, 1.0) for gate in gates]
        if gates[0].part.startswith("b_"):
            for gate, size in zip(gates, sizes, strict=True):
                if size > OFF * cell.bound:
                    biases.setdefault(gate.gate, []).append(gate)
            continue
        off = [n for n, size in enumerate(sizes) if size and not 1 / OFF < size / usual < OFF]
        if off and max(sizes) <= ALIKE * min(sizes):
            rms = sqrt(float(np.mean(np.square(sizes))))
            found.append(_Change((name,), None, "", usual / rms))
        elif len(gates) > 1:
            found += [_Change((name,), gates[n].rows, gates[n].gate, usual / sizes[n]) for n in off]
    for of, parts in biases.items():
        rows = parts[0].rows if of else None
        names = [part.parameter for part in parts]
        for some in [[name] for name in names] + [names] * (len(names) > 1):
            found.append(_Change(tuple(some), rows, of, 0.0))
    return found


# What passes through no gate --------------------------------------------------------------------

UNSEEN = {
    "hh": "sees its own outputs, and no gradient comes back through them",
    "ih": "sees its inputs, and no gradient gets to what makes them",
}


def _closed(cell: Cell, site: Site, rule: Rule, known: set[str]) -> Iterator[Finding]:
    """Find cells that hardly see their last output, or their inputs.

    Their state may keep the gradient all the same.
    """
    for part, unseen in UNSEEN.items():
        gates = [gate for gate in cell.gates if gate.part == part]
        size = sqrt(float(np.mean(np.square([gate.rms for gate in gates]))))
        name = gates[0].parameter
        if name not in known or not size:
            continue
        factor = cell.bound / sqrt(3.0) / size
        large = cell.input_rms if part == "ih" else 0.0  # may make up for it
        if log10(factor / max(large, 1.0)) < CLOSED:
            continue
        yield Finding(
            kind="vanishing",
            severity="warning",
            rule=rule.name,
            cause="recurrent-weights",
            sites=(site, Site("parameter", name)),
            says=f"{{name}} is {{small:times}} as large as fresh weights: {{cell}} hardly {unseen}",
            advises="{edit}, unless it is meant to begin closed.",
            facts={"name": name, "small": 1.0 / factor, "cell": cell.label},
            evidence={"factor": factor, "decades": -log10(factor)},
            blame="weights",
            edit=Scale((name,), float(f"{factor:.4g}")),
        )


THROUGH_TIME = Rule(
    name="through-time",
    kind="vanishing",
    warning=SHORT,
    critical=4,
    measured="decades between the gradient some steps back and that of weights drawn anew there",
    reason="Fresh cells differ from draw to draw by less than a decade as far back as they reach.",
    source="Pascanu et al. 2013, arXiv:1211.5063; Jozefowicz et al. 2015 (forget gates)",
    find=_through_time,
)
