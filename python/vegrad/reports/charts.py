"""The charts of a page about the flow, with what theory expects of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite, isnan

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, power, times
from vegrad.reports.module_text import ModuleRow
from vegrad.reports.protocols import BesideFlow
from vegrad.reports.svg import Chart, Entry, figure, plain_ticks, power_ticks, reach
from vegrad.reports.values import (
    Stripe,
    decades,
    expected_delta,
    expected_gain,
    expected_rms,
    factor,
    gains_of,
    rms_log2,
    with_range,
)

MOST_HINTS = 120  # layers up to which each has a hint; a pointer cannot tell more of them apart
LONGEST = 24  # letters in a chart that name layers

EXPECTED: Entry = (
    "expected, with two spreads of chance",
    [("area", "f-expected"), ("line", "dashed s-ink")],
)


# The flow --------------------------------------------------------------------------------------


def gradient(diagnosis: BesideFlow, flow: Flow) -> str:
    """Draw δ of every layer, measured beside expected, and what the dtype has lost."""
    layers = np.arange(len(flow.delta_log2))
    delta, weights = decades(flow.delta_log2), decades(flow.gradient_log2)
    expected, spread = expected_delta(diagnosis, flow)
    dtype = diagnosis.config.get("dtype", "float64")
    axis = reach([delta, weights, expected - 2 * spread, expected + 2 * spread], least=3.0)
    axis, stripes = with_range(dtype, axis, axis, 0.12)
    words = f"log10 of the size of δ over {len(layers)} layers: {_from_to(delta)}."
    if np.isfinite(expected).any():
        words += f" Expected: {_from_to(expected)}."
    title = "The gradient, layer by layer"
    chart = Chart("gradient", title, words, _sides(len(layers)), axis)
    legend: list[Entry] = [
        ("measured at the pre-activations, ‖δ‖", [("line", "s-gradient"), ("dots", "s-gradient")]),
        ("measured at the weights, ‖∂loss/∂W‖", [("line", "thin s-soft")]),
    ]
    chart.y_axis(power_ticks(*axis))
    for outer, inner, what in stripes:
        chart.area(outer, inner, "f-alarm")
        chart.rule(inner, "thin s-alarm")
        chart.text(layers[-1], inner, what, "alarm-text", "end", 14 if outer < inner else -7)
    legend += _expected(chart, expected, spread)
    chart.line(layers, weights, "thin s-soft")
    _measured(chart, delta, "s-gradient")
    for lost, word in ((diagnosis.underflowed, "0.0"), (diagnosis.overflowed, "inf")):
        if lost:
            legend.append((f"stored as {word} in {dtype}", _lost(chart, weights, list(lost))))
    _unmeasured(chart, flow.delta_log2)
    _layer_axis(chart, len(layers))
    hints = []
    for layer in _hinted(len(layers)):
        if np.isfinite(delta[layer]):
            hint = f"layer {layer}: ‖δ‖ {power(delta[layer], 1)}"
            if np.isfinite(expected[layer]):
                hint += f", expected {power(expected[layer], 1)}"
            hints.append((layer, f"{hint}; ‖∂loss/∂W‖ {power(weights[layer], 1)}"))
    chart.hints(hints)
    return figure(title, chart, legend, aside="← the backward pass runs this way")


def gains(diagnosis: BesideFlow, flow: Flow, note: str = "") -> str:
    """Draw measured gains beside expected, split into weights and derivative; `note` is HTML."""
    title = "Gain = weights × derivative"
    gain, weights, derivative, base = gains_of(flow)
    layers, zero = np.arange(len(gain)), np.zeros(len(gain))
    if not len(layers):
        return figure(title, "there is one layer, and none to compare its gradient with")
    expected, spread = expected_gain(diagnosis, flow)
    low, high = expected - 2 * spread, expected + 2 * spread
    axis = reach([gain, weights, base + derivative, low, high, zero], least=0.9)
    least, most = (times(extreme(gain) * DECADE) for extreme in (_least, _most))
    words = f"Gains of {len(layers)} layers, from {least} to {most}."
    chart = Chart("gains", title, words, _sides(len(layers) + 1), axis)
    legend: list[Entry] = [
        ("gain, measured", [("line", "thin s-ink"), ("dots", "s-ink")]),
        ("of the weights", [("area", "f-weights")]),
        ("of the activation's derivative", [("area", "f-derivative")]),
    ]
    chart.y_axis(power_ticks(*axis, "×"))
    chart.bars(layers, zero, weights, "f-weights")
    chart.bars(layers, base, base + derivative, "f-derivative")
    chart.rule(0.0, "thin s-soft")
    legend[1:1] = _expected(chart, expected, spread)
    _measured(chart, gain, "s-ink", "thin ")
    _unmeasured(chart, flow.gain_log2, "the gain is 0 at")
    _layer_axis(chart, len(layers) + 1)
    hints = []
    for layer in _hinted(len(layers)):
        words = f"layer {layer}: gain {factor(gain[layer])}"
        if np.isfinite(expected[layer]):
            words += f", expected {factor(expected[layer])}"
        words += f" = {factor(weights[layer])} of the weights, {factor(derivative[layer])} of the "
        hints.append((layer, words + "derivative"))
    chart.hints(hints)
    aside = "above 1× the gradient grows, below it shrinks"
    return figure(title, chart, legend, aside=aside, note=note)


def flat(flow: Flow) -> str:
    """Draw the parts of saturated elements and of dead units."""
    layers = np.arange(len(flow.saturated))
    saturated, dead = 100 * flow.saturated, 100 * flow.dead
    words = f"Saturated elements: up to {_most(saturated):.3g} %. Dead units: up to "
    words += f"{_most(dead):.3g} %."
    chart = Chart("flat", "Saturated and dead", words, _sides(len(layers)), (-4.0, 104.0), 170)
    chart.y_axis([(n, f"{n} %") for n in (0, 25, 50, 75, 100)])
    chart.bars(layers, np.zeros(len(layers)), saturated, "f-derivative")
    _measured(chart, dead, "s-ink")
    if max(_most(saturated), _most(dead)) < 0.5:
        chart.text((len(layers) - 1) / 2, 45, "hardly any", "faint-text")
    _layer_axis(chart, len(layers))
    chart.hints(
        (layer, f"layer {layer}: {saturated[layer]:.3g} % saturated, {dead[layer]:.3g} % dead")
        for layer in _hinted(len(layers))
    )
    legend: list[Entry] = [
        ("saturated elements", [("area", "f-derivative")]),
        ("dead units", [("line", "s-ink"), ("dots", "s-ink")]),
    ]
    return figure("Saturated and dead", chart, legend)


def activations(diagnosis: BesideFlow, flow: Flow) -> str:
    """Draw the root mean square of every layer's output, measured beside expected."""
    sizes_log2 = rms_log2(flow)
    size, count = decades(sizes_log2), len(sizes_log2)
    expected, spread = expected_rms(diagnosis, flow)
    axis = reach([size, expected - 2 * spread, expected + 2 * spread], least=2.0)
    words = f"log10 of the activations' root mean square: {_from_to(size)}."
    chart = Chart("activations", "Activations", words, _sides(count), axis, 170)
    chart.y_axis(power_ticks(*axis, most=5))
    measured = [("line", "s-gradient"), ("dots", "s-gradient")]
    legend: list[Entry] = [("measured, root mean square", measured)]
    legend += _expected(chart, expected, spread)
    _measured(chart, size, "s-gradient")
    _unmeasured(chart, sizes_log2)
    _layer_axis(chart, count)
    chart.hints(
        (layer, f"layer {layer}: {flow.activation_rms[layer]:.3g}") for layer in _hinted(count)
    )
    return figure("Activations", chart, legend, aside="the forward pass runs this way →")


