"""The charts of a page: the flow and what theory expects of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, power, times
from vegrad.reports.svg import Chart, Entry, figure, plain_ticks, power_ticks, reach
from vegrad.reports.text import NEAR

MOST_HINTS = 120  # layers up to which each has one; beyond, a pointer cannot tell them apart
LONGEST = 24  # letters in a chart that name layers
SURPRISE = 4.0  # spreads from the expected gain, as far as hardly any lies by chance

EXPECTED: Entry = (
    "expected, with two spreads of chance",
    [("area", "f-expected"), ("line", "dashed s-ink")],
)


# The flow --------------------------------------------------------------------------------------


def gradient(diagnosis: Any, flow: Flow) -> str:
    """δ of every layer, measured beside expected, and what the dtype has lost."""
    layers = np.arange(len(flow.delta_log2))
    delta, weights = _decades(flow.delta_log2), _decades(flow.gradient_log2)
    expected, spread = expected_delta(diagnosis, flow)
    low, high = expected - 2 * spread, expected + 2 * spread
    dtype = diagnosis.config.get("dtype", "float64")
    bottom, top, ends = _with_range(dtype, *reach([delta, weights, low, high], least=3.0))
    words = f"log10 of the size of δ over {len(layers)} layers: {_from_to(delta)}."
    if np.isfinite(expected).any():
        words += f" Expected: {_from_to(expected)}."
    chart = Chart("gradient", "The gradient, layer by layer", words, _sides(layers), (bottom, top))
    legend: list[Entry] = [
        ("measured at the pre-activations, ‖δ‖", [("line", "s-gradient"), ("dots", "s-gradient")]),
        ("measured at the weights, ‖∂loss/∂W‖", [("line", "thin s-soft")]),
    ]
    chart.y_axis(power_ticks(bottom, top))
    for outer, inner, what in ends:
        chart.area(outer, inner, "f-alarm")
        chart.rule(inner, "thin s-alarm")
        chart.text(layers[-1], inner, what, "alarm-text", "end", 14 if outer < inner else -7)
    if np.isfinite(expected).any():
        chart.band(layers, low, high, "f-expected")
        chart.line(layers, expected, "dashed s-ink")
        legend.append(EXPECTED)
    chart.line(layers, weights, "thin s-soft")
    chart.line(layers, delta, "s-gradient")
    chart.dots(layers, delta, f"{_dot(layers)} s-gradient")
    for lost, word in ((diagnosis.underflowed, "0.0"), (diagnosis.overflowed, "inf")):
        places, ring = list(lost), [("dots", "large s-alarm"), ("dots", "middle s-card")]
        if len(layers) > MOST_HINTS:
            ring = [("line", "thick s-alarm")]
            there = np.isin(layers, places)
            chart.line(layers, np.where(there, weights, np.nan), "thick s-alarm")
        else:
            chart.dots(places, weights[places], "large s-alarm")
            chart.dots(places, weights[places], "middle s-card")
        if places:
            legend.append((f"stored as {word} in {dtype}", ring))
    _unmeasured(chart, flow.delta_log2)
    chart.x_axis(plain_ticks(0, len(layers) - 1, whole=True))
    chart.hints(
        (
            layer,
            f"layer {layer}: ‖δ‖ {power(delta[layer], 1)}"
            + (f", expected {power(expected[layer], 1)}" if np.isfinite(expected[layer]) else "")
            + f"; ‖∂loss/∂W‖ {power(weights[layer], 1)}",
        )
        for layer in _hinted(layers)
        if np.isfinite(delta[layer])
    )
    return figure(
        "The gradient, layer by layer", chart, legend, aside="← the backward pass runs this way"
    )


def gains(diagnosis: Any, flow: Flow, note: str = "") -> str:
    """Measured gains beside expected, split into weights and derivative; `note` is HTML."""
    layers = np.arange(len(flow.gain_log2))
    title = "Gain = weights × derivative"
    if not len(layers):
        return figure(title, "one layer has no chain of gradients")
    gain, weights = _decades(flow.gain_log2), _decades(flow.weight_gain_log2)
    derivative = _decades(flow.activation_gain_log2)
    expected, spread = expected_gain(diagnosis, flow)
    low, high = expected - 2 * spread, expected + 2 * spread
    same = np.sign(weights) == np.sign(derivative)
    base = np.where(same, weights, 0.0)
    drawn = [gain, weights, base + derivative, low, high, np.zeros(1)]
    bottom, top = reach(drawn, least=0.9)
    words = f"Gains of {len(layers)} layers, from {times(_least(gain))} to {times(_most(gain))}."
    chart = Chart("gains", title, words, _sides(np.arange(len(layers) + 1)), (bottom, top))
    legend: list[Entry] = [
        ("gain, measured", [("line", "thin s-ink"), ("dots", "s-ink")]),
        ("of the weights", [("area", "f-weights")]),
        ("of the activation's derivative", [("area", "f-derivative")]),
    ]
    chart.y_axis(power_ticks(bottom, top, "×"))
    chart.bars(layers, np.zeros(len(layers)), weights, "f-weights")
    chart.bars(layers, base, base + derivative, "f-derivative")
    chart.rule(0.0, "thin s-soft")
    if np.isfinite(expected).any():
        chart.band(layers, low, high, "f-expected")
        chart.line(layers, expected, "dashed s-ink")
        legend.insert(1, EXPECTED)
    chart.line(layers, gain, "thin s-ink")
    chart.dots(layers, gain, f"{_dot(layers)} s-ink")
    _unmeasured(chart, flow.gain_log2, "the gain is 0 at")
    chart.x_axis(plain_ticks(0, len(layers), whole=True))
    hints = []
    for layer in _hinted(layers):
        words = f"layer {layer}: gain {_times(gain[layer])}"
        if np.isfinite(expected[layer]):
            words += f", expected {_times(expected[layer])}"
        words += f" = {_times(weights[layer])} of the weights, {_times(derivative[layer])} of the "
        hints.append((float(layer), words + "derivative"))
    chart.hints(hints)
    return figure(
        title, chart, legend, aside="above 1× the gradient grows, below it shrinks", note=note
    )


def flat(flow: Flow) -> str:
    """Saturated elements and dead units."""
    layers = np.arange(len(flow.saturated))
    saturated, dead = 100 * flow.saturated, 100 * flow.dead
    words = f"Saturated elements: up to {_most(saturated):.3g} %. Dead units: up to "
    words += f"{_most(dead):.3g} %."
    chart = Chart("flat", "Saturated and dead", words, _sides(layers), (-4.0, 104.0), 170)
    chart.y_axis([(n, f"{n} %") for n in (0, 25, 50, 75, 100)])
    chart.bars(layers, np.zeros(len(layers)), saturated, "f-derivative")
    chart.line(layers, dead, "s-ink")
    chart.dots(layers, dead, f"{_dot(layers)} s-ink")
    if max(_most(saturated), _most(dead)) < 0.5:
        chart.text((len(layers) - 1) / 2, 45, "hardly any", "faint-text")
    chart.x_axis(plain_ticks(0, len(layers) - 1, whole=True))
    chart.hints(
        (layer, f"layer {layer}: {saturated[layer]:.3g} % saturated, {dead[layer]:.3g} % dead")
        for layer in _hinted(layers)
    )
    legend: list[Entry] = [
        ("saturated elements", [("area", "f-derivative")]),
        ("dead units", [("line", "s-ink"), ("dots", "s-ink")]),
    ]
    return figure("Saturated and dead", chart, legend)


def activations(diagnosis: Any, flow: Flow) -> str:
    """Root mean square of every layer's output, measured beside expected."""
    layers = np.arange(len(flow.activation_rms))
    expected = spread = np.full(len(layers), np.nan)
    theory: Any = getattr(diagnosis, "expected", None)
    with np.errstate(divide="ignore", invalid="ignore"):
        rms_log2 = np.log2(flow.activation_rms)
        if hasattr(theory, "activation_rms_std"):
            expected = _decades(np.log2(theory.activation_rms))
            spread = theory.activation_rms_std / DECADE
    size = _decades(rms_log2)
    low, high = expected - 2 * spread, expected + 2 * spread
    bottom, top = reach([size, low, high], least=2.0)
    words = f"log10 of the activations' root mean square: {_from_to(size)}."
    chart = Chart("activations", "Activations", words, _sides(layers), (bottom, top), 170)
    chart.y_axis(power_ticks(bottom, top, most=5))
    measured = [("line", "s-gradient"), ("dots", "s-gradient")]
    legend: list[Entry] = [("measured, root mean square", measured)]
    if np.isfinite(expected).any():
        chart.band(layers, low, high, "f-expected")
        chart.line(layers, expected, "dashed s-ink")
        legend.append(EXPECTED)
    chart.line(layers, size, "s-gradient")
    chart.dots(layers, size, f"{_dot(layers)} s-gradient")
    _unmeasured(chart, rms_log2)
    chart.x_axis(plain_ticks(0, len(layers) - 1, whole=True))
    chart.hints(
        (layer, f"layer {layer}: {flow.activation_rms[layer]:.3g}") for layer in _hinted(layers)
    )
    return figure("Activations", chart, legend, aside="the forward pass runs this way →")


