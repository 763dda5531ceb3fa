"""Pictures by matplotlib: the flow of a diagnosis, and the course of a training."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable, Sequence, Sized
from math import log10
from os import PathLike
from types import ModuleType

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import whole
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, times
from vegrad.pictures import FAINT, INK, THEORY, Axes, Figure, bare, blank, kept, sheet
from vegrad.reports.protocols import ShownDiagnosis, ShownHistory
from vegrad.reports.text import describe
from vegrad.reports.values import decades, expected_delta, gains_of, rms_log2, with_range

GRADIENT, WEIGHTS, DERIVATIVE, ALARM = "#00707a", "#0072b2", "#d55e00", "#b3261e"
COLOURS = {"healthy": "#1b7f4b", "saturated": "#a15c00", "dead": "#5b5b66"}
HARDLY = 0.005  # of the elements of a layer: fewer are not worth a panel
ALIKE = 0.3  # decades: activations that change by less over all layers are not either
MOST_TEXT = 600  # characters of a heading
TRAINING, HELD_OUT = "#1f6f8b", "#e07a5f"


def in_picture(text: str) -> str:
    """Return a text as matplotlib is to draw it: as no formula, and with no more than fits."""
    short = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"
    return whole(short).replace("$", r"\$")


# The flow --------------------------------------------------------------------------------------


def plot(diagnosis: ShownDiagnosis, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the flow of `diagnosis` through its layers; see `Diagnosis.plot`."""
    flow = diagnosis.layer_flow
    if flow is None:
        causes = {finding.cause for finding in diagnosis.findings}
        unread = diagnosis.loss is None and causes & {"nonfinite-input", "nonfinite-target"}
        raise ValueError(
            "there is no flow to draw, because the data are not finite, so that nothing was run"
            if unread
            else "there is no flow to draw, because what was looked at is no chain of layers: "
            "print it, or call to_html(), for a table"
        )
    figure = sheet(path, (10, 8.6))
    ticker = importlib.import_module("matplotlib.ticker")
    small, unsaid = _telling(flow)
    headed(figure, diagnosis, unsaid)
    gains = bool(len(flow.gain_log2))
    heights = [1.7, *[1.25] * gains, *[0.9] * bool(small)]
    grid = figure.add_gridspec(len(heights), max(len(small), 1), height_ratios=heights)
    large = [figure.add_subplot(grid[0, :])]
    _draw_gradient(large[0], diagnosis, flow)
    if gains:
        large.append(figure.add_subplot(grid[1, :], sharex=large[0]))
        large[0].tick_params(labelbottom=False)
        _draw_gains(large[1], ticker, flow)
    below = [figure.add_subplot(grid[-1, place]) for place in range(len(small))]
    for axes, draw in zip(below, small, strict=True):
        draw(axes, flow)
    room = 0.5 + 0.01 * len(flow.dead)
    for axes in (*large, *below):
        bare(axes)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(-room, len(flow.dead) - 1 + room)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in below or large[-1:]:
        axes.set_xlabel("layer", color=INK)
    return kept(figure, path)


def headed(
    figure: Figure, diagnosis: ShownDiagnosis, unsaid: Sequence[str] = (), words: str = ""
) -> None:
    """Write the verdict above a figure, and the network and what else is to be said below it."""
    colour = COLOURS.get(diagnosis.verdict, ALARM) if diagnosis.verdict else INK
    title = textwrap.fill(diagnosis.summary, 96)
    figure.suptitle(
        in_picture(title), color=colour, fontsize=13, fontweight="bold", x=0.012, ha="left"
    )
    words = words or describe(diagnosis).replace("\n", ", ")
    lines = [textwrap.fill(line, 150) for line in (words, *unsaid) if line]
    figure.supxlabel(in_picture("\n".join(lines)), fontsize=8.5, color=INK, x=0.5)


Drawing = Callable[[Axes, Flow], None]


def _telling(flow: Flow) -> tuple[list[Drawing], list[str]]:
    """Choose the small panels that have something to say, and say of the others why not."""
    small: list[Drawing] = []
    unsaid = []
    if max(flow.saturated.max(), flow.dead.max()) < HARDLY:
        unsaid.append("hardly an element is saturated or dead")
    else:
        small.append(_draw_flat)
    rms = decades(rms_log2(flow))
    if np.isfinite(rms).all() and np.ptp(rms) < ALIKE:
        low, high = 10.0 ** rms.min(), 10.0 ** rms.max()
        unsaid.append(f"activations keep their size, rms {low:.2g} to {high:.2g}")
    else:
        small.append(_draw_activations)
    return small, ["; ".join(unsaid)] if unsaid else []


