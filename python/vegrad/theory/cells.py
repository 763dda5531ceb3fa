"""The recurrent cells in float64, step by step, for several sets of weights at once.

`run` takes inputs forward through a cell; `Run.back` carries a gradient that enters at the last
output back through all steps, and tells how large it is at each, what part of it is carried and
what part goes through the recurrent matrix. The formulas and the order of the gates are those of
PyTorch. Front ends measure their cells with it, theory takes the means of gates from it.

It must guarantee sizes far beyond what float64 can hold: a power of two is taken out of each step's
gradient, and slopes of gates are computed from pre-activations, so that they keep their digits
where a gate is saturated. A recurrent matrix of float32 is multiplied in float32, all else is in
float64. It leaves out gradients of parameters, which the core has.

Letters: S sets of weights, T steps, B rows, I inputs, H units, P outputs (H, unless an LSTM has
projections), G gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray

Weights: TypeAlias = Mapping[str, FloatArray]
"""ih (S, G·H, I), hh (S, G·H, P), b_ih and b_hh (S, G·H), which may be missing, and of an LSTM with
projections hr (S, P, H)."""

GATES: Mapping[str, tuple[str, ...]] = {
    "tanh": ("",),
    "relu": ("",),
    "lstm": ("input", "forget", "cell", "output"),
    "gru": ("reset", "update", "new"),
}
"""Blocks of H rows of a cell's parameters, in PyTorch's order."""
CARRY: Mapping[str, str] = {"lstm": "forget", "gru": "update"}
"""The gate by which a cell carries its state on."""
SATURATED = 0.05  # of the largest slope: below it an element of a gate counts as saturated


@dataclass(frozen=True)
class Gate:
    """A gate at one step, or at all of them: its values and their derivatives."""

    value: FloatArray
    slope: FloatArray


def sigmoid(z: FloatArray) -> Gate:
    """Return σ(z) and σ′(z), which keeps its digits at both ends."""
    e = np.exp(-np.abs(z))
    return Gate(np.where(z >= 0, 1.0, e) / (1.0 + e), e / (1.0 + e) ** 2)


def tanh(z: FloatArray) -> Gate:
    """Return tanh z and tanh′ z, which keeps its digits at both ends."""
    e = np.exp(-2.0 * np.abs(z))
    return Gate(np.tanh(z), 4.0 * e / (1.0 + e) ** 2)


def relu(z: FloatArray) -> Gate:
    """Return max(z, 0) and its derivative, 0 at 0."""
    return Gate(np.maximum(z, 0.0), np.asarray(z > 0, np.float64))


@dataclass(frozen=True)
class Step:
    """One step of a cell: the state after it, and what the way back needs."""

    h: FloatArray
    """Outputs (S, B, P)."""
    gates: tuple[Gate, ...]
    """Each (S, B, H), in the order of the cell's rows."""
    c: FloatArray | None = None
    """Cell state (S, B, H) of an LSTM."""
    tanh_c: Gate | None = None
    m: FloatArray | None = None
    """U_n h + b_hn (S, B, H) of a GRU."""


def _vanilla(cell: str, given: FloatArray, recurrent: FloatArray) -> Step:
    gate = (tanh if cell == "tanh" else relu)(given + recurrent)
    return Step(gate.value, (gate,))


def _lstm(given: FloatArray, recurrent: FloatArray, before: Step, hr: FloatArray | None) -> Step:
    i, f, g, o = np.split(given + recurrent, 4, -1)
    gates = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    assert before.c is not None
    c = gates[1].value * before.c + gates[0].value * gates[2].value
    tanh_c = tanh(c)
    h = gates[3].value * tanh_c.value
    return Step(h if hr is None else h @ hr.swapaxes(-1, -2), gates, c, tanh_c)


def _gru(given: FloatArray, recurrent: FloatArray, before: Step) -> Step:
    rows = given.shape[-1] // 3
    both = given[..., : 2 * rows] + recurrent[..., : 2 * rows]
    m = recurrent[..., 2 * rows :]
    r, z = sigmoid(both[..., :rows]), sigmoid(both[..., rows:])
    n = tanh(given[..., 2 * rows :] + r.value * m)
    h = n.value + z.value * (before.h - n.value)
    return Step(h, (r, z, n), m=m)


