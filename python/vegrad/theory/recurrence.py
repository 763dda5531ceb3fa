"""The gain a step that is expected of a recurrent cell, beside what its gradient will show.

With one U for all steps, products of it in different places of the chain add up coherently, so that
the gain of a gated cell is the mean of the gate that carries, and σ_u times the mean coefficient of
what goes through U (`tied_gain`). Formulas that draw U anew at each step are off by 14 % a step at
PyTorch's initialization; they are here too (`TiedGain.fresh`), since the gain lies between the two
where the carry varies much over the steps. The means come from a forward pass of weights that are
drawn: h and c are correlated over time through U, which variances of single steps miss.

`expected_recurrence` does this for a network as it is: weights as large as its own are drawn anew,
and its own biases are kept. It gives the formula, and the gradient that such weights carry back,
with its spread over the draws. It leaves out what training has made of the weights' directions;
that is what a comparison shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.theory import cells
from vegrad.theory.cells import GATES, Run, Weights
from vegrad.theory.gaussian import check_positive
from vegrad.theory.recurrent import reach

DRAWS, STEPS, ROWS = 10, 64, 8
SETTLED = 64  # steps of noise before those that count
SETTLING = 4  # steps back before the direction of δ is that of the recurrence


@dataclass(frozen=True)
class TiedGain:
    """The gain of ‖δ‖ a step by formula, and its parts; one entry a set of weights (S,)."""

    carry: FloatArray
    """Mean of the gate that carries: f of an LSTM, z of a GRU; 0 without gates."""
    matrix: FloatArray
    """σ_u times the mean coefficient of what goes through the recurrent matrix."""
    fresh: FloatArray
    """The gain if U were drawn anew at each step."""

    @property
    def gain(self) -> FloatArray:
        """The factor of ‖δ‖ a step."""
        return self.carry + self.matrix


def tied_gain(run: Run) -> TiedGain:
    """Return the gain of ‖δ‖ a step that the means of a run's gates give.

    Of an LSTM it is f̄ + σ_u·E[i]·E[1 - g²]·E[o(1 - tanh² c)], of a GRU z̄ + σ_u·E[r(1 - z)(1 - n²)]
    with σ_u that of the rows of g and of n; without gates σ_u·√(E φ′²).
    """
    hidden = run.weights["hh"].shape[1] // len(GATES[run.cell])
    blocks = np.split(run.weights["hh"], len(GATES[run.cell]), axis=1)
    if "hr" in run.weights:  # what comes out of a cell is projected before it goes through U
        blocks = [block @ run.weights["hr"] for block in blocks]
    sigma = [np.sqrt(hidden * np.mean(block**2, axis=(1, 2))) for block in blocks]

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(values.mean((1, 2, 3)))

    if run.cell == "lstm":
        return _lstm_gain(run, sigma)
    if run.cell == "gru":
        r, z, n = run.gates.values()
        m = np.stack([step.m for step in run.steps if step.m is not None], 1)
        before = np.concatenate([run.start.h[:, None], run.outputs[:, :-1]], 1)
        new = (1.0 - z.value) * n.slope
        square = sigma[0] ** 2 * mean((new * m * r.slope) ** 2)
        square += sigma[1] ** 2 * mean(((before - n.value) * z.slope) ** 2)
        square += sigma[2] ** 2 * mean((new * r.value) ** 2) + mean(z.value**2)
        return TiedGain(mean(z.value), sigma[2] * mean(new * r.value), np.sqrt(square))
    gain = sigma[0] * np.sqrt(mean(run.gates[""].slope ** 2))
    return TiedGain(np.zeros_like(gain), gain, gain)


def _lstm_gain(run: Run, sigma: Sequence[FloatArray]) -> TiedGain:
    i, f, g, _ = run.gates.values()
    out, c = [], []
    before = run.start
    for step in run.steps:
        assert step.tanh_c is not None
        assert before.c is not None
        out.append(step.gates[3].value * step.tanh_c.slope)
        c.append(before.c)
        before = step
    through, state = np.stack(out, 1), np.stack(c, 1)

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(values.mean((1, 2, 3)))

    square = sigma[0] ** 2 * mean((g.value * i.slope) ** 2)
    square += sigma[1] ** 2 * mean((state * f.slope) ** 2)
    square += sigma[2] ** 2 * mean((i.value * g.slope) ** 2)
    matrix = sigma[2] * mean(i.value) * mean(g.slope) * mean(through)
    fresh = np.sqrt(mean(f.value**2) + square * mean(through**2))
    return TiedGain(mean(f.value), matrix, fresh)


@dataclass(frozen=True)
class ExpectedRecurrence:
    """The gradient's way back through a cell whose weights are drawn anew as large as its own.

    Spreads are in log2, and so wide that nineteen of twenty measurements of networks as they were
    drawn lie within two of them, few as the draws are.
    """

    cell: str
    formula: TiedGain
    """By formula, one entry a draw."""
    delta_log2: FloatArray
    """‖δ_t‖ over the size of the last, (T,), the mean over draws; 0 at the last step."""
    delta_log2_std: FloatArray
    """Its spread (T,)."""
    gain_log2: float
    """Gain a step of the drawn weights, the mean over the way back."""
    gain_log2_std: float
    """The spread of one such measurement."""
    carry_log2: float
    """log2 of the part of the gain that is carried; -inf without gates."""
    matrix_log2: float
    """log2 of the part that goes through the recurrent matrix."""
    carry_mean: FloatArray
    """Mean of the gate that carries, unit by unit (H,), over draws; nan without gates."""

    def __repr__(self) -> str:
        gain = f"{np.exp2(self.gain_log2):.3g}× ± {np.exp2(self.gain_log2_std) - 1:.0%} a step"
        return f"<ExpectedRecurrence: {self.cell}, {gain}, reach {self.reach:.3g} steps>"

    @cached_property
    def gain(self) -> float:
        """The factor of ‖δ‖ a step by formula, the mean over draws."""
        return float(self.formula.gain.mean())

    @property
    def reach(self) -> float:
        """Steps back to where a thousandth of the gradient is left."""
        return reach(float(np.exp2(self.gain_log2)))

    @property
    def time_scales(self) -> FloatArray:
        """-1/ln of each unit's carry: how many steps it remembers (H,); nan without gates."""
        with np.errstate(divide="ignore"):
            return np.asarray(-1.0 / np.log(self.carry_mean))

    def deviation(self, gain_log2: float) -> float:
        """Return by how many spreads a measured mean gain a step differs from the expected one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.float64(gain_log2 - self.gain_log2) / np.float64(self.gain_log2_std)
        return float(apart)


def mean_gain_log2(delta_log2: FloatArray, settling: int = SETTLING) -> FloatArray:
    """Return the mean of log2 of the gain a step over a way back, (..., T) to (...).

    The last steps are left out, as δ has come in there in a direction of its own, if there are
    enough others. -inf where the gradient has come to nothing, nan of a single step.
    """
    steps = delta_log2.shape[-1]
    top = steps - 1 - (settling if steps > 2 * settling else 0)
    if top == 0:
        return np.full(delta_log2.shape[:-1], np.nan)
    first = delta_log2[..., 0]
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(first), -np.inf, (first - delta_log2[..., top]) / top)


def _mean_part(part: FloatArray) -> float:
    """Return log2 of the mean of a part of the gain (S, T), the first step left out."""
    values = np.exp2(part[:, 1:])
    known = values[~np.isnan(values)]
    with np.errstate(divide="ignore"):
        return float(np.log2(known.mean())) if known.size else np.nan


def expected_recurrence(
    cell: str,
    weights: Weights,
    x: FloatArray | None = None,
    *,
    input_rms: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> ExpectedRecurrence:
    """Return the way back that is expected of a cell whose weights are as large as these.

    Args:
        cell: tanh, relu, lstm or gru.
        weights: one layer and direction by part: ih (G·H, I), hh (G·H, P), b_ih, b_hh (G·H,) and
            hr (P, H). Of matrices only the size of each gate's block is used, biases are kept.
        x: inputs (T, B, I); None takes 64 steps of 8 rows of normal noise, with a
            state that has settled.
        input_rms: root mean square of that noise.
        draws: number of weights that are drawn.
        seed: of the draws and the noise.

    Raises:
        ValueError: cell is unknown; fewer than 2 draws; input_rms is not a positive number.
    """
    if cell not in GATES:
        raise ValueError(f"cell must be one of {', '.join(GATES)}, not {cell!r}")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    rng, settled = np.random.default_rng(seed), 0
    if x is None:
        shape = SETTLED + STEPS, ROWS, weights["ih"].shape[1]
        settled = SETTLED
        x = rng.standard_normal(shape) * check_positive("input_rms", input_rms)
    several = {part: _alike(cell, part, one, draws, rng) for part, one in weights.items()}
    run = cells.run(cell, several, x).after(settled)
    back = run.back()
    gains = mean_gain_log2(back.delta_log2)
    with np.errstate(invalid="ignore", divide="ignore"):
        wider = np.sqrt(1.0 + 1.0 / draws) * (1.0 + 1.21 / (draws - 1))  # as Student's t has it
        spread = float(np.std(gains, ddof=1) * wider)
        return ExpectedRecurrence(
            cell=cell,
            formula=tied_gain(run),
            delta_log2=back.delta_log2.mean(0),
            delta_log2_std=back.delta_log2.std(0, ddof=1) * wider,
            gain_log2=float(gains.mean()),
            gain_log2_std=spread,
            carry_log2=_mean_part(back.carry_log2),
            matrix_log2=_mean_part(back.matrix_log2),
            carry_mean=run.carry_mean.mean(0),
        )


def _alike(
    cell: str, part: str, values: FloatArray, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Draw matrices as large as these, gate by gate (draws, …); biases stay as they are."""
    values = np.asarray(values, np.float64)
    if values.ndim == 1:
        return np.broadcast_to(values, (draws, *values.shape))
    drawn = rng.standard_normal((draws, *values.shape))
    blocks = 1 if part == "hr" else len(GATES[cell])
    for block, own in zip(np.split(drawn, blocks, 1), np.split(values, blocks), strict=True):
        block *= np.sqrt(np.mean(own**2))
    return drawn