def sizes(names: Sequence[str], norm_log2: FloatArray) -> str:
    """The gradients' norms, where only they were measured."""
    places, norms = np.arange(len(names)), _decades(norm_log2)
    bottom, top = reach([norms], least=3.0)
    words = f"log10 of the norm of {len(names)} gradients: {_from_to(norms)}."
    chart = Chart("sizes", "The gradients' sizes", words, _sides(places), (bottom, top))
    chart.y_axis(power_ticks(bottom, top))
    chart.line(places, norms, "s-gradient")
    chart.dots(places, norms, f"{_dot(places)} s-gradient")
    _unmeasured(chart, norm_log2, names=names)
    chart.x_axis(plain_ticks(0, len(names) - 1, whole=True))
    chart.hints((n, f"{names[n]}: {power(norms[n], 1)}") for n in _hinted(places))
    return figure("The gradients' sizes", chart, aside="from the input to the output")


# What theory expects ---------------------------------------------------------------------------


def expected_delta(diagnosis: Any, flow: Flow) -> tuple[FloatArray, FloatArray]:
    """log10 of the expected ‖δ‖ and its spread, from the measured last layer on; else NaN."""
    theory: Any = getattr(diagnosis, "expected", None)
    unknown = np.full(len(flow.delta_log2), np.nan)
    last = flow.delta_log2[-1]
    if not hasattr(theory, "delta_log2_std") or not np.isfinite(last):
        return unknown, unknown
    return _decades(theory.delta_log2 + last), theory.delta_log2_std / DECADE


