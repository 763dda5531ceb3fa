"""One layer and direction of a recurrent network, looked at step by step.

A front end hands over weights and inputs; the look is the same for all of them. An LSTM forgets by
design, so a size alone is neither healthy nor ill. It is compared with the sizes that fresh weights
give, drawn uniformly as PyTorch draws them, on the same inputs: `Recurrence.sizes` has both beside
each other. The same pass answers what changed weights would do (`if_changed`), which a cure asks.
To keep the cost small, a front end hands over a few rows and the last steps only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt

import numpy as np

from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.edits import Edit, Scale, Shift, Zero
from vegrad.flow.reading import Gate
from vegrad.theory.cells import GATES, Run, run

Weights = dict[str, FloatArray]
"""By part: ih, hh, b_ih, b_hh, and hr where outputs are projected."""

DRAWS = 4
# From this number of units, fresh weights differ less from each other, and take longer to run.
WIDE, FEWER = 256, 2
MOST_ROWS, MOST_STEPS = 8, 64
LEAST_STEPS = 3
IN_TIME = 2 * (1 + DRAWS) * MOST_ROWS  # The cost of a look in rows: in float64, step by step.
PARTS = {
    "ih": "weight_ih",
    "hh": "weight_hh",
    "b_ih": "bias_ih",
    "b_hh": "bias_hh",
    "hr": "weight_hr",
}


@dataclass
class Recurrence:
    """One layer and direction of a recurrent module, and what goes into it."""

    module: str
    mode: str
    """lstm, gru, tanh or relu."""
    names: Mapping[str, str]
    """Names of the parameters by part."""
    own: Weights
    x: FloatArray
    """Inputs (steps, rows, inputs), in the order in which the direction reads them."""
    length: int = 0
    """The steps that a sequence has, of which `x` are the last."""
    sizes: FloatArray = field(default_factory=lambda: np.zeros((0, 1)))
    """log2 of the gradient's size (steps back, sets): with own weights, then with fresh ones."""
    flat: FloatArray = field(default_factory=lambda: np.zeros(1))
    """Share of the gates' elements, over all steps, that are saturated (sets,)."""
    parts: FloatArray = field(default_factory=lambda: np.zeros((2, 1)))
    """What carry and matrix pass on of the gradient, a step (2, sets)."""
    expected: FloatArray = field(default_factory=lambda: np.zeros((2, 1)))
    """The same, by the formulas of `_coherent`."""

    @property
    def units(self) -> int:
        """The number of its units."""
        return len(self.own["hh"]) // len(GATES[self.mode])

    @property
    def bound(self) -> float:
        """Bound of fresh weights and biases, which PyTorch draws uniformly within ± it."""
        return 1.0 / sqrt(self.units)

    @property
    def label(self) -> str:
        """Name for messages: the module, its layer and direction."""
        _, _, suffix = self.names["hh"].rpartition("weight_hh")
        layer = f" (layer {suffix[2:].replace('_', ', ')})" if suffix else ""
        return f"{self.module or self.mode.upper()}{layer}"

    @property
    def input_rms(self) -> float:
        """Root mean square of the inputs."""
        return _rms(self.x)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """Sizes of the parameters, gate by gate."""
        found = []
        for part, values in self.own.items():
            gates = ("",) if part == "hr" else GATES[self.mode]
            for n, (gate, block) in enumerate(
                zip(gates, np.split(values, len(gates)), strict=True)
            ):
                rows = n * len(block), (n + 1) * len(block)
                found.append(Gate(self.names[part], part, gate, rows, _rms(block)))
        return tuple(found)

    def if_changed(self, trials: Sequence[Sequence[Edit]]) -> tuple[FloatArray, FloatArray]:
        """Return the sizes (steps back, trials) and saturated shares that edited weights give."""
        several = [self._changed(edits) for edits in trials]
        found = run(self.mode, _stacked(several), self.x)
        return found.back().sizes, found.flat

    def _changed(self, edits: Sequence[Edit]) -> Weights:
        parts = {name: part for part, name in self.names.items()}
        weights = dict(self.own)
        for edit in edits:
            if not isinstance(edit, Scale | Zero | Shift):
                raise TypeError(f"a cell is scaled, shifted or set to 0, not {type(edit).__name__}")
            for name in edit.parameters:
                changed = weights[parts[name]] = weights[parts[name]].copy()
                changed[slice(*edit.rows or (None,))] *= 0 if isinstance(edit, Zero) else 1
                if isinstance(edit, Scale):
                    changed[slice(*edit.rows or (None,))] *= edit.factor
                if isinstance(edit, Shift):
                    changed[slice(*edit.rows or (None,))] += edit.amount
        return weights

    def look(self, seed: int) -> FloatArray:
        """Fill in what is measured; return the outputs (steps, rows, outputs)."""
        random = np.random.default_rng(seed + 0x7EC0)
        draws = DRAWS if self.units < WIDE else FEWER
        weights = Weights()
        for part, own in self.own.items():
            weights[part] = random.random((1 + draws, *own.shape))
            weights[part] *= 2 * self.bound
            weights[part] -= self.bound
            weights[part][0] = own
        found = run(self.mode, weights, self.x)
        back = found.back()
        self.sizes, self.flat = back.sizes, found.flat
        self.parts = np.stack([_mean(back.carry_log2), _mean(back.matrix_log2)])
        self.expected = _coherent(found)
        outputs: FloatArray = found.outputs[0]
        return outputs