def _vanilla_back(step: Step, delta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the gradient at the pre-activations and what is carried past them, which is 0."""
    return delta * step.gates[0].slope, np.zeros_like(delta)


def _lstm_back(
    step: Step, before: Step, delta: FloatArray, kappa: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the gradient at the pre-activations (S, B, 4·H), and κ of the step before."""
    i, f, g, o = step.gates
    assert before.c is not None
    assert step.tanh_c is not None
    at = (
        kappa * g.value * i.slope,
        kappa * before.c * f.slope,
        kappa * i.value * g.slope,
        delta * step.tanh_c.value * o.slope,
    )
    return np.concatenate(at, -1), kappa * f.value


def _gru_back(
    step: Step, before: Step, delta: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the gradients at the pre-activations and at U h (S, B, 3·H), and what is carried."""
    r, z, n = step.gates
    assert step.m is not None
    nu = delta * (1.0 - z.value) * n.slope
    zeta = delta * (before.h - n.value) * z.slope
    rho = nu * step.m * r.slope
    at = np.concatenate([rho, zeta, nu], -1)
    return at, np.concatenate([rho, zeta, nu * r.value], -1), delta * z.value


@dataclass(frozen=True)
class Run:
    """A cell's pass over some inputs, with several sets of weights."""

    cell: str
    weights: Weights
    start: Step
    """The state before the first step."""
    steps: tuple[Step, ...]

    @property
    def outputs(self) -> FloatArray:
        """Outputs h of all steps, (S, T, B, P)."""
        return np.stack([step.h for step in self.steps], 1)

    @cached_property
    def gates(self) -> dict[str, Gate]:
        """Values and slopes of each gate over all steps, (S, T, B, H), by name."""
        found = {}
        for place, name in enumerate(GATES[self.cell]):
            several = [step.gates[place] for step in self.steps]
            values = np.stack([one.value for one in several], 1)
            found[name] = Gate(values, np.stack([one.slope for one in several], 1))
        return found

    @cached_property
    def flat(self) -> FloatArray:
        """Share of the gates' elements, over all steps, that are saturated (S,).

        An element is where its derivative is below 5 % of the largest; none of relu's are.
        """
        shares = []
        for place, name in enumerate(GATES[self.cell]):
            largest = 1.0 if self.cell in ("tanh", "relu") or name in ("cell", "new") else 0.25
            low = 0.0 if self.cell == "relu" else SATURATED * largest
            slopes = (step.gates[place].slope for step in self.steps)
            shares.append(np.mean([np.mean(one < low, axis=(1, 2)) for one in slopes], axis=0))
        return np.asarray(np.mean(shares, axis=0))

    @property
    def carry_mean(self) -> FloatArray:
        """Mean over steps and rows of the gate that carries the state (S, H); nan without gates."""
        if self.cell not in CARRY:
            return np.full((len(self.start.h), self.weights["hh"].shape[-1]), np.nan)
        return np.asarray(self.gates[CARRY[self.cell]].value.mean((1, 2)))

    def after(self, steps: int) -> Run:
        """Return the run without its first steps, in which a state of zeros settles."""
        start = self.steps[steps - 1] if steps else self.start
        return Run(self.cell, self.weights, start, self.steps[steps:])

    def back(self, last: FloatArray | None = None) -> Back:
        """Carry a gradient at the last output back through all steps.

        Args:
            last: it, (B, P) or (S, B, P); None takes a random direction, always the same one.
        """
        shape = self.steps[-1].h.shape
        if last is None:
            last = np.random.default_rng(0).standard_normal(shape[1:])
        way = _Way(self, np.broadcast_to(last, shape))
        for t in range(len(self.steps) - 1, -1, -1):
            way.step(t)
        return way.back


@dataclass(frozen=True)
class Back:
    """A gradient's way back from the last output: log2 of sizes, (S, T) in the order of time.

    Parts of a step's gain are as in the time flow of a network: of an LSTM they are what becomes of
    κ, the gradient at c. -inf is exactly 0, and nan where there is nothing to divide.
    """

    delta_log2: FloatArray
    """‖δ_t‖ over the size of the gradient that came in, δ that at the output h_t."""
    gain_log2: FloatArray
    """‖δ_{t-1}‖/‖δ_t‖; at the first step, that into the state before it."""
    carry_log2: FloatArray
    """The part of the gain that is carried past the matrix; -inf without gates."""
    matrix_log2: FloatArray
    """The part that goes through the recurrent matrix; of an LSTM nan at the first step."""
    at_log2: FloatArray
    """The gradient at the pre-activations, by which the parameters learn from that step, over the
    size of the gradient that came in."""

    @property
    def sizes(self) -> FloatArray:
        """`at_log2` as (steps back, S), the last step first."""
        return np.ascontiguousarray(self.at_log2.T[::-1])


class _Way:
    """The state of a gradient on its way back."""

    def __init__(self, run: Run, last: FloatArray) -> None:
        self.run = run
        size = _norm(last)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.delta = np.where(_wide(size) > 0, last / _wide(size), 0.0)
        units = run.weights["hh"].shape[1] // len(GATES[run.cell])
        self.kappa = np.zeros((*last.shape[:2], units))
        self.exponent = np.zeros(len(last))
        shape = len(last), len(run.steps)
        self.back = Back(*(np.full(shape, np.nan) for _ in range(5)))

    def step(self, t: int) -> None:
        """Go from step t to the one before."""
        run, weights = self.run, self.run.weights
        step, before = run.steps[t], run.steps[t - 1] if t else run.start
        delta, size = self.delta, _norm(self.delta)
        if run.cell == "lstm":
            inner = delta @ weights["hr"] if "hr" in weights else delta
            assert step.tanh_c is not None
            kappa = self.kappa + inner * step.gates[3].value * step.tanh_c.slope
            at, self.kappa = _lstm_back(step, before, inner, kappa)
            self.delta = through = _product(at, weights["hh"])
            parts = _norm(self.kappa), self._into_cell(before, through), _norm(kappa)
        else:
            if run.cell == "gru":
                at, product, carried = _gru_back(step, before, delta)
            else:
                at, carried = _vanilla_back(step, delta)
                product = at
            through = _product(product, weights["hh"])
            self.delta = carried + through
            parts = _norm(carried), _norm(through), size
        self._write(t, size, _norm(at), parts)

    def _into_cell(self, before: Step, through: FloatArray) -> FloatArray:
        """Return the size of what comes to the cell state of the step before by the matrix."""
        if before.tanh_c is None:
            return np.full(len(through), np.nan)
        inner = through @ self.run.weights["hr"] if "hr" in self.run.weights else through
        return _norm(inner * before.gates[3].value * before.tanh_c.slope)

    def _write(
        self,
        t: int,
        size: FloatArray,
        at: FloatArray,
        parts: tuple[FloatArray, FloatArray, FloatArray],
    ) -> None:
        """Note the sizes of step t, and take a power of two out of the gradient."""
        carried, through, whole = parts
        back, after = self.back, _norm(self.delta)
        with np.errstate(divide="ignore", invalid="ignore"):
            back.delta_log2[:, t] = np.log2(size) + self.exponent
            back.at_log2[:, t] = np.log2(at) + self.exponent
            back.gain_log2[:, t] = np.log2(after / size)
            back.carry_log2[:, t] = np.log2(carried / whole)
            back.matrix_log2[:, t] = np.log2(through / whole)
        largest = np.maximum(after, _norm(self.kappa))
        exponent = np.where(largest > 0, np.frexp(largest)[1], 0)
        self.delta = np.ldexp(self.delta, -_wide(exponent))
        self.kappa = np.ldexp(self.kappa, -_wide(exponent))
        self.exponent = self.exponent + exponent


def _norm(several: FloatArray) -> FloatArray:
    """Return the norm of each set's entries (S,), of entries whose squares underflow too."""
    flat = several.reshape(len(several), -1)
    largest = np.abs(flat).max(axis=1)
    flat = flat / np.where(largest > 0, largest, 1.0)[:, None]
    return np.asarray(largest * np.sqrt(np.sum(flat * flat, axis=1)))


def _product(several: FloatArray, matrices: FloatArray) -> FloatArray:
    """Return products in the dtype of the matrices, of entries beyond its range too.

    What is beyond that of float64 is infinite, or NaN where infinities meet.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if matrices.dtype == several.dtype:
            return np.asarray(several @ matrices)
        exponent = _wide(np.frexp(np.abs(several).max(axis=(1, 2)))[1])
        scaled = np.ldexp(several, -exponent).astype(matrices.dtype)
        return np.asarray(np.ldexp((scaled @ matrices).astype(np.float64), exponent))


def _wide(one_a_set: FloatArray) -> FloatArray:
    return one_a_set[:, None, None]


def run(cell: str, weights: Weights, x: FloatArray, state: Sequence[FloatArray] = ()) -> Run:
    """Take inputs through a cell, with all sets of weights.

    Args:
        cell: tanh, relu, lstm or gru.
        weights: by part, float64, all with the sets as their first axis; hh may be float32.
        x: inputs (T, B, I), or (S, T, B, I) where each set has its own.
        state: h (B, P) or (S, B, P) before the first step and, of an LSTM, c; zeros if left out.
    """
    sets, rows, outputs = weights["hh"].shape
    units = rows // len(GATES[cell])
    steps, batch = x.shape[-3:-1]
    parts = x.reshape(*x.shape[:-3], steps * batch, x.shape[-1]) @ weights["ih"].swapaxes(-1, -2)
    if "b_ih" in weights:
        parts = parts + weights["b_ih"][:, None]
    parts = np.moveaxis(parts.reshape(sets, steps, batch, rows), 1, 0)
    h, c = (
        np.broadcast_to(state[n] if len(state) > n else 0.0, (sets, batch, width))
        for n, width in enumerate((outputs, units))
    )
    start = before = Step(h, (), c if cell == "lstm" else None)
    taken, hh = list[Step](), np.ascontiguousarray(weights["hh"].swapaxes(-1, -2))
    bias = weights["b_hh"][:, None] if "b_hh" in weights else 0.0
    for given in parts:
        recurrent = _product(before.h, hh) + bias
        if cell == "lstm":
            before = _lstm(given, recurrent, before, weights.get("hr"))
        elif cell == "gru":
            before = _gru(given, recurrent, before)
        else:
            before = _vanilla(cell, given, recurrent)
        taken.append(before)
    return Run(cell, weights, start, tuple(taken))
