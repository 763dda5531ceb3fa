"""The flow through time, as text."""

from __future__ import annotations

import textwrap
from math import inf, isnan

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import finite_mean, times
from vegrad.reports.protocols import ShownTimeFlow
from vegrad.reports.values import decades

GONE = -3.0  # decades: a thousandth, at which the reach is measured
WIDTH = 80


def text(flow: ShownTimeFlow, width: int = WIDTH) -> str:
    """Write the mean gain of a step, its parts, the reach and the units' memory, a line a layer.

    A narrow terminal has no room for the memory.
    """
    layers, steps = flow.gain_log2.shape
    gated = bool(np.isfinite(flow.time_scales).any())
    parts = f"{'carried':>10}{'by U':>10}" if gated else ""
    remembers = gated and width >= WIDTH
    memory = f"{'memory: median, longest':>28}" if remembers else ""
    lines = [f"{'layer':<6}{'gain a step':>12}{parts}{'reach':>14}{memory}"]
    for layer in range(layers):
        gain, carry, matrix = (
            mean_gain(column[layer])
            for column in (flow.passed_log2, flow.carry_log2, flow.matrix_log2)
        )
        line = f"{layer:<6}{gain:>12}" + (f"{carry:>10}{matrix:>10}" if gated else "")
        line += f"{steps_of(flow.reach[layer]):>14}"
        if remembers:
            scales = flow.time_scales[layer]
            longest = f"{steps_of(float(np.median(scales)))}, {steps_of(float(np.max(scales)))}"
            line += f"{longest:>28}"
        lines.append(line)
    entry = "at each step" if flow.every_step else "at the last step"
    entry = f"{steps_of(steps)}; the loss enters {entry}"
    said = f"{entry}. Reach: to a thousandth of the size."
    return "\n".join([*lines, "", textwrap.fill(said, width)])


def mean_gain(log2_gains: FloatArray) -> str:
    """Write the mean gain of a step, from log2 gains (T,), of which the first leaves step 0."""
    known = log2_gains[1:]
    return times(finite_mean(known)) if np.isfinite(known).any() else "?"


def steps_of(count: float) -> str:
    """Write a number of steps: 3 steps, no end."""
    if isnan(count):
        return "?"
    if count == inf:
        return "no end"
    short = f"{count:.2g}" if count < 10 else f"{count:.0f}" if count < 1e5 else f"{count:.0e}"
    return f"{short} step{'s' if short != '1' else ''}"


def left_over(flow: ShownTimeFlow) -> FloatArray:
    """Return log10 of what each step gets of the last step's gradient (L, T); nan: not known."""
    return decades(flow.left_log2)


def headline(flow: ShownTimeFlow) -> str:
    """Say in a sentence how far back the gradient reaches."""
    reach, steps = flow.reach, flow.gain_log2.shape[1]
    if steps == 1:
        return "There is one step, from which no gradient goes back"
    if not np.isfinite(reach).any():
        grows = bool((reach == inf).any())
        return "The gradient does not shrink on its way back" if grows else "No gradient goes back"
    layer = int(np.nanargmax(np.where(reach == inf, np.nan, reach)))
    if (reach == inf).any():
        return "In some layers the gradient does not shrink on its way back"
    more = ", beyond the first step" if reach[layer] > steps - 1 else ""
    of = "" if len(reach) == 1 else f" in layer {layer}, at most"
    return f"A thousandth of the gradient is left {steps_of(reach[layer])} back{of}{more}"
