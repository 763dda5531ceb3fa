"""One layer and direction of a recurrent network, looked at step by step.

A front end hands over weights and inputs; the look is the same for all of them. An LSTM forgets by
design, so a size alone is neither healthy nor ill. It is compared with the sizes that fresh weights
give, drawn uniformly as PyTorch draws them, on the same inputs: `Recurrence.sizes` has both beside
each other. The same pass answers what changed weights would do (`if_changed`), which a cure asks.
To keep the cost small, a front end hands over a few rows and the last steps only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import numpy.typing as npt

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.cell import Gate
from vegrad.flow.edits import Edit, Scale, Shift, Zero
from vegrad.theory.cells import GATES, run
from vegrad.theory.recurrence import ExpectedRecurrence, expected_recurrence, tied_gain

Weights = dict[str, FloatArray]
"""By part: ih, hh, b_ih, b_hh, and hr where outputs are projected."""

DRAWS = 4
# Fresh weights of many units differ less from each other, and take longer to run: from this number
# on one draw is enough, of half as many two; and matrices are in float32.
WIDE = 512
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
    _seed: int = 0

    @property
    def units(self) -> int:
        """The number of its units."""
        return len(self.own["hh"]) // len(GATES[self.mode])

    @property
    def bound(self) -> float:
        """Bound of fresh weights and biases, which PyTorch draws uniformly within ± it."""
        return 1.0 / sqrt(self.units)

    @property
    def backwards(self) -> bool:
        """True if it reads sequences from their end."""
        return self.names["hh"].endswith("_reverse")

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
        self._seed = seed
        found = run(self.mode, self._sets(), self.x)
        back = found.back()
        self.sizes, self.flat = back.sizes, found.flat
        self.parts = np.stack([_mean(back.carry_log2), _mean(back.matrix_log2)])
        outputs: FloatArray = found.outputs[0]
        return outputs

    @cached_property
    def expected(self) -> FloatArray:
        """Return what theory expects carry and matrix to pass on, by the gates' means (2, sets).

        It takes a further pass, which only a finding asks for.
        """
        gain = tied_gain(run(self.mode, self._sets(), self.x))
        return np.stack([gain.carry, gain.matrix])

    @cached_property
    def anew(self) -> ExpectedRecurrence:
        """The way back through weights as large as its own that are drawn anew, on its inputs."""
        return expected_recurrence(self.mode, self.own, self.x, seed=self._seed)

    def _sets(self) -> Weights:
        """Return its own weights and those drawn anew, the sets as the first axis."""
        random = np.random.default_rng(self._seed + 0x7EC0)
        draws = min(DRAWS, max(WIDE // self.units, 1))
        weights = Weights()
        for part, own in self.own.items():
            drawn = random.random((1 + draws, *own.shape))
            drawn *= 2 * self.bound
            drawn -= self.bound
            drawn[0] = own
            narrow = part == "hh" and 2 * self.units >= WIDE  # read at each step, forward and back
            dtype: npt.DTypeLike = np.float32 if narrow else np.float64
            weights[part] = drawn.astype(dtype, copy=False)
        return weights


def _stacked(several: Sequence[Weights]) -> Weights:
    return {part: np.stack([one[part] for one in several]) for part in several[0]}


def _mean(sizes: FloatArray) -> FloatArray:
    """Return the geometric mean over the steps (sets, steps) of what is given as log2 (sets,)."""
    known = ~np.isnan(sizes)
    total = np.where(known, sizes, 0.0).sum(axis=1)
    found: FloatArray = np.exp2(total / np.maximum(known.sum(axis=1), 1))
    return found


def _rms(values: Array) -> float:
    return sqrt(float(np.mean(np.square(values)))) if values.size else 0.0
