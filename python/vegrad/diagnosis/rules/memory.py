"""The rule on what a recurrent network forgets though its task needs it.

A cell of fresh weights forgets within some ten steps, whatever its task. That is a fault only where
what it forgets is needed, which a pass cannot show: the user says it (`memory`), or the data do,
as their targets depend on steps beyond the gradient's reach. Without that the rule is silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, inf, log

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.recurrent import LOST, parted
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Edit, Scale, Shift
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Cell, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp2
from vegrad.theory.cells import CARRY

TOLD = 0.2  # share of the target
LONGER = 1.5  # times the reach, or an edit is not worth a word
GROWN = 2.0  # decades that a gradient may grow by an edit


def gain_of(sizes: FloatArray) -> float:
    """Return log2 of a step's gain (steps back,), of its second half, where that is known."""
    known = sizes[np.isfinite(sizes)]
    if len(known) < len(sizes) or len(known) < 2:
        return -inf
    half = (len(known) - 1) // 2
    return float(known[-1] - known[half]) / (len(known) - 1 - half)


def own_reach(sizes: FloatArray, length: int) -> int:
    """Return how many of the last steps get a thousandth of the last one's gradient, or more.

    Beyond the steps that were looked at, as far as the gain of the last of them leads.
    """
    lost = np.flatnonzero(~(sizes >= sizes[0] - LOST * DECADE))
    if lost.size:
        return int(lost[0])
    gain, left = gain_of(sizes), float(sizes[-1] - sizes[0]) + LOST * DECADE
    return length if gain >= 0 else min(length, len(sizes) + int(left / -gain))


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
    if any(one.rule == "through-time" for one in earlier):
        return
    places = {module.name: place for place, module in enumerate(reading.modules)}
    for cell in reading.cells:
        reach = own_reach(cell.sizes[:, 0], cell.length)
        needed, told = _needed(reading, cell, reach)
        if not needed:
            continue
        edit = lengthened(cell, needed)
        gated = cell.mode in CARRY
        site = Site("cell", cell.module, places.get(cell.module))
        names = () if edit is None else getattr(edit, "parameters", ())
        says = "the gradient through time of {cell} reaches the last {reach:d} of {steps:d} steps "
        says += "({gain:times} a step back), "
        says += (
            "but the target depends on what lies further back: {percent:.0f} % of it"
            if told
            else "but the task needs what lies {needed:d} steps back"
        )
        yield Finding(
            kind="vanishing",
            severity=rule.severity(needed / max(reach, 1)),
            rule=rule.name,
            cause="gate-bias" if gated else "recurrent-weights",
            sites=(site, *(Site("parameter", name) for name in names)),
            says=says,
            advises="{edit}."
            if edit is not None
            else "use a cell with a carry (LSTM, GRU), or orthogonal recurrent weights.",
            facts={"cell": cell.label, "percent": 100 * told},
            evidence={
                **parted(cell, gain_of(cell.sizes[:, 0])),
                "reach": float(reach),
                "steps": float(cell.length),
                "needed": float(needed),
                "wanted_gain": wanted_gain(needed),
                "decades": -LOST * needed / max(reach, 1),
            },
            blame="weights",
            edit=edit,
        )


def _needed(reading: Reading, cell: Cell, reach: int) -> tuple[int, float]:
    """Return how far back the task needs the gradient, and the share of the target that says so.

    (0, 0.0) if nothing says that it needs what lies beyond its reach.
    """
    memory = min(reading.memory, cell.length)
    if memory > reach:
        return memory, 0.0
    if reading.memory or reach >= cell.length or reading.lags is None:
        return 0, 0.0
    told = reading.lags.beyond(reach)
    return (cell.length, told) if told >= TOLD else (0, 0.0)


FORGETS = Rule(
    name="forgets-what-is-needed",
    kind="vanishing",
    warning=1,
    critical=10,
    measured="steps back that the task needs, over those that get a thousandth of the gradient",
    reason="What gets less than a thousandth is not learned beside what gets all. That it is "
    "needed is said by the user, or by targets of which 20 % can be told from it alone.",
    source="Bengio, Simard & Frasconi 1994; Tallec & Ollivier 2018, arXiv:1804.11188",
    find=_forgets,
)
