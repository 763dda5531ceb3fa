"""The gradient flow through time: how a gradient travelled back through a recurrent network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf, log2

import numpy as np

from vegrad.arrays.checks import FloatArray

LEFT = 1e-3  # of the first gradient, where it counts as gone


@dataclass(frozen=True)
class TimeFlow:
    """How signal and gradient travelled through layers and steps in one forward and backward pass.

    Float64 arrays of shape (L, T), the layer nearest the input first, or (L, H). δ_t is the
    gradient of the mean loss with respect to h_t of a layer, with all that comes back from later
    steps; κ_t is the same for the c_t of an LSTM. Norms are taken over rows and units together, of
    the rows that are there at a step: rows of unequal length begin at step 0 if there is a target
    at each step, else they end at step T - 1. Sizes are carried with powers of two, so that they
    are right where the dtype of the network underflows or overflows. A size of exactly zero is
    -inf; what was not measured, as where a truncation has cut, is nan.
    """

    delta_log2: FloatArray
    """log2 of the root mean square of δ_t (L, T)."""
    gain_log2: FloatArray
    """log2 ‖what goes from δ_t to step t - 1‖/‖δ_t‖, before a gradient that enters there is added;
    at t = 0 what goes into the initial state (L, T)."""
    cell_gain_log2: FloatArray
    """log2 of the same for the c_t of an LSTM, ‖what goes from step t to κ_{t-1}‖/‖κ_t‖; nan of
    other cells (L, T)."""
    carry_log2: FloatArray
    """log2 of the part of it that a gate carries: of an LSTM ‖κ_t f_t‖/‖κ_t‖, of a GRU
    ‖δ_t z_t‖/‖δ_t‖; -inf of cells without gates (L, T)."""
    matrix_log2: FloatArray
    """log2 of the part that goes through the recurrent matrix: of an LSTM from κ_t to κ_{t-1}, over
    ‖κ_t‖; else over ‖δ_t‖ (L, T). The two parts may point against each other, so that their sum can
    be smaller than either."""
    hidden_log2: FloatArray
    """log2 of the root mean square of h_t (L, T)."""
    carry_mean: FloatArray
    """Mean of the carrying gate over rows and steps: f of an LSTM, z of a GRU; else nan (L, H)."""
    every_step: bool = False
    """True if the loss enters at each step, which hides the decay of δ from step to step."""
    through_cell: bool = False
    """True of an LSTM, whose cell state carries a gradient on that δ does not show."""

    @property
    def passed_log2(self) -> FloatArray:
        """log2 of what a step passes on of a gradient that came from later ones (L, T).

        The gain, of an LSTM that of the cell state: where the loss or the layer above adds to δ at
        each step, δ_t is mostly that, while what came from later steps is in κ_t.
        """
        return self.cell_gain_log2 if self.through_cell else self.gain_log2

    @property
    def left_log2(self) -> FloatArray:
        """log2 of what each step gets of the last step's gradient (L, T); nan if not measured.

        That is δ over the last δ. Of an LSTM, of which δ shows only what comes through U, and where
        the loss enters at each step, it is what the gains of the steps leave.
        """
        if not (self.every_step or self.through_cell):
            last = self.delta_log2[:, -1:]
            return self.delta_log2 - np.where(np.isfinite(last), last, np.nan)
        back = np.cumsum(self.passed_log2[:, :0:-1], axis=1)[:, ::-1]
        return np.concatenate([back, np.zeros((len(back), 1))], axis=1)

    @property
    def reach(self) -> FloatArray:
        """Number of steps back from the last to where a thousandth of the gradient is left (L,).

        Measured, where it lies within the steps (`left_log2`). Else 3 ln 10/-ln g with the mean
        gain g of the steps; inf if the gradient does not shrink, nan if nothing was measured.
        """
        return np.array([self._reach(layer) for layer in range(len(self.gain_log2))])

    @property
    def time_scales(self) -> FloatArray:
        """Steps over which each unit keeps what it holds, -1/ln(carry_mean) (L, H)."""
        with np.errstate(divide="ignore"):
            return 1.0 / np.abs(np.log(self.carry_mean))

    def _reach(self, layer: int) -> float:
        # From the last step back; what leaves step 0 is left out.
        gains = self.passed_log2[layer, :0:-1]
        measured = np.isnan(gains)
        gains = gains[: int(measured.argmax()) if measured.any() else None]
        if not len(gains):
            return np.nan
        sizes = self.left_log2[layer, ::-1][: len(gains) + 1]
        limit = log2(LEFT)
        beyond = np.flatnonzero(sizes <= limit)
        if len(beyond):
            end = int(beyond[0])
            before, after = float(sizes[end - 1]), float(sizes[end])
            part = 1.0 if after == -inf else (limit - before) / (after - before)
            return end - 1 + part
        mean = float(sizes[-1]) / len(gains)
        return limit / mean if mean < 0 else inf

    def to_dict(self) -> dict[str, object]:
        """Return plain lists by name, with reach and time scales."""
        result: dict[str, object] = {
            one.name: np.asarray(getattr(self, one.name)).tolist() for one in fields(self)
        }
        return result | {"reach": self.reach.tolist(), "time_scales": self.time_scales.tolist()}
