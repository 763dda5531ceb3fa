"""Theory of a recurrent cell for people: what its initialization does to the gradient over time."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from math import inf, isinf, sqrt
from typing import TypeAlias

import numpy as np

from vegrad import theory
from vegrad.arrays.shown import shown
from vegrad.theory.cells import CARRY, GATES

BIASES = (0.0, 1.0, 2.0, 3.0)
TOLERANCE = 0.1  # the error of a truncated gradient that the last column is for
PARTS = {"ih": "weight_ih", "hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}


@dataclass(frozen=True)
class Expected:
    """One row: a cell at one initialization."""

    at: float
    """Bias of the gate that carries, or σ_u of a cell without gates."""
    gain: float
    """Factor of ‖δ‖ a step: of weights that are drawn, and by mean-field theory without gates."""
    formula: float
    """The same as the sum of the two parts below."""
    spread: float
    """Standard deviation of its log2 from one draw to the next; 0 in the limit of many units."""
    carry: float
    """Mean of the gate that carries."""
    matrix: float
    """Part of the gain that goes through the recurrent matrix."""
    reach: float
    """Steps back to where a thousandth of the gradient is left."""
    time_scale: float
    """Steps in which the gate forgets all but 1/e; of a cell without gates those of the gain."""
    window: float
    """Steps back that leave a tenth of the gradient out, with a loss at every step."""


def expected_cells(
    cell: str, *, hidden: int = 128, inputs: int = 64, input_rms: float = 1.0, seed: int = 0
) -> list[Expected]:
    """Return what theory expects of a cell as PyTorch draws it, beside other initializations.

    Gated cells get other biases of the gate that carries, the others other sizes of their recurrent
    weights: PyTorch's, orthogonal ones, and the critical ones for inputs of this size.

    Raises:
        TypeError, ValueError: an unknown cell; a size below 1; input_rms is not a positive number.
    """
    if cell not in GATES:
        raise ValueError(f"cell must be one of {', '.join(GATES)}, not {shown(cell)}")
    if cell in CARRY:
        return [_gated(cell, bias, (hidden, inputs), input_rms, seed) for bias in BIASES]
    given = given_variance(hidden, inputs, input_rms)
    sigmas = (1.0 / sqrt(3.0), 1.0, theory.critical_sigma_u(cell, given))
    return [_vanilla(cell, sigma, given) for sigma in sigmas]


def given_variance(hidden: int, inputs: int, input_rms: float) -> float:
    """Return the variance that PyTorch's input weights and two biases give a pre-activation."""
    return (inputs * input_rms**2 + 2.0) / (3.0 * hidden)


def _vanilla(cell: str, sigma: float, given: float) -> Expected:
    gain = theory.recurrent_gain(cell, sigma, given)
    # A critical σ_u is right to rounding, which a reach must not show.
    gain = 1.0 if abs(gain - 1.0) < 1e-12 else gain
    scale = -1.0 / np.log(gain) if gain < 1.0 else inf
    reach = theory.reach(gain)
    return Expected(
        at=sigma,
        gain=gain,
        formula=gain,
        spread=0.0,
        carry=0.0,
        matrix=gain,
        reach=reach,
        time_scale=float(scale),
        window=theory.truncation_window(gain, TOLERANCE),
    )


def _gated(cell: str, bias: float, sizes: tuple[int, int], input_rms: float, seed: int) -> Expected:
    hidden, inputs = sizes
    drawn = theory.draw_recurrent_parameters(
        inputs, hidden, 1, cell, 1, "default", forget_bias=bias, seed=seed
    )
    weights = {part: drawn[f"rnn.{name}_l0"] for part, name in PARTS.items()}
    found = theory.expected_recurrence(cell, weights, input_rms=input_rms, seed=seed)
    gain = 2.0**found.gain_log2
    return Expected(
        at=bias,
        gain=gain,
        formula=found.gain,
        spread=found.gain_log2_std,
        carry=float(found.formula.carry.mean()),
        matrix=float(found.formula.matrix.mean()),
        reach=found.reach,
        time_scale=theory.gate_time_scale(bias),
        window=theory.truncation_window(gain, TOLERANCE),
    )


def expected_content(cell: str, rows: list[Expected]) -> list[dict[str, float]]:
    """Return the rows as plain data, with the name of what is varied."""
    name = f"{CARRY[cell]}_bias" if cell in CARRY else "sigma_u"
    return [{name if key == "at" else key: v for key, v in asdict(row).items()} for row in rows]


