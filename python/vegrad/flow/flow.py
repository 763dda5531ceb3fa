"""The gradient flow of one pass: how signal and gradient travelled through a chain of layers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log10
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray


@dataclass(frozen=True)
class Flow:
    """How signal and gradient travelled through the layers in one forward and backward pass.

    Float64 arrays with one entry a layer, the layer nearest the input first; the three gains have
    one entry fewer: entry l compares layer l with layer l + 1 above it. δ_l is the gradient of
    the mean loss with respect to layer l's pre-activations z_l, batch and units together, and ‖·‖
    the Frobenius norm. Sizes are carried with a power-of-two exponent a layer, so that they are
    right where the dtype of the network underflows or overflows. A norm of exactly zero is -inf.
    """

    activation_rms: FloatArray
    """Root mean square of the layer's output."""
    preactivation_mean: FloatArray
    """Mean of z_l = W_l h + b_l, before normalization."""
    preactivation_std: FloatArray
    """Standard deviation of z_l (population)."""
    saturated: FloatArray
    """Fraction of elements whose |φ′| is under 5 % of its largest value."""
    dead: FloatArray
    """Fraction of units with φ′ = 0 on the whole batch."""
    delta_log2: FloatArray
    """log2 ‖δ_l‖."""
    gradient_log2: FloatArray
    """log2 ‖∂loss/∂W_l‖."""
    weight_gain_log2: FloatArray
    """log2 ‖δ_{l+1} W_{l+1}‖/‖δ_{l+1}‖."""
    activation_gain_log2: FloatArray
    """log2 ‖δ_l‖/‖δ_{l+1} W_{l+1}‖: the derivative, with normalization and skip connection."""

    @property
    def gain_log2(self) -> FloatArray:
        """log2 ‖δ_l‖/‖δ_{l+1}‖, the sum of the weights' and the activation's gain."""
        return _log_ratio(self.delta_log2[:-1], self.delta_log2[1:])

    @property
    def chain_log10(self) -> float:
        """log10 ‖δ_1‖/‖δ_L‖: what is left of the gradient at the first layer."""
        return float(_log_ratio(self.delta_log2[:1], self.delta_log2[-1:])[0]) * log10(2.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and floats, by name."""
        result: dict[str, Any] = {f.name: getattr(self, f.name).tolist() for f in fields(self)}
        return result | {"gain_log2": self.gain_log2.tolist(), "chain_log10": self.chain_log10}


def _log_ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):  # 0/0 is nan
        return numerator - denominator
