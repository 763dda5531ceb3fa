"""What is wrong with the gradient through time, and which parameter of a cell is to blame."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log2, log10, sqrt
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.finding import Finding
from vegrad.flow.wording import DECADE, exp2, times
from vegrad.torch.models import rms
from vegrad.torch.monitor.report import Report
from vegrad.torch.reading.cells import GATES, Recurrence, Weights

LOST = 3.0  # decades: a gradient that is smaller than this has not reached a step
SHORT = 2.5  # decades below what fresh weights give where theirs is lost
GROWN, BEYOND = 1.0, 3.0  # decades, and so far beyond what they give there, or
EXPLODED = 3.0  # decades, whatever fresh weights do
CRITICAL = 4.0
SATURATED = 0.9  # of the gates' elements
CLOSED = 2.0  # decades below fresh weights: what outputs, or inputs, add to the gates
OFF = 2.0  # times fresh weights: less is none to blame
ALIKE = 4.0  # times, between the gates of a matrix that is off as a whole
ROUNDS = 3  # parameters that may be off together


@dataclass(frozen=True)
class OfTime(Finding):
    """A finding about a recurrent module; `code` does what the advice says to a `model`."""

    parameter: str = ""
    module: str = ""
    change: str = ""
    """What the advice says, in short."""
    code: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class _Change:
    """Something that makes a parameter, or one gate's part of it, as fresh ones are."""

    parts: tuple[str, ...]
    rows: tuple[int, int] | None
    gate: str
    factor: float
    """0 of biases."""

    @property
    def within(self) -> str:
        """Of the parameter, as code."""
        return "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"

    def made(self, weights: Weights) -> Weights:
        changed = dict(weights)
        for part in self.parts:
            changed[part] = weights[part].clone()
            changed[part][slice(*self.rows or (None,))] *= self.factor
        return changed

    def where(self, names: dict[str, str]) -> str:
        return " and ".join(names[part] + self.within for part in self.parts)

    def advice(self, names: dict[str, str]) -> str:
        of = f" ({'those' if len(self.parts) > 1 else 'that'} of the {self.gate} gate)"
        where = self.where(names) + (of if self.gate else "")
        return f"multiply {where} by {self.factor:.3g}" if self.factor else f"set {where} to 0"

    def code(self, names: dict[str, str]) -> list[str]:
        does = f"mul_({self.factor:.4g})" if self.factor else "zero_()"
        return [f'model.get_parameter("{names[p]}"){self.within}.{does}' for p in self.parts]


def reach(sizes: FloatArray, flat: FloatArray) -> tuple[Reach, Reach]:
    """Of a set of weights (the first column; the last step first) and of weights drawn anew."""
    own, fresh = sizes[:, 0] / DECADE, sizes[:, 1:].mean(axis=1) / DECADE
    steps = _steps(fresh, fresh[0])
    at = steps - 1

    def of(some: FloatArray, saturated: float) -> Reach:
        gain = float(some[at] - some[0]) * DECADE / max(at, 1) if isfinite(some[0]) else -inf
        return Reach(_steps(some, fresh[0]), float(some[0] - fresh[0]), gain,
                     float(some.max() - max(some[0], fresh[0])), float(some[at] - fresh[at]),
                     saturated)  # fmt: skip

    with np.errstate(invalid="ignore"):  # -inf where nothing comes at all
        return of(own, float(flat[0])), of(fresh, float(flat[1:].mean()))


def _steps(sizes: FloatArray, start: float) -> int:
    """Those that come before the first that nothing reaches."""
    lost = np.flatnonzero(~(sizes >= start - LOST))
    return int(lost[0]) if lost.size else len(sizes)


def kind_of(own: Reach) -> str:
    """Of a finding; "" if there is none."""
    if own.growth >= EXPLODED or (own.growth >= GROWN and own.beyond >= BEYOND):
        return "exploding"
    if own.beyond <= -SHORT:
        return "vanishing"
    return "saturated" if own.flat >= SATURATED else ""


