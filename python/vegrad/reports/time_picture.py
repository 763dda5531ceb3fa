"""The flow through time, as a picture."""

from __future__ import annotations

import importlib
from math import inf, isfinite
from os import PathLike

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.pictures import FAINT, INK, THEORY, Axes, Figure, bare, blank, kept
from vegrad.reports import picture
from vegrad.reports.picture import ALARM, DERIVATIVE, GRADIENT, WEIGHTS, headed
from vegrad.reports.protocols import ShownDiagnosis, ShownTimeFlow
from vegrad.reports.time_flow import GONE, headline, left_over, steps_of

LINES = (GRADIENT, DERIVATIVE, THEORY, WEIGHTS, INK, FAINT)
# Pale where the gradient vanishes, dark where it keeps its size, red where it explodes.
TONES = [(0.0, "#f4f6f8"), (0.5, GRADIENT), (0.7, "#e9b44c"), (1.0, ALARM)]
LEAST = 0.1  # decades on one side that are worth a place on the bar of colours
WIDEST = 24.0  # decades of colour on either side: beyond it all is as pale, or as dark


def plot(diagnosis: ShownDiagnosis, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the flow of `diagnosis`, through time or through its layers; see `Diagnosis.plot`."""
    if diagnosis.time_flow is None:
        return picture.plot(diagnosis, path)
    figure = draw(diagnosis.time_flow)
    headed(figure, diagnosis)
    return kept(figure, path)


def draw(flow: ShownTimeFlow) -> Figure:
    """Draw δ over layers and steps, its curve with the reach, the gain and the units' memory."""
    layers, steps = flow.gain_log2.shape
    gated = bool(np.isfinite(flow.time_scales).any())
    figure = blank((10, 7.6 + 0.12 * min(layers, 12)))
    grid = figure.add_gridspec(3, 2, height_ratios=(0.5 + 0.14 * min(layers, 12), 1.5, 1.1))
    top = figure.add_subplot(grid[0, :])
    middle = figure.add_subplot(grid[1, :], sharex=top)
    lower = figure.add_subplot(grid[2, 0] if gated else grid[2, :], sharex=top)
    figure.suptitle(headline(flow), color=INK, fontsize=13, fontweight="bold", x=0.012, ha="left")
    sizes = left_over(flow)
    _draw_map(figure, top, sizes)
    _draw_sizes(middle, flow, sizes)
    _draw_gains(lower, flow, gated)
    panels = [middle, lower]
    if gated:
        panels.append(figure.add_subplot(grid[2, 1]))
        _draw_time_scales(panels[-1], flow)
    for axes in panels:
        bare(axes)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
    for axes in (top, *panels):
        axes.tick_params(colors=INK, labelsize=9)
    for axes in (top, lower):
        axes.xaxis.get_major_locator().set_params(integer=True)
    top.set_xlim(-0.5, steps - 0.5)
    top.tick_params(labelbottom=False)
    return figure


def _draw_map(figure: Figure, axes: Axes, sizes: FloatArray) -> None:
    layers, steps = sizes.shape
    colours = importlib.import_module("matplotlib.colors")
    known = sizes[np.isfinite(sizes)]
    far = min(WIDEST, max(GONE * -1, float(np.abs(known).max()) if known.size else 0.0))
    tones = colours.LinearSegmentedColormap.from_list("flow", TONES).with_extremes(bad="#c9cfd6")
    norm = colours.TwoSlopeNorm(0.0, -far, far if known.size and known.max() > 1 else 1.0)
    extent = (-0.5, steps - 0.5, -0.5, layers - 0.5)
    drawn = axes.imshow(
        sizes, aspect="auto", origin="lower", cmap=tones, norm=norm, extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    axes.set_yticks(range(layers) if layers <= 12 else range(0, layers, -(-layers // 12)))
    axes.set_ylabel("layer", color=INK)
    axes.set_title("What is left of the last step's gradient", loc="left", fontsize=11,
                   fontweight="bold", color=INK)  # fmt: skip
    axes.set_title("← the backward pass runs this way", loc="right", fontsize=9, color=INK)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, aspect=8 + 2 * layers)
    _mark_sizes(bar.ax, known)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.set_label("log10", fontsize=8, color=INK)


def _mark_sizes(axes: Axes, known: FloatArray) -> None:
    """Leave the sizes that there are on the bar of colours, with figures on either side of 0."""
    low, high = (float(end) for end in (known.min(initial=0.0), known.max(initial=0.0)))
    low = max(low, -WIDEST) if low < -LEAST or high > LEAST else -1.0
    high = min(high, WIDEST) if high > LEAST else 0.0
    locator = importlib.import_module("matplotlib.ticker").MaxNLocator
    below, above = locator(4).tick_values(low, 0.0), locator(4).tick_values(0.0, high or 1.0)
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in {*below, *above} if low <= tick <= high])


def _draw_sizes(axes: Axes, flow: ShownTimeFlow, sizes: FloatArray) -> None:
    layers, steps = sizes.shape
    axes.axhline(GONE, color=ALARM, linewidth=1)
    axes.text(0.005, GONE, "a thousandth", color=ALARM, fontsize=9, va="bottom",
              transform=axes.get_yaxis_transform())  # fmt: skip
    named = {round(layer) for layer in np.linspace(0, layers - 1, len(LINES))}
    for layer, colour in enumerate(_colours(layers)):
        reach = float(flow.reach[layer])
        what = "its reach has no end" if reach == inf else f"reach {steps_of(reach)}"
        label = f"layer {layer}: {what}" if layer in named else None
        axes.plot(sizes[layer], color=colour, linewidth=1.8, label=label)
        if isfinite(reach) and reach <= steps - 1:
            place = steps - 1 - reach
            axes.plot([place, place], [GONE, 0], color=colour, linewidth=1, linestyle=":")
            axes.plot(place, GONE, marker="o", color=colour, markersize=6)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 0.5))
    axes.set_ylabel("log10 of what is left", color=INK)
    axes.set_xlabel("step", color=INK)
    axes.legend(
        loc="best", facecolor="white", edgecolor="none", framealpha=0.85, fontsize=9, labelcolor=INK
    )


