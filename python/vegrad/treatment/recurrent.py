"""Remedies for recurrent cells, smallest change first: gate biases, the recurrent matrix, the cell.

The order is that of the trouble: a gate's bias moves what the state carries, the scale of the
matrix what passes through it, orthogonal matrices keep more directions, and another cell is the
last resort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite, log, sqrt

from vegrad.diagnosis.rules.memory import gain_of, own_reach
from vegrad.flow.cell import Cell, Gate
from vegrad.flow.edits import (
    Chrono,
    Edit,
    Orthogonal,
    Scale,
    SetCell,
    Shift,
    Steady,
    Truncate,
    Zero,
    together,
)
from vegrad.flow.subject import Refusal
from vegrad.flow.wording import exp2
from vegrad.theory.cells import CARRY
from vegrad.treatment.remedy import Patient, Proposal

NONE = Refusal("")  # of a network without cells there is nothing to say
ALL_WELL = Refusal("the gradient through time reaches all steps, and does not grow")
OPEN = 1.0  # the bias of a gate that carries the state
SAME = 0.05  # of a factor
LEFT = 0.05  # of a gradient, where a truncation ends
MOST = 10.0  # times that a gradient may grow within one
LEAST_SCALES = 4  # steps


def _suffers(p: Patient, cell: Cell) -> bool:
    """Return True if the gradient does not reach all steps, or grows on the way."""
    named = {site.name for one in p.diagnosis.findings for site in one.sites if site.kind == "cell"}
    short = own_reach(cell.sizes[:, 0], cell.length) < cell.length
    return cell.module in named or short or gain_of(cell.sizes[:, 0]) > 0.1


def _each(
    gated: bool | None, edits: Callable[[Patient, Cell], Iterator[Edit]]
) -> Callable[[Patient], Proposal | Refusal]:
    """Return a remedy that proposes edits of each cell that suffers.

    Args:
        gated: True for cells with a gate that carries their state, False for others, None for all.
        edits: yields those of a cell.
    """

    def propose(p: Patient) -> Proposal | Refusal:
        cells = p.reading.cells
        fit = [one for one in cells if gated is None or (one.mode in CARRY) == gated]
        if not fit:
            return NONE
        suffering = [one for one in fit if _suffers(p, one)]
        if not suffering:
            return ALL_WELL
        found = [edit for one in suffering for edit in edits(p, one)]
        known = p.reading.parameters
        found = [e for e in found if set(getattr(e, "parameters", ())) <= known.keys()]
        return Proposal(together(*found)) if found else Refusal("the cells need none of it")

    return propose


def _biases(cell: Cell, gate: str) -> list[Gate]:
    return [one for one in cell.gates if one.gate == gate and one.part.startswith("b_")]


def _matrix(cell: Cell) -> str:
    return next(one.parameter for one in cell.gates if one.part == "hh")


def _opened(p: Patient, cell: Cell) -> Iterator[Edit]:
    """Set the bias of the carrying gate to 1 (Gers et al. 2000, Jozefowicz et al. 2015)."""
    gate = CARRY[cell.mode]
    biases = _biases(cell, gate)
    if biases:
        names = tuple(one.parameter for one in biases)
        yield Zero(names, biases[0].rows, gate)
        yield Shift(names[:1], OPEN, biases[0].rows, gate)


def _for_the_length(p: Patient, cell: Cell) -> Iterator[Edit]:
    """Draw the biases for the task's length."""
    biases, steps = _biases(cell, CARRY[cell.mode]), p.reading.memory or cell.length
    if biases and steps >= LEAST_SCALES:
        inputs = _biases(cell, "input")
        names = tuple(one.parameter for one in biases)
        yield Chrono(names, biases[0].rows, steps, inputs[0].rows if inputs else None)


def _scaled(p: Patient, cell: Cell) -> Iterator[Edit]:
    """Scale the matrix to what the carry leaves it: (1 - carry)/matrix."""
    carry, matrix = (float(part[0]) for part in cell.parts)
    factor = (1.0 - carry) / matrix if matrix > 0 and carry < 1 else 1.0
    if isfinite(factor) and abs(log(factor)) > SAME:
        yield Scale((_matrix(cell),), float(f"{factor:.4g}"))


def _orthogonal(p: Patient, cell: Cell) -> Iterator[Edit]:
    yield Orthogonal((_matrix(cell),))


def _steady(p: Patient, cell: Cell) -> Iterator[Edit]:
    """Descend Ω by itself (Pascanu et al. 2013)."""
    inputs = sum(one.rms**2 for one in cell.gates if one.part == "ih") * cell.input_rms**2
    biases = sum(one.rms**2 for one in cell.gates if one.part.startswith("b_"))
    width = p.reading.parameters[_given(cell)].shape[1]
    drive = float(f"{sqrt(inputs * width + biases):.3g}")
    yield Steady((_matrix(cell),), drive, cell.mode)


def _given(cell: Cell) -> str:
    return next(one.parameter for one in cell.gates if one.part == "ih")


def truncated(p: Patient) -> Proposal | Refusal:
    """Go back no further than the gradient reaches: from every k1 steps, k1 + ln ε/ln g.

    One that explodes is stopped before it has grown much: no smaller error is made, but a step of
    usual length.
    """
    cells = p.reading.cells
    if not cells:
        return NONE
    gains = [exp2(gain_of(one.sizes[:, 0])) for one in cells]
    if p.reading.memory or "vanishing" in p.kinds:
        return Refusal("what is cut off is what the task needs")
    if "exploding" in p.kinds and isfinite(max(gains)) and max(gains) > 1:
        back = max(2, int(log(MOST) / log(max(gains))))
        return Proposal(Truncate(back // 2, back))
    if not all(0 < gain < 1 for gain in gains):
        return Refusal("where gradients do not shrink from step to step no truncation is small")
    length = max(one.length for one in cells)
    back = int(log(LEFT) / log(max(gains))) + 1
    if 4 * back > length:
        return Refusal("the gradient reaches most of the steps")
    return Proposal(Truncate(back, 2 * back))


def other_cell(p: Patient) -> Proposal | Refusal:
    """Use a cell with a carry."""
    cells = p.reading.cells
    if not cells or any(one.mode in CARRY for one in cells):
        return NONE
    steps = p.reading.memory or max(one.length for one in cells)
    return Proposal(SetCell("lstm", steps if steps >= LEAST_SCALES else 0))


open_gates = _each(True, _opened)
gates_for_the_length = _each(True, _for_the_length)
scale_matrix = _each(None, _scaled)
orthogonal_matrix = _each(None, _orthogonal)
steady_matrix = _each(False, _steady)