def findings_of(several: Sequence[Recurrence], known: set[str]) -> list[OfTime]:
    """What is wrong with layers and directions of recurrent modules.

    Args:
        several: that were looked at.
        known: names of the model's parameters; others are made of such, and not to be blamed.
    """
    found = []
    for one in several:
        if not one.own["hh"].any():
            continue  # begins closed: its gradient is not 0, and the first step changes it
        own, fresh = reach(one.sizes, one.flat)
        kind = kind_of(own)
        if kind:
            found.append(_finding(one, kind, own, fresh, known))
        else:
            found += _closed(one, known)
    return found


def unlike_fresh(
    said: Report,
    several: Sequence[Recurrence],
    decades: Callable[[list[str], tuple[str, str]], float],
) -> list[Finding]:
    """A report's findings but those of a chain that fresh recurrent modules make as bad.

    `decades` of δ there are between two modules, if some draw their parameters anew.
    """
    kept, cells = [], sorted({one.module for one in several})
    for finding in said.findings:
        e = finding.evidence
        if "worst" in e and said.rows[int(e["worst"])]["module"] in cells:
            last = [row["module"] for row in said.rows if row["weighted"]][-1]
            fresh = decades(cells, (said.rows[finding.layers[0]]["module"], last))
            if abs(e["decades"]) < abs(fresh) + BEYOND and fresh * e["decades"] > 0:
                continue
        kept.append(finding)
    return kept


def added(
    findings: Sequence[Finding], several: Sequence[Recurrence], model: Module,
    gradients: dict[str, float], rows: Sequence[dict[str, Any]],
) -> tuple[list[Finding], list[str]]:  # fmt: skip
    """With what is wrong through time, without what only that makes of neighbours; and notes.

    Args:
        findings: of anything else.
        several: layers and directions that were looked at.
        model: whose they are.
        gradients: log2 of the norms of matrices' gradients.
        rows: a report's, whose modules are marked.
    """
    own = findings_of(several, {name for name, _ in model.named_parameters()})
    places = {row["module"]: place for place, row in enumerate(rows)}
    sick = {one.module for one in own}
    zero = {name for name, size in gradients.items() if size == -inf}
    beside = [{one.names["ih"], one.names["hh"]} for one in several]  # not one after the other
    once = [one.names["hh"] for one in several if one.names["hh"] in zero]

    def explained(finding: Finding) -> bool:
        if "exactly 0" in finding.message:
            return bool(own) or zero == set(once)
        if "a layer and reaches" in finding.message:
            return any(one.kind == finding.kind for one in own)
        if "worst" in finding.evidence:  # or the first, a cell's δ being that of all steps
            ends = int(finding.evidence["worst"]), finding.layers[0]
            return any(rows[end]["module"] in sick for end in ends)
        gap = re.match(r"between (\S+) and (\S+) below it", finding.message)
        return gap is not None and (
            {*gap.groups()} in beside
            or any(name.rpartition(".")[0] in sick for name in gap.groups())
        )

    kept = [finding for finding in findings if not explained(finding)]
    placed = list[Finding]()
    for one in own:
        place = places.get(one.module)
        placed.append(replace(one, layers=() if place is None else (place,)))
        if place is not None:
            rows[place]["note"] = f"← {one.kind}"
    notes = [f"{' and '.join(once[:2])}{' …' if len(once) > 2 else ''} got no gradient: of the "
             "outputs only a first step is used, before which there is none (of a reverse "
             "direction the first step is the last in time)."] if once else []  # fmt: skip
    # What explodes through time may be why a gradient is not finite.
    first = [one for one in placed if one.kind == "exploding"]
    first += [finding for finding in kept if finding.kind == "nonfinite"]
    return [*first, *(one for one in [*placed, *kept] if one not in first)], notes