def sizes(names: Sequence[str], norm_log2: FloatArray) -> str:
    """Draw the norms of gradients, where only they were measured; nothing if there are none."""
    if not names:
        return ""
    norms = decades(norm_log2)
    axis = reach([norms], least=3.0)
    words = f"log10 of the norm of {len(names)} gradients: {_from_to(norms)}."
    chart = Chart("sizes", "The gradients' sizes", words, _sides(len(names)), axis)
    chart.y_axis(power_ticks(*axis))
    _measured(chart, norms, "s-gradient")
    _unmeasured(chart, norm_log2, names=names)
    _layer_axis(chart, len(names))
    chart.hints((n, f"{names[n]}: {power(norms[n], 1)}") for n in _hinted(len(names)))
    return figure("The gradients' sizes", chart, aside="from the input to the output")


def modules(rows: Sequence[ModuleRow], dtype: str = "") -> str:
    """Draw ‖δ‖ and the gradient of the weights of each module that has either; "" if none has.

    `dtype` is that of the gradients, whose smallest number is marked where they come near it.
    """
    known = [one for one in rows if isfinite(one["delta_norm"]) or isfinite(one["gradient_norm"])]
    if not known:
        return ""
    delta, weights = (
        _sizes(one[name] for one in known) for name in ("delta_norm", "gradient_norm")
    )
    axis, stripes = reach([delta, weights], least=3.0), list[Stripe]()
    finite = np.concatenate([one[np.isfinite(one)] for one in (delta, weights)])
    if dtype and finite.size:
        ends = (float(finite.min()), float(finite.max()))
        axis, stripes = with_range(dtype, axis, ends, 0.12)
    title, count = "The gradient, module by module", len(known)
    words = (
        f"log10 of sizes at {count} modules. ‖δ‖: {_from_to(delta)}. Weights: {_from_to(weights)}."
    )
    chart = Chart("modules", title, words.replace("layer", "module"), _sides(count), axis)
    chart.y_axis(power_ticks(*axis))
    for outer, inner, what in stripes:
        chart.area(outer, inner, "f-alarm")
        chart.rule(inner, "thin s-alarm")
        chart.text(count - 1, inner, what, "alarm-text", "end", 14 if outer < inner else -7)
    for sizes, css in ((weights, "thin s-weights"), (delta, "s-gradient")):
        there = np.flatnonzero(np.isfinite(sizes))  # not all have both: lines go on without them
        chart.line(there, sizes[there], css)
        if count <= MOST_HINTS:
            chart.dots(there, sizes[there], f"small {css}")
    names = [one["module"] for one in known]
    _unmeasured(chart, np.where(np.isnan(weights), 0.0, weights), names=names)
    _layer_axis(chart, count)
    chart.hints(
        (n, f"{names[n]}: ‖δ‖ {_or_dash(delta[n])}, gradient {_or_dash(weights[n])}")
        for n in _hinted(count)
    )
    legend: list[Entry] = [
        ("at the module's output, ‖δ‖", [("line", "s-gradient"), ("dots", "s-gradient")]),
        ("at its weights, ‖∂loss/∂W‖", [("line", "thin s-weights"), ("dots", "s-weights")]),
    ]
    return figure(title, chart, legend, aside="from the input to the output, as the table")