def _colours(layers: int) -> list[str]:
    """Return a colour for each layer: of many, from dark for the lowest to pale."""
    if layers <= len(LINES):
        return list(LINES[:layers])
    maps = importlib.import_module("matplotlib").colormaps
    hex_of = importlib.import_module("matplotlib.colors").to_hex
    return [hex_of(maps["viridis"](0.9 * layer / (layers - 1))) for layer in range(layers)]


def _draw_gains(axes: Axes, flow: ShownTimeFlow, gated: bool) -> None:
    """Draw the gain of each step back, the mean over layers, and its parts."""
    axes.set_title("Gain of a step back", loc="left", fontsize=11, fontweight="bold", color=INK)
    detail = "mean of the layers" if len(flow.gain_log2) > 1 else ""
    axes.set_title(detail, loc="right", fontsize=9, color=INK)
    axes.axhline(1, color=INK, linewidth=0.8)
    parts = [("gain", flow.passed_log2, INK, 1.8)]
    if gated:
        parts += [("carried by the gate", flow.carry_log2, GRADIENT, 1.2),
                  ("through U", flow.matrix_log2, DERIVATIVE, 1.2)]  # fmt: skip
    for label, columns, colour, width in parts:
        finite = np.isfinite(columns)
        count = np.maximum(finite.sum(axis=0), 1)
        mean = np.where(finite, columns, 0.0).sum(axis=0) / count
        mean[~finite.any(axis=0)] = np.nan
        axes.plot(np.exp2(np.clip(mean, -60, 60)), color=colour, linewidth=width, label=label)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] > 20:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}×")
    axes.set_xlabel("step", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")


def _draw_time_scales(axes: Axes, flow: ShownTimeFlow) -> None:
    """Draw how many units keep what they hold for how many steps."""
    axes.set_title("Memory of the units", loc="left", fontsize=11, fontweight="bold", color=INK)
    scales, steps = flow.time_scales, flow.gain_log2.shape[1]
    known = scales[np.isfinite(scales) & (scales > 0)]
    low, high = known.min(initial=steps), known.max(initial=steps)
    edges = np.geomspace(low / 1.3, high * 1.3, 28)
    layers = [row[np.isfinite(row)] for row in scales]
    axes.hist(layers, bins=edges, stacked=True, color=_colours(len(layers)))
    axes.set_xscale("log")
    axes.margins(y=0.15)
    axes.axvline(steps, color=INK, linewidth=1, linestyle=":")
    axes.text(steps, 0.94, f"{steps_of(steps)} ", color=INK, fontsize=9, ha="right",
              transform=axes.get_xaxis_transform())  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("-1/ln of the mean gate, in steps", color=INK)
    axes.set_ylabel("units", color=INK)