def rows_of(several: Sequence[Recurrence]) -> tuple[dict[str, Any], ...]:
    """Of a report: how far the gradient goes back, and how far with weights drawn anew."""
    rows = []
    for one in several:
        own, fresh = reach(one.sizes, one.flat)
        rows.append({
            "parameter": one.names["hh"], "steps": len(one.sizes), "reach": own.steps,
            "gain": exp2(own.gain), "fresh_reach": fresh.steps, "fresh_gain": exp2(fresh.gain),
        })  # fmt: skip
    return tuple(rows)


def _finding(one: Recurrence, kind: str, own: Reach, fresh: Reach, known: set[str]) -> OfTime:
    changes = _causes(one, known)
    steps = len(one.sizes)
    size = own.beyond
    if kind == "exploding":
        message = f"through time the gradient grows {times(own.gain)} a step back in {place(one)}"
        message += f", to {times(own.growth * DECADE)} within {steps} steps"
        message += f"; weights drawn anew give {times(fresh.gain)}"
        size = own.growth
    elif kind == "saturated":
        message = f"{100 * own.flat:.0f} % of the gates' elements in {place(one)} are saturated: "
        message += "they learn 20 times slower, or not at all; with weights drawn anew "
        message += f"{100 * fresh.flat:.0f} %"
    elif not own.steps:
        message = f"the gradient does not get into {place(one)}: at the last step its gates have "
        message += f"{times(own.start * DECADE)} of what weights drawn anew give"
    else:
        message = f"the gradient through time of {place(one)} reaches the last "
        message += f"{_count(own.steps)} of {steps} ({times(own.gain)} a step back); with weights "
        message += f"drawn anew the last {fresh.steps} ({times(fresh.gain)})"
    change = advice = "; ".join(change.advice(one.names) for change in changes)
    if not changes:
        advice = (
            "draw its recurrent weights again, orthogonal, and clip the gradients' joint norm"
            if kind == "exploding"
            else "draw its weights again, and look at the size of its inputs"
        )
        if kind == "saturated" and fresh.flat > SATURATED / 2:
            advice = f"scale its inputs, whose root mean square is {rms(one.x):.3g}, to about 1"
    evidence = {"reach": float(own.steps), "fresh_reach": float(fresh.steps),
                "growth": own.growth, "flat": own.flat}  # fmt: skip
    if kind != "saturated":
        evidence["decades"] = max(size, -999.0)
    name = ""
    if changes:
        name = one.names[changes[0].parts[0]]
        evidence["factor"] = changes[0].factor
    code = tuple(line for change in changes for line in change.code(one.names))
    severity = "critical" if abs(size) >= CRITICAL else "warning"
    return OfTime(kind, severity, (), message, f"{advice}.", evidence, "weights",
                  name, one.module, change, code)  # fmt: skip


def place(one: Recurrence) -> str:
    """In words."""
    _, _, suffix = one.names["hh"].rpartition("weight_hh")
    layer = f" (layer {suffix[2:].replace('_', ', ')})" if suffix else ""
    return f"{one.module or one.mode}{layer}"


def _count(steps: int) -> str:
    return f"{steps} step{'' if steps == 1 else 's'}"


# Which parameter it is -------------------------------------------------------------------------


def _causes(one: Recurrence, known: set[str]) -> list[_Change]:
    """The changes that bring the gradient back to where fresh weights have it; [] if none do."""
    weights, chosen = one.own, list[_Change]()
    for _ in range(ROUNDS):
        candidates = _candidates(one, weights, known)
        if not candidates:
            return []
        tried = [change.made(weights) for change in candidates]
        ranks = _ranked(one, candidates, tried)
        best = ranks.index(min(ranks))
        weights = tried[best]
        chosen.append(candidates[best])
        if not ranks[best][0]:
            return chosen
    return []


