"""The rule on what a recurrent network forgets though its task needs it.

A cell of fresh weights forgets within some ten steps, whatever its task. That is a fault only where
what it forgets is needed, which a pass cannot show: the user says it (`memory`), or the data do.

Much less than a thousandth of a gradient can be enough for that: an optimizer that scales its steps
finds it, and whatever is learned from near steps opens the gates for those further back. So targets
are evidence only if nothing of them can be told from any step that more than `FAINT` of the
gradient comes to. The limits are what `bench/recurrent_field.py` has seen trainings come through.
Of other cells than LSTMs there is no limit: the noise of the first steps alone moves their weights
to where they pass on all of the gradient, and many learn from there (a GRU came through 1e-16, a
tanh cell through 1e-19).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import exp, inf, log

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.recurrent import FLOOR, LOST, parted
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.cell import Cell
from vegrad.flow.edits import Edit, Scale, Shift, together
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp2
from vegrad.theory.cells import CARRY

TOLD, HINT = 0.2, 0.05  # shares of the target: told from afar, and from near by
FAINT = {"lstm": 8.0}  # decades, by which gradients shrink where no training learns
BESIDE = 1e-3  # of the gradient, that may come to early steps by itself
LONGER = 1.5  # times the reach, or an edit is not worth a word
GROWN = 2.0  # decades that a gradient may grow by an edit


def gain_of(sizes: FloatArray) -> float:
    """Return log2 of a step's gain (steps back,), of its second half, where that is known."""
    known = sizes[np.isfinite(sizes)]
    if len(known) < len(sizes) or len(known) < 2:
        return -inf
    half = (len(known) - 1) // 2
    return float(known[-1] - known[half]) / (len(known) - 1 - half)


def own_reach(sizes: FloatArray, length: int, lost: float = LOST) -> int:
    """Return how many of the last steps get so much of the last one's gradient, or more.

    Args:
        sizes: log2 of the gradient's size (steps back,); beyond the steps that were looked at, the
            gain of the last of them leads on.
        length: of the sequences.
        lost: decades; by default what is left is a thousandth.
    """
    if not np.isfinite(sizes[0]):
        return 0  # the last step has none
    beyond = np.flatnonzero(~(sizes >= sizes[0] - lost * DECADE))
    if beyond.size:
        return int(beyond[0])
    gain, left = gain_of(sizes), float(sizes[-1] - sizes[0]) + lost * DECADE
    return length if gain >= 0 else min(length, len(sizes) + int(left / -gain))


def lost_at(sizes: FloatArray, steps: int) -> float:
    """Return the decades by which a gradient has shrunk so many steps before the last."""
    if steps < len(sizes):
        return float(sizes[0] - sizes[steps]) / DECADE
    more = (steps - len(sizes) + 1) * gain_of(sizes)
    return float(sizes[0] - sizes[-1] - more) / DECADE


def wanted_gain(steps: int) -> float:
    """Return the gain a step that leaves a thousandth after so many steps."""
    return exp(-LOST * log(10.0) / steps)


def lengthened(cell: Cell, steps: int) -> Edit | None:
    """Return the edit, in closed form, by which a cell's gradient reaches so many steps.

    None if the cell answers otherwise when it is tried.
    """
    gain = wanted_gain(steps)
    gate = CARRY.get(cell.mode)
    if gate is not None:
        edit = _opened(cell, gate, gain)
    else:
        now = exp2(gain_of(cell.sizes[:, 0]))
        hh = tuple(one.parameter for one in cell.gates if one.part == "hh")
        edit = Scale(hh[:1], float(f"{gain / now:.4g}")) if 0 < now < gain else None
    if edit is None:
        return None
    sizes = cell.if_changed([[edit]])[0][:, 0]
    before = own_reach(cell.sizes[:, 0], cell.length)
    grown = (sizes.max() - sizes[0]) / DECADE
    return edit if own_reach(sizes, cell.length) >= LONGER * before and grown < GROWN else None


def _opened(cell: Cell, gate: str, gain: float) -> Edit | None:
    """Return the bias that moves the mean carry to a gain."""
    biases = [one for one in cell.gates if one.gate == gate and one.part.startswith("b_")]
    carry = float(cell.expected[0, 0])
    if not biases or not 0 < carry < gain:
        return None
    amount = log(gain / (1 - gain)) - log(carry / (1 - carry))
    return Shift((biases[0].parameter,), float(f"{amount:.3g}"), biases[0].rows, gate)


