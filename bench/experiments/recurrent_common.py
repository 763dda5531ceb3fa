"""The parts that the experiments about recurrent networks share."""

from __future__ import annotations

import numpy as np
from vegrad import theory
from vegrad.theory import cells

PARTS = {"ih": "weight_ih", "hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}


def first_layer(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the first layer of drawn parameters as one set of weights."""
    return {part: parameters[f"rnn.{name}_l0"][None] for part, name in PARTS.items()}


def way_back(run: cells.Run) -> tuple[np.ndarray, float]:
    """Carry a gradient back; return log10 of its size by the step, and its mean gain a step."""
    sizes = run.back().delta_log2[0]
    return sizes * np.log10(2), float(np.exp2(theory.mean_gain_log2(sizes)))


def compared(found: list[float], digits: int = 3) -> str:
    """Write the mean over seeds with its standard error."""
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    return f"{np.mean(found):.{digits}f} ± {error:.{digits}f}"


def off(found: list[float], expected: float) -> str:
    """Write by how much the mean over seeds differs from what is expected, in percent."""
    return f"{100 * (np.mean(found) / expected - 1):+.1f} %"