def _draw_gradient(axes: Axes, diagnosis: ShownDiagnosis, flow: Flow) -> None:
    layers = np.arange(len(flow.delta_log2))
    delta, gradient = decades(flow.delta_log2), decades(flow.gradient_log2)
    _title(axes, "The gradient, layer by layer", "← the backward pass runs this way")
    axes.plot(layers, gradient, color=FAINT, linewidth=1.4, label="at the weights, ‖∂loss/∂W‖")
    dots = {"marker": "o", "markersize": _dot(layers), "label": "at the pre-activations, ‖δ‖"}
    axes.plot(layers, delta, color=GRADIENT, linewidth=2, **dots)
    _draw_trend(axes, diagnosis, delta)
    usual, spread = expected_delta(diagnosis, flow)
    if np.isfinite(usual).all():
        axes.plot(layers, usual, color=THEORY, linewidth=1.2, label="expected, ±2 spreads")
        _band(axes, usual - 2 * spread, usual + 2 * spread, THEORY, 0.12)
    dtype = diagnosis.config.get("dtype")
    for lost, word in ((diagnosis.underflowed, "0.0"), (diagnosis.overflowed, "inf")):
        if lost:
            cross = {"color": ALARM, "markersize": _dot(lost) * 1.7 or 1}
            label = f"stored as {word} in {dtype}"
            axes.plot(list(lost), gradient[list(lost)], "x", label=label, **cross)
    zero = np.flatnonzero(flow.delta_log2 == -np.inf)
    if zero.size:
        _say(axes, 0.5, f"exactly zero in {named(zero.tolist())}", ALARM)
    if dtype is not None:
        _draw_range(axes, dtype)
    axes.set_ylabel("log10 of its size", color=INK)
    _legend(axes)


def _draw_trend(axes: Axes, diagnosis: ShownDiagnosis, delta: FloatArray) -> None:
    """Draw the fitted gain as a line that ends at the last known δ, with its interval."""
    trend, known = diagnosis.trend, np.flatnonzero(np.isfinite(delta))
    if trend is None or trend.count <= 2 or not known.size:
        return
    layers, last = np.arange(len(delta)), known[-1]
    steps = (layers[last] - layers) / DECADE
    label = f"fitted: {times(trend.gain)} a layer, with its 95 % interval"
    axes.plot(layers, delta[last] + trend.gain * steps, "--", color=INK, linewidth=1, label=label)
    low, high = (delta[last] + end * steps for end in (trend.low, trend.high))
    _band(axes, low, high, INK, 0.10)


def _draw_range(axes: Axes, dtype: str) -> None:
    """Draw the ends of the dtype's normal range where the picture comes near them."""
    data = (axes.dataLim.y0, axes.dataLim.y1)
    limits, stripes = with_range(dtype, axes.get_ylim(), data, 0.1)
    for outer, inner, words in stripes:
        axes.axhspan(outer, inner, color=ALARM, alpha=0.08, linewidth=0)
        axes.axhline(inner, color=ALARM, linewidth=1)
        below = outer < inner
        away: dict[str, object] = {
            "textcoords": "offset points",
            "xytext": (-4, -3 if below else 3),
        }
        away |= {"ha": "right", "va": "top" if below else "bottom", "color": ALARM, "fontsize": 9}
        axes.annotate(words, (1, inner), xycoords=axes.get_yaxis_transform(), **away)
    axes.set_ylim(limits)


def _draw_gains(axes: Axes, ticker: ModuleType, flow: Flow) -> None:
    gain, weights, derivative, base = gains_of(flow)
    layers = np.arange(len(gain))
    _title(axes, "Gain = weights × derivative", "above 1× the gradient grows, below it shrinks")
    axes.axhline(0, color=INK, linewidth=0.8)
    bars = {"width": 0.8, "alpha": 0.85}
    axes.bar(layers, weights, color=WEIGHTS, label="weights", **bars)
    label = "activation's derivative"
    axes.bar(layers, derivative, bottom=base, color=DERIVATIVE, label=label, **bars)
    dots = {"marker": "o", "markersize": _dot(layers)}
    axes.plot(layers, gain, color=INK, linewidth=1, label="gain", **dots)
    finite = np.concatenate([np.nan_to_num(a) for a in (weights, derivative, gain)] + [[0.0]])
    reach = max(0.35, float(np.abs(finite).max()) * 1.25)
    bottom = -reach if finite.min() < -0.02 else -0.3 * reach
    axes.set_ylim(bottom, reach if finite.max() > 0.02 else 0.3 * reach)
    if reach < 1.0:  # then doublings are easier to read than decades
        step = log10(2.0) * (0.5 if reach < 0.4 else 1.0)
        axes.yaxis.set_major_locator(ticker.MultipleLocator(step))
        axes.yaxis.set_major_formatter(lambda value, _: f"{10.0**value:.2g}×")
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{10.0**value:g}×" if abs(value) < 4 else f"1e{value:+.0f}×"
        )
    _legend(axes, columns=3)