def _forgets(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    if not reading.cells or any(one.rule == "through-time" for one in earlier):
        return
    told = 0.0
    if reading.memory:
        reaches = [own_reach(one.sizes[:, 0], one.length) for one in reading.cells]
        suffering = [
            cell
            for cell, reach in zip(reading.cells, reaches, strict=True)
            if min(reading.memory, cell.length) > reach
        ]
        needed = reading.memory
    else:
        needed, told = _beyond(reading)
        suffering = list(reading.cells) if needed else []
    if suffering:
        yield _found(reading, rule, suffering, needed, told)


def _found(
    reading: Reading, rule: Rule, cells: Sequence[Cell], needed: int, told: float
) -> Finding:
    """Return the finding on cells that forget what lies so many steps back, or more."""
    best = max(cells, key=lambda one: own_reach(one.sizes[:, 0], one.length))
    needed = min(needed, best.length)
    reach, lost = own_reach(best.sizes[:, 0], best.length), lost_at(best.sizes[:, 0], needed)
    steps = best.length if told else needed
    edits = [edit for one in cells if (edit := lengthened(one, steps)) is not None]
    places = {module.name: place for place, module in enumerate(reading.modules)}
    modules = dict.fromkeys(one.module for one in cells)
    names = [name for edit in edits for name in getattr(edit, "parameters", ())]
    says = "what the task needs lies {needed:d} steps back, but"
    if told:
        says = "at least {percent:.0f} % of the target can be told, by a linear fit, from what "
        says += "lies before the last {needed:d} of {steps:d} steps, and nothing from those; but"
    return Finding(
        kind="vanishing",
        severity=rule.severity(lost),
        rule=rule.name,
        cause="gate-bias" if best.mode in CARRY else "recurrent-weights",
        sites=(
            *(Site("cell", one, places.get(one)) for one in modules),
            *(Site("parameter", name) for name in names),
        ),
        says=says + " only {left:power} of the gradient of {cell} gets there",
        advises="{edit}."
        if edits
        else "use a cell with a carry (LSTM, GRU), or orthogonal recurrent weights.",
        facts={"cell": best.label, "percent": 100 * told, "left": -lost},
        evidence={
            **parted(best, gain_of(best.sizes[:, 0])),
            "reach": float(reach),
            "steps": float(best.length),
            "needed": float(needed),
            "wanted_gain": wanted_gain(steps),
            "decades": -min(lost, -FLOOR),
        },
        blame="weights",
        edit=together(*edits) if edits else None,
    )


def lost_on_the_way(reading: Reading) -> float:
    """Return the decades that a gradient loses on its way to the first step that tells something.

    It is 0 where that is not known.
    """
    lags, cells = reading.lags, reading.cells
    if lags is None or not cells or any(one.backwards for one in cells):
        return 0.0
    steps = lags.before(HINT, TOLD)
    if not steps or lags.beside(steps) > BESIDE:
        return 0.0
    return min(lost_at(one.sizes[:, 0], min(steps, one.length)) for one in cells)


def forgotten(reading: Reading, first: Callable[[], Reading]) -> tuple[Finding, ...]:
    """Return what a training that has stalled may be blamed on: its gradient does not get far back.

    That it learns nothing is seen by then, so that it may be any cell, and that steps have brought
    the gradient somewhat farther back is no merit.

    Args:
        reading: of the network as it is.
        first: reads it as it was before the training.
    """
    lost = lost_on_the_way(reading)
    if lost < FORGETS.warning:
        return ()
    if lost < FORGETS.critical and lost_on_the_way(first()) < FORGETS.critical:
        return ()
    assert reading.lags is not None
    steps = reading.lags.before(HINT, TOLD)
    told = reading.lags.told(steps)[1]
    return (
        replace(
            _found(reading, FORGETS, reading.cells, steps, told), vocabulary=reading.vocabulary
        ),
    )


def _beyond(reading: Reading) -> tuple[int, float]:
    """Return the steps back from which on targets are told, and the share of them that is.

    (0, 0.0) unless that lies beyond what any cell's gradient comes to, and nothing lies nearer.
    """
    lags, cells = reading.lags, reading.cells
    if lags is None or any(one.backwards or one.mode not in FAINT for one in cells):
        return 0, 0.0
    length = max(one.length for one in cells)
    reach = max(own_reach(one.sizes[:, 0], one.length, FAINT[one.mode]) for one in cells)
    if reach >= length or lags.beside(reach) > BESIDE:
        return 0, 0.0
    near, told = lags.told(reach)
    if not (told >= TOLD and near < HINT):
        return 0, 0.0
    steps = lags.before(HINT, TOLD) or reach  # which no network has a say in
    return steps, lags.told(steps)[1]


FORGETS = Rule(
    name="forgets-what-is-needed",
    kind="vanishing",
    warning=LOST,
    critical=FAINT["lstm"],
    measured="decades that the gradient loses on its way to what the task needs",
    reason="What gets less than a thousandth is hard to learn beside what gets all. If the data "
    "say that it is needed, they must say so of less than 1e-8 of an LSTM's: trainings have come "
    "through more, and where near steps tell something of the target, or of other cells, through "
    "anything.",
    source="Bengio, Simard & Frasconi 1994; Tallec & Ollivier 2018, arXiv:1804.11188",
    find=_forgets,
)
