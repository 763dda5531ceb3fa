"""Numbers and layers in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite, isnan, log2

import numpy as np

from vegrad.arrays.checks import FloatArray

DECADE = log2(10.0)  # the flow is in log2; limits are in decades, powers of ten


def times(log2_factor: float) -> str:
    """A factor given by its log2: 0.21×, 1.04×, 3.1e-12×."""
    return power(log2_factor / DECADE, digits=1) + "×"


def power(log10_size: float, digits: int = 0) -> str:
    """A size given by its log10, also beyond the range of floats: 0.34, 1e-32, 2e+5000."""
    if not isfinite(log10_size):
        return "?" if isnan(log10_size) else "0" if log10_size < 0 else "inf"
    if abs(log10_size) < 3:
        value = 10.0**log10_size
        if value < 0.995:
            return f"{value:#.2g}"
        return f"{value:.2f}" if value < 9.995 else f"{value:#.3g}".rstrip(".")
    exponent = floor(log10_size)
    mantissa = f"{10.0 ** (log10_size - exponent):.{digits}f}"
    if mantissa.startswith("10"):
        mantissa, exponent = f"{1.0:.{digits}f}", exponent + 1
    return f"{mantissa}e{exponent:+d}"


def named(layers: Sequence[int]) -> str:
    """In words: "layer 3", "layers 3–5, 9"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(texts)}"


def exp2(value: float) -> float:
    """2 to the power of `value`, 0 or inf where a float ends."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp2(np.float64(value)))


def finite_mean(values: FloatArray) -> float:
    """The mean of the finite values; 0 if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else 0.0