def _sizes(norms: Iterable[float]) -> FloatArray:
    """Return log10 of norms, -inf of 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = np.log10(np.fromiter(norms, np.float64))
    return found


def _or_dash(log10_size: float) -> str:
    return "–" if isnan(log10_size) else power(log10_size, 1)


# What the charts share -------------------------------------------------------------------------


def _expected(chart: Chart, expected: FloatArray, spread: FloatArray) -> list[Entry]:
    """Draw what theory expects, if it has a say, and return the line of the legend."""
    if not np.isfinite(expected).any():
        return []
    layers = np.arange(len(expected))
    chart.band(layers, expected - 2 * spread, expected + 2 * spread, "f-expected")
    chart.line(layers, expected, "dashed s-ink")
    return [EXPECTED]


def _measured(chart: Chart, values: FloatArray, css: str, line: str = "") -> None:
    """Draw a value a layer as dots on a line."""
    layers = np.arange(len(values))
    chart.line(layers, values, f"{line}{css}")
    chart.dots(layers, values, f"{'' if len(layers) <= 25 else 'small'} {css}")


def _lost(chart: Chart, weights: FloatArray, lost: list[int]) -> Sequence[tuple[str, str]]:
    """Mark the layers whose gradient the dtype has lost; return the shapes for the legend."""
    if len(weights) > MOST_HINTS:
        there = np.isin(np.arange(len(weights)), lost)
        chart.line(np.arange(len(weights)), np.where(there, weights, np.nan), "thick s-alarm")
        return [("line", "thick s-alarm")]
    ring = [("dots", "large s-alarm"), ("dots", "middle s-card")]
    for _, css in ring:
        chart.dots(lost, weights[lost], css)
    return ring


def _unmeasured(
    chart: Chart,
    log2_values: FloatArray,
    zero: str = "exactly 0 in",
    names: Sequence[str] = (),
) -> None:
    """Shade the layers whose size is 0, inf or nan, and say which they are."""
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
    """Name the places, or count them if their names would not fit on a phone."""
    words = ", ".join(names[n] for n in places) if names else named(places)
    if len(words) <= LONGEST:
        return words
    return f"{len(places)} {'gradients' if names else 'layers'}"


def _layer_axis(chart: Chart, count: int) -> None:
    chart.x_axis(plain_ticks(0, count - 1, whole=True))


def _sides(count: int) -> tuple[float, float]:
    """Return the ends of an axis of so many layers."""
    room = 0.5 + 0.01 * count
    return -room, count - 1 + room


def _hinted(count: int) -> range:
    """Return the layers that get a hint: all, or none if there are too many."""
    return range(count if count <= MOST_HINTS else 0)


def _least(values: FloatArray) -> float:
    return float(np.nanmin(values, initial=np.inf))


def _most(values: FloatArray) -> float:
    return float(np.nanmax(values, initial=-np.inf))


def _from_to(values: FloatArray, noun: str = "layer") -> str:
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return f"no {noun} has a finite one"
    first, last = int(known[0]), int(known[-1])
    return f"{values[first]:.2f} at {noun} {first}, {values[last]:.2f} at {noun} {last}"