def _draw_flat(axes: Axes, flow: Flow) -> None:
    layers = np.arange(len(flow.saturated))
    _title(axes, "Saturated and dead", "")
    bars = {"width": 0.8, "color": DERIVATIVE, "alpha": 0.5}
    axes.bar(layers, 100 * flow.saturated, label="saturated elements", **bars)
    axes.plot(layers, 100 * flow.dead, color=INK, linewidth=1.5, label="dead units")
    axes.set_ylim(0, 135)  # room for the legend
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_ylabel("%", color=INK)
    _legend(axes, columns=2)


def _draw_activations(axes: Axes, flow: Flow) -> None:
    _title(axes, "Activations", "the forward pass runs this way →")
    axes.plot(decades(rms_log2(flow)), color=GRADIENT, linewidth=2)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, 0.6)
    axes.set_ylim(middle - half, middle + half)
    axes.set_ylabel("log10 rms", color=INK)


def _title(axes: Axes, title: str, detail: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_title(detail, loc="right", fontsize=9, color=INK)


def _legend(axes: Axes, columns: int = 1) -> None:
    axes.legend(loc="best", frameon=False, fontsize=9, ncols=columns, labelcolor=INK)


def _say(axes: Axes, height: float, words: str, colour: str) -> None:
    """Write words in the middle of a plot."""
    axes.text(0.5, height, words, color=colour, ha="center", transform=axes.transAxes)


def _band(axes: Axes, low: FloatArray, high: FloatArray, colour: str, alpha: float) -> None:
    axes.fill_between(np.arange(len(low)), low, high, color=colour, alpha=alpha, linewidth=0)


def _dot(layers: Sized) -> float:
    return 3.5 if len(layers) <= 100 else 0.0


# A training ------------------------------------------------------------------------------------


def plot_history(history: ShownHistory, path: str | PathLike[str] | None = None) -> Figure:
    """Draw loss, gradient norm, clip and learning rate over the steps; see `History.plot`.

    A clip or a learning rate that never changed has no panel.
    """
    more = [
        (title, values)
        for title, values in (
            ("clip's factor", history.coefficient),
            ("learning rate", history.learning_rate),
        )
        if len(np.unique(values)) > 1
    ]
    rows, columns = (2, 2) if len(more) == 2 else (1, 2 + len(more))
    figure = blank((9, 3.25 * rows))
    panels = list(figure.subplots(rows, columns, sharex=True).flat)
    losses, norms = panels[:2]
    thin = {"color": TRAINING, "linewidth": 0.8}
    ends = np.cumsum(history.epoch_steps) - 1
    losses.plot(history.loss, color=FAINT, linewidth=0.8, label="batch")
    losses.plot(ends, history.epoch_loss, ".-", color=TRAINING, label="epoch")
    if np.isfinite(history.validation_loss).any():
        losses.plot(ends, history.validation_loss, ".-", color=HELD_OUT, label="validation")
    losses.legend(loc="best", frameon=False)
    norms.plot(history.gradient_norm, **thin)
    for panel, (_, values) in zip(panels[2:], more, strict=False):
        panel.plot(values, **thin)
    titles = ("loss", "gradient norm", *(title for title, _ in more))
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
        panel.grid(alpha=0.3)
        bare(panel)
    for panel, values in ((losses, history.loss), (norms, history.gradient_norm)):
        known = values[np.isfinite(values)]
        if known.size and 0 < known.min() < 0.1 * known.max():
            panel.set_yscale("log")
    for panel in panels[-columns:]:
        panel.set_xlabel("step")
        panel.locator_params(axis="x", integer=True)
    return kept(figure, path, dpi=110)
