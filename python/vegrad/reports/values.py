"""Values that tables, charts and pictures show: sizes in decades, ends of dtypes, expectations.

The flow is in log2. People read powers of ten, so everything that is drawn is in log10.
"""

from __future__ import annotations

from math import log10

import numpy as np

from vegrad.arrays.checks import FloatArray, range_of
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, times
from vegrad.reports.protocols import BesideFlow

NEAR = 10  # decades from the end of a dtype's range at which charts show that end
SURPRISE = 4.0  # spreads from the expected gain, farther than chance is likely to take one

Stripe = tuple[float, float, str]  # its outer and its inner end, and what it says


def decades(log2_values: FloatArray) -> FloatArray:
    """Convert log2 to log10, with NaN (which draws nothing) where there is no number."""
    return np.where(np.isfinite(log2_values), log2_values, np.nan) / DECADE


def rms_log2(flow: Flow) -> FloatArray:
    """Return log2 of the activations' root mean square, -inf for 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes: FloatArray = np.log2(flow.activation_rms)
    return sizes


def count_of(count: object, noun: str) -> str:
    """Write a count of things: "1 layer", "2 layers"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def gains_of(flow: Flow) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the gains (log10), those of the weights, those of the derivative, and a base.

    The bars of the derivative stand on the base: the end of the weights' bar if both pull the same
    way, else 0.
    """
    weights, derivative = decades(flow.weight_gain_log2), decades(flow.activation_gain_log2)
    base = np.where(np.sign(weights) == np.sign(derivative), weights, 0.0)
    return decades(flow.gain_log2), weights, derivative, base


def with_range(
    dtype: str, axis: tuple[float, float], data: tuple[float, float], room: float
) -> tuple[tuple[float, float], list[Stripe]]:
    """Extend an axis to the ends of a dtype's normal range that the data come near.

    Args:
        dtype: the name of a NumPy float type.
        axis: the ends of the axis, in log10.
        data: the smallest and the largest value, in log10.
        room: the part of the axis to show beyond an end.

    Returns:
        The ends of the axis, and the stripes beyond the range.
    """
    (low, high), ends = axis, range_of(dtype)
    margin = room * (high - low)
    smallest, largest = map(log10, ends)
    stripes: list[Stripe] = []
    if data[0] < smallest + NEAR:
        low = min(low, smallest - margin)
        stripes.append((low, smallest, f"below {ends[0]:.1g} {dtype} stores 0"))
    if data[1] > largest - NEAR:
        high = max(high, largest + margin)
        stripes.append((high, largest, f"above {ends[1]:.1g} {dtype} stores inf"))
    return (low, high), stripes


# What theory expects ---------------------------------------------------------------------------


def expected_delta(diagnosis: BesideFlow, flow: Flow) -> tuple[FloatArray, FloatArray]:
    """Return log10 of the expected ‖δ‖, starting at the measured last layer, and its spread.

    Both are NaN where theory has no say.
    """
    theory, last = diagnosis.expected_flow, flow.delta_log2[-1]
    if theory is None or not np.isfinite(last):
        return _unknown(flow.delta_log2)
    return decades(theory.delta_log2 + last), theory.delta_log2_std / DECADE


def expected_gain(diagnosis: BesideFlow, flow: Flow) -> tuple[FloatArray, FloatArray]:
    """Return log10 of the expected gains and their spread, NaN where theory has no say."""
    theory = diagnosis.expected_flow
    if theory is None:
        return _unknown(flow.gain_log2)
    return decades(theory.gain_log2), theory.gain_log2_std / DECADE


def expected_rms(diagnosis: BesideFlow, flow: Flow) -> tuple[FloatArray, FloatArray]:
    """Return log10 of the activations' expected root mean square, and its spread; else NaN."""
    theory = diagnosis.expected_flow
    if theory is None:
        return _unknown(flow.activation_rms)
    with np.errstate(divide="ignore", invalid="ignore"):
        return decades(np.log2(theory.activation_rms)), theory.activation_rms_std / DECADE


def _unknown(measured: FloatArray) -> tuple[FloatArray, FloatArray]:
    return (np.full(len(measured), np.nan),) * 2


def surprises(diagnosis: BesideFlow, flow: Flow) -> dict[int, str]:
    """Return the gains that chance does not explain: "expected 0.98×, measured 0.21×", by layer."""
    expected, spread = expected_gain(diagnosis, flow)
    with np.errstate(invalid="ignore", divide="ignore"):
        measured = flow.gain_log2 / DECADE
        away = np.abs(measured - expected) > SURPRISE * spread
    return {
        layer: f"expected {factor(expected[layer])}, measured {factor(measured[layer])}"
        for layer in np.flatnonzero(away & ~np.isnan(measured)).tolist()
    }


# Words -----------------------------------------------------------------------------------------


def size(log2_size: float) -> str:
    """Write log10 of a size that is given by its log2: "-12.01", or "zero"."""
    return "zero" if log2_size == -np.inf else f"{log2_size / DECADE:.2f}"


def gain(log2_gain: float) -> str:
    """Write a gain that is given by its log2: "0.21×", or a dash if it is unknown."""
    return "–" if np.isnan(log2_gain) else times(float(log2_gain))


def factor(log10_gain: float) -> str:
    """Write a gain that is given by its log10: "0.21×", or a dash if it is unknown."""
    return gain(log10_gain * DECADE)


def number(value: float) -> str:
    """Write a number with three digits: "0.958", "1.00", "12"."""
    return f"{value:#.3g}".rstrip(".")
