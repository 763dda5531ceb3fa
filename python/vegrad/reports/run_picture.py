"""A run, or the modules of one step, as a picture by matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from math import isfinite
from os import PathLike

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import visible
from vegrad.flow.wording import DECADE, power
from vegrad.pictures import INK, Axes, Figure, bare, blank, kept, sheet
from vegrad.reports.heat import INFINITE, LOST, RAMP, Cells, cells_of
from vegrad.reports.module_text import ModuleRow
from vegrad.reports.picture import ALARM, DERIVATIVE, GRADIENT, WEIGHTS, headed, in_picture
from vegrad.reports.protocols import ShownDiagnosis
from vegrad.reports.shown_run import ShownModules, ShownRun, after_clip, is_clipped
from vegrad.reports.svg import power_ticks
from vegrad.reports.values import NEAR, with_range

NAMES = 14  # modules named beside a heat map, at most
LETTERS = 28
SPIKE = "#d55e00"
DPI = 100


def plot(
    diagnosis: ShownDiagnosis, shown: ShownModules, path: str | PathLike[str] | None = None
) -> Figure:
    """Draw a run below the verdict or, without one, the modules; see `Report.plot`."""
    if shown.run is not None and len(shown.run.step) > 1:
        figure = sheet(path, (10, 9))
        draw(figure, shown.run)
    else:
        rows = [one for one in shown.rows if _is_known(one)]
        if not rows:
            raise ValueError("there is no gradient of a module to draw: print the diagnosis")
        figure = sheet(path, (10, 5.2))
        _draw_modules(figure, rows, shown.dtype)
    headed(figure, diagnosis, words=shown.head)
    return kept(figure, path, DPI)


def plot_run(run: ShownRun, path: str | PathLike[str] | None = None) -> Figure:
    """Draw a run: gradients by depth over time beside loss, norms, updates and findings.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no step to draw, or the suffix of `path` is unknown.
        OSError: the file cannot be written; nothing half-written is left.
    """
    if not len(run.step):
        raise ValueError("there is no step to draw")
    figure = sheet(path, (10, 8.4))
    draw(figure, run)
    return kept(figure, path, DPI)


def heat_figure(run: ShownRun) -> Figure | None:
    """Draw gradients by depth over time alone; None if the run has none.

    Raises:
        ImportError: matplotlib is not installed.
    """
    cells = cells_of(run, 400, 120)
    if cells is None:
        return None
    figure = blank((9, 5))
    _draw_heat(figure, figure.subplots(), run, cells)
    return figure


def draw(figure: Figure, run: ShownRun) -> None:
    """Draw a run into a figure: the heat map if it has one, and the columns that were recorded."""
    cells, columns = cells_of(run, 400, 120), _columns(run)
    heights = [2.6] * (cells is not None) + [1.0] * len(columns)
    if not heights:
        raise ValueError("there is no number to draw: neither a loss nor a gradient was recorded")
    panels = list(
        figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False).flat
    )
    if cells is not None:
        _draw_heat(figure, panels[0], run, cells)
    for axes, (title, lines) in zip(panels[cells is not None :], columns, strict=True):
        for values, css, label in lines:
            there = np.isfinite(values) | bool(run.nonfinite)  # of these alone there are gaps
            axes.plot(run.step[there], values[there], css, label=label, markersize=3, linewidth=0.9)
        _finish(axes, title, run, lines)
    panels[-1].set_xlabel("step", color=INK)


Line = tuple[FloatArray, str, str | None]  # values, matplotlib's format and the label
_COLOURS = {"C0": GRADIENT, "C1": DERIVATIVE, "C2": WEIGHTS, "C3": INK}


def _columns(run: ShownRun) -> list[tuple[str, list[Line]]]:
    """Return the panels below the heat map, each with its title and lines."""
    found: list[tuple[str, list[Line]]] = []
    held_out = np.isfinite(run.validation_loss).any()
    if np.isfinite(run.loss).any() or held_out:
        lines: list[Line] = [(run.loss, "C0", "batch" if held_out else None)]
        lines += [(run.validation_loss, "C1.", "held-out rows")] * bool(held_out)
        found.append(("loss", lines))
    if np.isfinite(run.gradient_norm).any():
        clipped = bool(is_clipped(run).any())
        lines = [(run.gradient_norm, "C0", "before the clip" if clipped else None)]
        lines += [(after_clip(run), "C1", "after it")] * clipped
        found.append(("gradient norm", lines))
    if np.isfinite(run.update_ratio).any():
        found.append(("update / weight", [(run.update_ratio, "C2.", None)]))
    rates = run.learning_rate[np.isfinite(run.learning_rate)]
    if len(np.unique(rates)) > 1:
        found.append(("learning rate", [(run.learning_rate, "C3", None)]))
    return found


def _finish(axes: Axes, title: str, run: ShownRun, lines: Sequence[Line]) -> None:
    """Give a panel its title, its scale, the marks of findings and spikes, and the colours."""
    for drawn, (_, css, _) in zip(axes.get_lines(), lines, strict=True):
        drawn.set_color(_COLOURS[css[:2]])
    known = np.concatenate([values[np.isfinite(values)] for values, _, _ in lines])
    if known.size and 0 < known.min() < 0.1 * known.max() and title != "learning rate":
        axes.set_yscale("log")
    _mark(axes, run)
    if title == "loss":
        for one in run.spikes:
            axes.axvline(one.step, color=SPIKE, linewidth=1, linestyle=":")
    axes.set_ylabel(title, color=INK, fontsize=9)
    bare(axes)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9)
    if any(label for _, _, label in lines):
        axes.legend(loc="best", frameon=False, fontsize=8, ncols=2, labelcolor=INK)


def _draw_heat(figure: Figure, axes: Axes, run: ShownRun, cells: Cells) -> None:
    colours = importlib.import_module("matplotlib.colors")
    map_ = colours.LinearSegmentedColormap.from_list("vegrad", RAMP).with_extremes(
        under=LOST, over=INFINITE, bad="#ffffff00"
    )
    floor = run.floor_log2 / DECADE
    low, high = cells.scale(floor)
    near = isfinite(floor) and low < floor + NEAR
    start = min(low, floor) if near else low
    sizes = cells.log10.copy()
    sizes[(sizes < floor) | (sizes == -np.inf)] = start - 1.0  # below the colours
    sizes[sizes == np.inf] = high + 1.0
    norm = colours.Normalize(start, high)
    edges = (*cells.steps, len(cells.rows) - 0.5, -0.5)
    image = axes.imshow(
        np.ma.masked_invalid(sizes),
        cmap=map_,
        norm=norm,
        aspect="auto",
        extent=edges,
        interpolation="nearest",
    )
    lost, infinite = bool((sizes < start).any()), bool((sizes > high).any())
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[lost, infinite]
    bar = figure.colorbar(image, ax=axes, extend=extend, pad=0.01, aspect=30)
    label, (places, names) = "the gradient's norm", _powers(start, high)
    bar.set_ticks(places, labels=names)
    ends = f"{label}; the dtype ends at {power(floor)}"
    bar.set_label(ends if near or lost else label, size=8.5)
    bar.ax.tick_params(labelsize=8.5, colors=INK)
    if near:
        bar.ax.axhline(floor, color=ALARM, linewidth=2)
    named_rows(axes, run.modules, cells)
    axes.set_title("Gradient by depth over time", loc="left", fontsize=11, fontweight="bold")
    axes.tick_params(colors=INK)
    _mark(axes, run, words=True)


def named_rows(axes: Axes, modules: Sequence[str], cells: Cells) -> None:
    """Name the rows of a heat map that there is room for."""
    rows = len(cells.rows)
    shown = np.unique(np.linspace(0, rows - 1, min(rows, NAMES)).round().astype(int)).tolist()
    places = [cells.rows[n][1 if n == rows - 1 else 0] for n in shown]
    axes.set_yticks(shown, [_shortened(modules[n]) for n in places], fontsize=8)


def _mark(axes: Axes, run: ShownRun, *, words: bool = False) -> None:
    """Draw a line at each step at which a finding came up, with its cause at the top one."""
    for place, one in enumerate(run.noted):
        axes.axvline(one.step, color=ALARM, linewidth=1, linestyle="--")
        if words and place < 6:
            axes.annotate(
                f"◆ {one.finding.cause or one.finding.kind}",
                (one.step, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(2, -9 - 11 * place),
                textcoords="offset points",
                fontsize=8,
                color="white",
                bbox={"boxstyle": "square,pad=0.15", "facecolor": ALARM, "linewidth": 0},
            )


def _draw_modules(figure: Figure, rows: Sequence[ModuleRow], dtype: str) -> None:
    """Draw ‖δ‖ and the gradient of the weights of the modules of one step."""
    axes = figure.subplots()
    places = np.arange(len(rows))
    dots = {"marker": "o", "markersize": 3.5 if len(rows) <= 100 else 0.0}
    ends = []
    for name, colour, label in (
        ("gradient_norm", WEIGHTS, "at the weights, ‖∂loss/∂W‖"),
        ("delta_norm", GRADIENT, "at the module's output, ‖δ‖"),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = np.log10(np.array([one[name] for one in rows], np.float64))  # type: ignore[literal-required]
        known = np.isfinite(sizes)
        axes.plot(places[known], sizes[known], color=colour, label=label, linewidth=1.5, **dots)
        ends += sizes[known].tolist()
        zero = np.flatnonzero(sizes == -np.inf)
        if zero.size:
            axes.plot(zero, np.zeros(zero.size), "x", color=ALARM, label=f"exactly 0: {label}",
                      transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    if dtype and ends:
        limits, stripes = with_range(dtype, axes.get_ylim(), (min(ends), max(ends)), 0.1)
        for outer, inner, _ in stripes:
            axes.axhspan(outer, inner, color=ALARM, alpha=0.08, linewidth=0)
            axes.axhline(inner, color=ALARM, linewidth=1, label=f"the end of {dtype}")
        axes.set_ylim(limits)
    shown = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 24)).round().astype(int))
    names = [_shortened(rows[n]["module"]) for n in shown.tolist()]
    axes.set_xticks(shown, names, rotation=90, fontsize=8)
    axes.set_yticks(*_powers(*axes.get_ylim()))
    axes.set_ylabel("its size", color=INK)
    axes.set_title("The gradient, module by module", loc="left", fontsize=11, fontweight="bold")
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    bare(axes)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.tick_params(colors=INK)


def _powers(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return the places and the words of powers of ten on an axis of log10, as on the page."""
    ticks = power_ticks(low, high)
    return [place for place, _ in ticks], [words for _, words in ticks]


def _is_known(row: ModuleRow) -> bool:
    return isfinite(row["delta_norm"]) or isfinite(row["gradient_norm"])


def _shortened(name: str) -> str:
    name = visible(name)
    return in_picture(name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}")