def _stacked(several: Sequence[Weights]) -> Weights:
    return {part: np.stack([one[part] for one in several]) for part in several[0]}


def _mean(sizes: FloatArray) -> FloatArray:
    """Return the geometric mean over the steps (sets, steps) of what is given as log2 (sets,)."""
    known = ~np.isnan(sizes)
    total = np.where(known, sizes, 0.0).sum(axis=1)
    found: FloatArray = np.exp2(total / np.maximum(known.sum(axis=1), 1))
    return found


def _coherent(found: Run) -> FloatArray:
    """Return what carry and matrix should pass on, by the means of the gates (2, sets).

    As the matrix is the same at every step, its products add up coherently:

        lstm    E f + σ E i · E(1 - g²) · E(o (1 - tanh² c))
        gru     E z + σ E(r (1 - z)(1 - n²))
        others  σ √(E φ'²)

    with σ² = units × the variance of the recurrent weights of g, n or all. It holds for weights of
    independent entries about 0, where the carry fluctuates less than the matrix passes on.
    """
    passed, carry = (np.zeros(len(found.start.h)) for _ in range(2))
    several = [tuple(step.gates) for step in found.steps]
    if found.cell == "lstm":
        lid = [g[3].value * one.tanh_c.slope for g, one in zip(several, found.steps, strict=True)
               if one.tanh_c is not None]  # fmt: skip
        carry = _over(g[1].value for g in several)
        passed = _over(g[0].value for g in several) * _over(g[2].slope for g in several)
        passed = passed * _over(lid)
    elif found.cell == "gru":
        carry = _over(g[1].value for g in several)
        passed = _over(g[0].value * (1 - g[1].value) * g[2].slope for g in several)
    else:
        passed = np.sqrt(_over(g[0].slope ** 2 for g in several))
    return np.stack([carry, passed * _spread(found)])


def _over(steps: Iterable[FloatArray]) -> FloatArray:
    """Return the mean of all steps (S, B, H), a set at a time."""
    return np.asarray(np.mean([one.mean(axis=(1, 2)) for one in steps], axis=0))


def _spread(found: Run) -> FloatArray:
    """Return σ of each set."""
    hh = found.weights["hh"]
    blocks = hh.reshape(len(hh), len(GATES[found.cell]), -1, hh.shape[2])
    matrix = blocks[:, {"lstm": 2, "gru": 2}.get(found.cell, 0)]
    if "hr" in found.weights:
        matrix = matrix @ found.weights["hr"]
    return np.asarray(np.sqrt(matrix.shape[1] * matrix.var(axis=(1, 2))))


def _rms(values: Array) -> float:
    return sqrt(float(np.mean(np.square(values)))) if values.size else 0.0