def expected_gain(diagnosis: Any, flow: Flow) -> tuple[FloatArray, FloatArray]:
    """log10 of the expected gains and their spread; else NaN."""
    theory: Any = getattr(diagnosis, "expected", None)
    unknown = np.full(len(flow.gain_log2), np.nan)
    if not hasattr(theory, "gain_log2_std"):
        return unknown, unknown
    return _decades(theory.gain_log2), theory.gain_log2_std / DECADE


def surprises(diagnosis: Any, flow: Flow) -> dict[int, str]:
    """By layer, the gains that chance does not explain: "expected 0.98×, measured 0.21×"."""
    expected, spread = expected_gain(diagnosis, flow)
    with np.errstate(invalid="ignore", divide="ignore"):
        measured = flow.gain_log2 / DECADE
        away = np.abs(measured - expected) > SURPRISE * spread
    return {
        layer: f"expected {_times(expected[layer])}, measured {_times(measured[layer])}"
        for layer in np.flatnonzero(away & ~np.isnan(measured)).tolist()
    }


# What the charts share -------------------------------------------------------------------------


def _decades(log2_values: Any) -> FloatArray:
    """In log10, NaN (which draws nothing) where there is no number."""
    return np.where(np.isfinite(log2_values), log2_values, np.nan) / DECADE


def _with_range(
    dtype: str, low: float, high: float
) -> tuple[float, float, list[tuple[float, float, str]]]:
    """The axis and the stripes beyond the dtype's normal range, where it comes near its ends."""
    ends, margin = np.finfo(dtype), 0.12 * (high - low)
    smallest, largest, stripes = log10(float(ends.tiny)), log10(float(ends.max)), []
    near_low, near_high = low < smallest + NEAR, high > largest - NEAR
    if near_low:
        low = min(low, smallest - margin)
        stripes.append((low, smallest, f"below {ends.tiny:.1g} {dtype} stores 0"))
    if near_high:
        high = max(high, largest + margin)
        stripes.append((high, largest, f"above {ends.max:.1g} {dtype} stores inf"))
    return low, high, stripes


def _unmeasured(
    chart: Chart,
    log2_values: FloatArray,
    zero: str = "exactly 0 in",
    names: Sequence[str] = (),
) -> None:
    """Shades the layers whose size is 0, inf or nan, and says which they are."""
    none = log2_values == -np.inf
    wrong = ~np.isfinite(log2_values) & ~none
    bottom, top = chart.y
    places = np.flatnonzero(none | wrong)
    chart.bars(places, np.full(len(places), bottom), np.full(len(places), top), "f-alarm", 1.0)
    for line, (words, these) in enumerate(((zero, none), ("not finite in", wrong))):
        if these.any():
            y = top - (0.12 + 0.1 * line) * (top - bottom)
            where = _where(np.flatnonzero(these).tolist(), names)
            chart.text(sum(chart.x) / 2, y, f"{words} {where}", "alarm-text")


def _where(places: list[int], names: Sequence[str]) -> str:
    """Which they are, or how many, if that would not fit on a phone."""
    words = ", ".join(names[n] for n in places) if names else named(places)
    if len(words) <= LONGEST:
        return words
    return f"{len(places)} {'gradients' if names else 'layers'}"


def _sides(layers: Any) -> tuple[float, float]:
    room = 0.5 + 0.01 * len(layers)
    return -room, len(layers) - 1 + room


def _hinted(layers: Any) -> list[int]:
    return list(map(int, layers)) if len(layers) <= MOST_HINTS else []


def _dot(layers: Any) -> str:
    return "" if len(layers) <= 25 else "small"


def _times(log10_factor: float) -> str:
    return "–" if np.isnan(log10_factor) else times(float(log10_factor) * DECADE)


def _least(values: FloatArray) -> float:
    return float(np.nanmin(values, initial=np.inf)) * DECADE


def _most(values: FloatArray) -> float:
    return float(np.nanmax(values, initial=-np.inf))


def _from_to(values: FloatArray) -> str:
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return "no layer has a finite one"
    first, last = int(known[0]), int(known[-1])
    return f"{values[first]:.2f} at layer {first}, {values[last]:.2f} at layer {last}"
