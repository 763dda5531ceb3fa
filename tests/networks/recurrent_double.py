"""A recurrent network made of the reference, with the methods that `vegrad.truncation` calls."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import reference, reference_recurrent


@dataclass
class Gains:
    """The flow of a pass, as far as a truncation reads it."""

    gain_log2: np.ndarray
    carry_log2: np.ndarray
    matrix_log2: np.ndarray


class Double:
    """Weights N(0, (size²)/H), passes by tests/reference_recurrent.py."""

    def __init__(self, cell: str, targets: str, size: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        inputs, units, outputs = 3, 12, 2
        gates = reference_recurrent.GATES[cell]
        self.config = {"cell": cell, "targets": targets}
        self.parameters = {
            "rnn.weight_ih_l0": rng.standard_normal((gates * units, inputs)) * 0.3,
            "rnn.weight_hh_l0": rng.standard_normal((gates * units, units)) * size / units**0.5,
            "rnn.bias_ih_l0": np.zeros(gates * units),
            "rnn.bias_hh_l0": np.zeros(gates * units),
            "head.weight": rng.standard_normal((outputs, units)) / units**0.5,
            "head.bias": np.zeros(outputs),
        }
        self.gradients: dict[str, np.ndarray] = {}
        self.passes = 0

    def backward(
        self,
        x: Any,
        target: Any,
        *,
        lengths: Any = None,
        state: Any = None,
        truncation: Any = None,
        factors: Any = None,
    ) -> float:
        """Run a pass of the reference."""
        window = (truncation, truncation) if isinstance(truncation, int) else truncation
        done = reference_recurrent.run(
            self.parameters,
            x,
            target,
            **self.config,
            lengths=lengths,
            state=state,
            window=window,
            factors=factors,
        )
        self.gradients = {name: reference.value(g) for name, g in done.gradients.items()}
        self.flow = Gains(*(done.flow[f"{name}_log2"] for name in ("gain", "carry", "matrix")))
        self.passes += 1
        return done.loss