def _ranked(
    one: Recurrence, changes: Sequence[_Change], tried: Sequence[Weights]
) -> list[tuple[bool, int, float]]:
    """Whether it is still sick, parameters that change, distance from weights drawn anew."""
    sizes, flat, _ = one.through(tried)
    ranks = []
    for n, change in enumerate(changes):
        columns = np.column_stack([sizes[:, n], one.sizes[:, 1:]])
        shares = np.array([flat[n], *one.flat[1:]])
        sick = bool(kind_of(reach(columns, shares)[0]))
        apart = abs(float(flat[n] - shares[1:].mean())) + _apart(columns)
        ranks.append((sick, 0 if sick else len(change.parts), apart))
    return ranks


def _apart(sizes: FloatArray) -> float:
    """The mean distance from weights drawn anew, as far back as these reach."""
    usual = sizes[:, 1:].mean(axis=1)
    steps = _steps(usual / DECADE, usual[0] / DECADE)
    with np.errstate(invalid="ignore"):
        return float(np.abs(sizes[:steps, 0] - usual[:steps]).mean())


def _candidates(one: Recurrence, weights: Weights, known: set[str]) -> list[_Change]:
    """Parameters that are off the size of fresh ones, or the part of a gate that is."""
    found: list[_Change] = []
    usual, gates = one.bound / sqrt(3.0), GATES.get(one.mode, ("",))
    biases: dict[str, list[str]] = {}
    for part, tensor in weights.items():
        if one.names[part] not in known:
            continue
        blocks = tensor.chunk(len(gates)) if part != "hr" else (tensor,)
        sizes = [rms(block) for block in blocks]
        if part.startswith("b_"):
            for gate, size in zip(gates, sizes, strict=True):
                if size > OFF * one.bound:
                    biases.setdefault(gate, []).append(part)
            continue
        off = [n for n, size in enumerate(sizes) if size and not 1 / OFF < size / usual < OFF]
        if off and max(sizes) <= ALIKE * min(sizes):
            found.append(_Change((part,), None, "", usual / rms(tensor)))
        elif len(blocks) > 1:
            found += [_Change((part,), _rows(tensor, blocks, n), gates[n], usual / sizes[n])
                      for n in off]  # fmt: skip
    for gate, parts in biases.items():
        tensor = weights[parts[0]]
        rows = _rows(tensor, tensor.chunk(len(gates)), gates.index(gate)) if gate else None
        for some in [[part] for part in parts] + [parts] * (len(parts) > 1):
            found.append(_Change(tuple(some), rows, gate, 0.0))
    return found


def _rows(tensor: Tensor, blocks: Sequence[Tensor], place: int) -> tuple[int, int]:
    length = len(blocks[0])
    return place * length, (place + 1) * length


# What passes through no gate -------------------------------------------------------------------

UNSEEN = {"hh": "sees its own outputs, and no gradient comes back through them",
          "ih": "sees its inputs, and no gradient gets to what makes them"}  # fmt: skip


def _closed(one: Recurrence, known: set[str]) -> list[OfTime]:
    """A cell that hardly sees its last output, or its inputs; its state may keep the gradient."""
    found = []
    for part, unseen in UNSEEN.items():
        name, size = one.names[part], rms(one.own[part])
        if name not in known or not size:
            continue
        factor = one.bound / sqrt(3.0) / size
        large = rms(one.x) if part == "ih" else 0.0  # may make up for it
        if log10(factor / max(large, 1.0)) < CLOSED:
            continue
        closed = _Change((part,), None, "", factor)
        change, code = closed.advice(one.names), tuple(closed.code(one.names))
        message = f"{name} is {times(-log2(factor))} as large as fresh weights: {place(one)} hardly"
        evidence = {"factor": factor, "decades": -log10(factor)}
        advice = f"{change}, unless it is meant to begin closed."
        found.append(OfTime("vanishing", "warning", (), f"{message} {unseen}", advice, evidence,
                            "weights", name, one.module, change, code))  # fmt: skip
    return found
