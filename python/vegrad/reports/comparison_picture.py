"""Two runs, or two diagnoses, side by side as a picture by matplotlib."""

from __future__ import annotations

import importlib
import textwrap
from os import PathLike

import numpy as np

from vegrad.pictures import INK, Axes, Figure, bare, kept, sheet
from vegrad.reports import comparison
from vegrad.reports.comparison_charts import common, span
from vegrad.reports.heat import RATIOS, ratios_of
from vegrad.reports.picture import DERIVATIVE, GRADIENT, in_picture
from vegrad.reports.run_picture import DPI, named_rows
from vegrad.reports.shown_comparison import ShownComparison
from vegrad.reports.shown_run import ShownRun
from vegrad.reports.values import decades

COLOURS = (GRADIENT, DERIVATIVE)
COLUMNS = {"loss": "loss", "gradient_norm": "gradient norm", "update_ratio": "update / weight"}


def plot(one: ShownComparison, path: str | PathLike[str] | None = None) -> Figure:
    """Draw both; see `Comparison.plot`."""
    if one.runs is not None:
        figure = _plot_runs(one, one.runs, path)
    elif len(one.sizes) > 1:
        figure = sheet(path, (9, 4.6))
        _plot_sizes(figure.subplots(), one)
    else:
        raise ValueError("there is nothing to draw: the two have no gradients in common")
    title = textwrap.fill(comparison.headline(one), 96)
    figure.suptitle(
        in_picture(title), color=INK, fontsize=12, fontweight="bold", x=0.012, ha="left"
    )
    return kept(figure, path, DPI)


def _plot_runs(
    one: ShownComparison, runs: tuple[ShownRun, ShownRun], path: str | PathLike[str] | None
) -> Figure:
    names, step, ratio = common(one)
    cells = ratios_of(step, ratio, 400, 120)
    columns = [
        name
        for name in COLUMNS
        if any(np.isfinite(np.asarray(getattr(run, name), np.float64)).any() for run in runs)
    ]
    heights = [2.4] * (cells is not None) + [1.0] * len(columns)
    if not heights:
        raise ValueError("there is nothing to draw: neither a loss nor a gradient was recorded")
    figure = sheet(path, (10, 2 + 1.6 * sum(heights)))
    panels = list(
        figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False).flat
    )
    if cells is not None:
        wide = span(cells.log10)
        colours = importlib.import_module("matplotlib.colors")
        image = panels[0].imshow(
            np.ma.masked_invalid(np.clip(cells.log10, -wide, wide)),
            cmap=colours.LinearSegmentedColormap.from_list("ratios", RATIOS),
            vmin=-wide,
            vmax=wide,
            aspect="auto",
            extent=(*cells.steps, len(cells.rows) - 0.5, -0.5),
            interpolation="nearest",
        )
        bar = figure.colorbar(image, ax=panels[0], pad=0.01, aspect=30)
        bar.set_label(in_picture(f"log10 of {one.names[1]} over {one.names[0]}"), size=8.5)
        named_rows(panels[0], names, cells)
        title = "Gradient by depth over time, the ratio of both"
        panels[0].set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    for axes, name in zip(panels[cells is not None :], columns, strict=True):
        _plot_column(axes, one, runs, name)
    for axes in panels:
        if one.departures and one.departures[0].step is not None:
            axes.axvline(one.departures[0].step, color=INK, linewidth=1, linestyle="--")
    panels[-1].set_xlabel("step", color=INK)
    return figure


def _plot_column(
    axes: Axes, one: ShownComparison, runs: tuple[ShownRun, ShownRun], column: str
) -> None:
    least, most = np.inf, -np.inf
    for run, colour, said in zip(runs, COLOURS, one.names, strict=True):
        values = np.asarray(getattr(run, column), np.float64)
        known = np.isfinite(values)
        axes.plot(
            run.step[known], values[known], color=colour, linewidth=0.9, label=in_picture(said)
        )
        least = min(least, values[known].min(initial=np.inf))
        most = max(most, values[known].max(initial=-np.inf))
    if 0 < least < 0.1 * most:
        axes.set_yscale("log")
    axes.set_ylabel(COLUMNS[column], color=INK, fontsize=9)
    axes.legend(loc="best", frameon=False, fontsize=8, ncols=2, labelcolor=INK)
    _plain(axes)


def _plot_sizes(axes: Axes, one: ShownComparison) -> None:
    for place, (colour, said) in enumerate(zip(COLOURS, one.names, strict=True)):
        sizes = decades(np.array([each[1 + place] for each in one.sizes], np.float64))
        axes.plot(sizes, color=colour, label=in_picture(said), marker="o", markersize=3)
    axes.set_ylabel("log10 of the gradient", color=INK)
    axes.set_xlabel("layer or module, from the input to the output", color=INK)
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    _plain(axes)


def _plain(axes: Axes) -> None:
    bare(axes)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9)