# Text ------------------------------------------------------------------------------------------


def recurrence_verdict(
    cell: str, *, hidden: int = 128, inputs: int = 64, input_rms: float = 1.0, width: int = 80
) -> str:
    """Say in a sentence how far a cell's gradient gets with PyTorch's weights.

    Raises:
        TypeError, ValueError: as `expected_cells`.
    """
    row = expected_cells(cell, hidden=hidden, inputs=inputs, input_rms=input_rms)[0]
    words = (
        f"{cell} with weights as PyTorch's: ‖δ‖ gets {row.gain:.3f} of its size a step back, and "
        f"a thousandth of it is left after {_steps(row.reach)} steps"
    )
    return textwrap.fill(words, width)


def recurrence_table(
    cell: str,
    *,
    hidden: int = 128,
    inputs: int = 64,
    input_rms: float = 1.0,
    seed: int = 0,
    width: int = 80,
) -> str:
    """Write what theory expects of a recurrent cell at its initialization.

    A narrow terminal has no room for what the formula gives beside the gain.

    Raises:
        TypeError, ValueError: as `expected_cells`.
    """
    rows = expected_cells(cell, hidden=hidden, inputs=inputs, input_rms=input_rms, seed=seed)
    head = f"{cell}, {hidden} units, {inputs} inputs of rms {input_rms:g}, weights as PyTorch's"
    if cell in CARRY:
        cells, notes = _gated_table(CARRY[cell], rows)
    else:
        head += f" (q_in {given_variance(hidden, inputs, input_rms):.3g})"
        cells, notes = _vanilla_table(rows)
    notes += [
        ("reach", "steps after which a thousandth of the gradient is left"),
        ("10 %", "steps that every loss must go back for 10 % of error in ∂loss/∂U"),
    ]
    table = _columns(cells)
    if "formula" in cells[0] and max(map(len, table)) > width:
        table = _columns([(*row[:2], *row[3:]) for row in cells])
        notes = [note for note in notes if note[0] != "formula"]
    words = [f"{name:<12} {meaning}" for name, meaning in notes]
    words = [textwrap.fill(line, width, subsequent_indent=" " * 13) for line in words]
    return "\n".join([textwrap.fill(head, width), "", *table, "", *words])


Lines: TypeAlias = list[tuple[str, ...]]


def _gated_table(gate: str, rows: list[Expected]) -> tuple[Lines, Lines]:
    """Return the table of a gated cell, and what its columns mean."""
    cells: Lines = [
        (f"{gate} bias", "gain", "formula", "carried", "matrix", "time scale", "reach", "10 %")
    ]
    for row in rows:
        parts = [f"{one:.3f}" for one in (row.gain, row.formula, row.carry, row.matrix)]
        steps = [_steps(one) for one in (row.time_scale, row.reach, row.window)]
        cells.append((f"{row.at:g}", *parts, *steps))
    return cells, [
        ("gain", "factor of ‖δ‖ from a step to the one before it, of weights drawn so"),
        ("formula", "the same by theory: the two parts that follow, added"),
        ("carried", f"mean of the {gate} gate"),
        ("matrix", "σ_u times the mean coefficient of what goes through U"),
        ("time scale", f"steps in which the {gate} gate at its bias forgets all but 1/e"),
    ]


def _vanilla_table(rows: list[Expected]) -> tuple[Lines, Lines]:
    """Return the table of a cell without gates, and what its columns mean."""
    cells: Lines = [("recurrent weights", "σ_u", "gain", "time scale", "reach", "10 %")]
    for name, row in zip(("PyTorch's", "orthogonal", "critical"), rows, strict=True):
        steps = [_steps(one) for one in (row.time_scale, row.reach, row.window)]
        cells.append((name, f"{row.at:.4g}", f"{row.gain:.3f}", *steps))
    return cells, [
        ("σ_u", "recurrent weights have variance σ_u²/H"),
        ("gain", "factor of ‖δ‖ from a step to the one before it"),
        ("time scale", "steps after which 1/e of the gradient is left"),
    ]


def _steps(number: float) -> str:
    if isinf(number):
        return "∞"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _columns(cells: Lines) -> list[str]:
    """Lay cells out in columns as wide as needed, the first aligned left, the others right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in cells
    ]
