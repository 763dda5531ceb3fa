"""The charts of a notebook's outputs about recurrent networks: flow through time, truncation."""

from __future__ import annotations

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.reports.protocols import ShownTimeFlow, ShownTruncation
from vegrad.reports.svg import Chart, Entry, figure, plain_ticks, power_ticks, reach, thinned
from vegrad.reports.time_flow import GONE, left_over, steps_of
from vegrad.reports.truncation import LEAST, apart, percent
from vegrad.reports.values import decades

COLOURS = ("gradient", "derivative", "weights", "ink", "faint")  # of layers, in turn
NAMED = 6  # layers in a legend
POINTS = 240  # of a line, since there may be many
LOWEST = -40.0  # decades; what is left below is not told apart


def through_time(flow: ShownTimeFlow) -> str:
    """Draw what is left of the last step's gradient at each step before, a line a layer."""
    left = np.maximum(left_over(flow), LOWEST)
    layers, steps = left.shape
    axis = reach([left.ravel(), np.array([GONE])], least=1.0)
    first = ", ".join(f"{value:.2f}" for value in left[:, 0])
    words = f"log10 of what is left over {steps} steps; at the first: {first}."
    title = "The last step's gradient on its way back"
    chart = Chart("through-time", title, words, (-0.5, steps - 0.5), axis, 220)
    chart.y_axis(power_ticks(*axis))
    chart.rule(GONE, "dashed s-soft")
    chart.text(0, GONE, "a thousandth", "faint-text", "start", -6)
    legend: list[Entry] = []
    for layer in range(layers):
        css = f"s-{COLOURS[layer % len(COLOURS)]}"
        chart.line(*thinned(np.arange(float(steps)), left[layer], POINTS), css)
        if layer < NAMED:
            said = f"layer {layer}, reach {steps_of(float(flow.reach[layer]))}"
            legend.append((said, [("line", css)]))
    chart.x_axis(plain_ticks(0, steps - 1, whole=True))
    return figure(title, chart, legend, aside="← the backward pass runs this way")


def gains_in_time(flow: ShownTimeFlow) -> str:
    """Draw the gain of each step back, the mean of the layers, and its parts."""
    parts = [("gain", flow.passed_log2, "s-ink")]
    if np.isfinite(flow.time_scales).any():
        parts += [
            ("carried by the gate", flow.carry_log2, "s-gradient"),
            ("through U", flow.matrix_log2, "s-derivative"),
        ]
    lines = [decades(_mean(columns)) for _, columns, _ in parts]
    steps = lines[0].size
    axis = reach([*lines, np.zeros(1)], least=0.3)
    mean = lines[0][np.isfinite(lines[0])]
    words = f"Mean gain of a step: {10 ** mean.mean():.3g}." if mean.size else "No gain is known."
    chart = Chart("gains-in-time", "Gain of a step back", words, (-0.5, steps - 0.5), axis, 170)
    chart.y_axis(power_ticks(*axis, "×", most=5))
    chart.rule(0.0, "thin s-soft")
    legend: list[Entry] = []
    for (said, _, css), line in zip(parts, lines, strict=True):
        chart.line(*thinned(np.arange(float(steps)), line, POINTS), css)
        legend.append((said, [("line", css)]))
    chart.x_axis(plain_ticks(0, steps - 1, whole=True))
    return figure("Gain of a step back", chart, legend, aside="above 1× the gradient grows")


def lost(truncation: ShownTruncation) -> str:
    """Draw what each window loses of the gradient, measured and by formula."""
    errors = truncation.errors
    steps = truncation.noun == "steps"
    places = np.log2(errors.window) if steps else errors.window.astype(np.float64)
    error, expected = (_log10(column) for column in (errors.error, errors.expected))
    allowed = float(_log10(np.array([truncation.tolerance]))[0])
    axis = reach([error, expected, np.array([allowed, 0.0])], least=1.0)
    room = max(0.04 * float(np.ptp(places)), 0.1)
    words = ", ".join(
        f"{window}: {percent(value)}" for window, value in zip(*_ends(truncation), strict=True)
    )
    words = f"Lost of the gradient by {truncation.noun} gone back: {words}."
    title = "What a window loses"
    chart = Chart("lost", title, words, (places[0] - room, places[-1] + room), axis, 200)
    chart.y_axis([(y, f"{100 * 10.0**y:.3g} %") for y, _ in power_ticks(*axis, most=5)])
    chart.rule(allowed, "thin s-alarm")
    said = f"{percent(truncation.tolerance)} is allowed"
    chart.text(places[-1], allowed, said, "alarm-text", "end", -6)
    chart.line(places, expected, "dashed s-ink")
    chart.line(places, error, "s-gradient")
    chart.dots(places, error, f"{'' if len(places) <= 25 else 'small'} s-gradient")
    shown = apart(errors.window) if steps else range(0, len(places), -(-len(places) // 12))
    chart.x_axis([(float(places[place]), str(errors.window[place])) for place in shown])
    legend: list[Entry] = [("measured", [("line", "s-gradient"), ("dots", "s-gradient")])]
    if np.isfinite(expected).any():
        legend.append(("by formula, from the gain alone", [("line", "dashed s-ink")]))
    return figure(title, chart, legend, aside=f"{truncation.noun} gone back →")


def _mean(log2_gains: FloatArray) -> FloatArray:
    """Return the mean over layers of gains (L, T) that are finite, NaN where none is."""
    finite = np.isfinite(log2_gains)
    total = np.where(finite, log2_gains, 0.0).sum(axis=0)
    return np.where(finite.any(axis=0), total / np.maximum(finite.sum(axis=0), 1), np.nan)


def _log10(values: FloatArray) -> FloatArray:
    """Return log10 of shares; NaN of those that are too small to be told apart."""
    return np.log10(np.where(values > LEAST, values, np.nan))


def _ends(truncation: ShownTruncation) -> tuple[list[int], list[float]]:
    errors = truncation.errors
    places = sorted({0, len(errors.window) // 2, len(errors.window) - 1})
    return [int(errors.window[n]) for n in places], [float(errors.error[n]) for n in places]
