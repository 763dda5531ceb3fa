"""The chart of a run: gradients by depth over time, beside loss, norms, updates and findings."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import DECADE, power
from vegrad.reports.heat import Cells, as_address, cells_of, shades
from vegrad.reports.shown_run import ShownRun, after_clip, drawn, is_clipped
from vegrad.reports.svg import Chart, Entry, plain_ticks, power_ticks, reach, stacked
from vegrad.reports.training_charts import loss_chart
from vegrad.reports.values import NEAR, decades

LETTERS = 14  # of a module's name beside a chart
ROW = 16  # pixels from name to name
SHOWN = 6  # findings that the legend tells of
MOST_HINTS = 60
NONE = "no gradient by module was recorded"

Plot = tuple[str, Chart | str, list[Entry]]  # its words, the chart and its legend


def course(run: ShownRun, name: str = "run") -> str:
    """Draw a run: its gradients by depth over time, and below them its other columns."""
    plots = [*heat(run, name), *lines(run, name)]
    return stacked("The training, step by step", plots, note=_note(run))


# Gradient by depth over time ---------------------------------------------------------------------


def heat(run: ShownRun, name: str = "run") -> list[Plot]:
    """Draw the heat map with the marks of findings, and the scale of its colours."""
    cells = cells_of(run)
    if cells is None:
        return []
    floor = run.floor_log2 / DECADE
    scale = cells.scale(floor)
    rows, title = len(cells.rows), "Gradient by depth over time"
    words = (
        f"log10 of the norms of the gradients of {len(run.modules)} modules from step "
        f"{cells.steps[0]:.0f} to {cells.steps[1] - 1:.0f}. {_at_the_ends(run)}"
    )
    chart = Chart(f"{name}-heat", title, words, cells.steps, (rows - 0.5, -0.5), height_of(rows))
    chart.image(as_address(shades(cells.log10, scale, floor)))
    for place, module in names_of(run.modules, cells, chart.height):
        chart.left(place, module)
    mark_findings(chart, run, -0.5)
    if rows <= MOST_HINTS:
        chart.row_hints(
            (n - 0.5, n + 0.5, _hint(run.modules, place, cells.log10[n]))
            for n, place in enumerate(cells.rows)
        )
    chart.x_axis(plain_ticks(cells.steps[0], cells.steps[1] - 1, 5, whole=True))
    lost = bool((cells.log10 < floor).any() or (cells.log10 == -np.inf).any())
    legend: list[Entry] = []
    if lost:
        said = f"0, or below {10**floor:.1e}, the floor" if isfinite(floor) else "exactly 0"
        legend.append((said, [("area", "f-lost")]))
    if (cells.log10 == np.inf).any():
        legend.append(("inf", [("area", "f-infinite")]))
    return [(title, chart, findings_legend(run)), _colours(scale, floor, name, legend)]


def _colours(scale: tuple[float, float], floor: float, name: str, legend: list[Entry]) -> Plot:
    """Draw the colours of sizes, down to the floor of the dtype where they come near it."""
    low, high = scale
    near = isfinite(floor) and low < floor + NEAR
    start = min(low, floor - 0.03 * (high - floor)) if near else low
    places = np.linspace(start, high, 256)
    words = f"The colours, from {power(low, 1)} to {power(high, 1)}."
    chart = Chart(f"{name}-colours", "Colours", words, (start, high), (0.0, 1.0), 12)
    chart.image(as_address(shades(places[None, :], scale, floor)))
    if near:
        chart.upright(floor, "thick s-alarm")
        legend = [(f"{power(floor, 1)}: the dtype's floor", [("line", "thick s-alarm")]), *legend]
    chart.x_axis(power_ticks(start, high, most=5))
    return "Norm of the gradient of a module's weights", chart, legend


def height_of(rows: int) -> int:
    """Return the height of a heat map of so many rows, in pixels."""
    return min(max(12 * rows, 96), 300)


def names_of(modules: Sequence[str], cells: Cells, height: int) -> list[tuple[float, str]]:
    """Return the names that there is room for, each with its row: the ends, and some between."""
    rows = len(cells.rows)
    count = min(rows, max(height // ROW, 2))
    chosen = np.unique(np.linspace(0, rows - 1, count).round().astype(int)).tolist()
    last = len(cells.rows) - 1
    return [(row, shortened(modules[cells.rows[row][1 if row == last else 0]])) for row in chosen]


def shortened(name: str, letters: int = LETTERS) -> str:
    """Return the end of a long name, which tells more than its beginning."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _hint(modules: Sequence[str], places: tuple[int, int], sizes: FloatArray) -> str:
    first, last = places
    name = modules[first] if first == last else f"{modules[first]} … {modules[last]}"
    known = sizes[np.isfinite(sizes)]
    if not known.size:
        return name
    return f"{name}: {power(float(known[0]), 1)} at first, {power(float(known[-1]), 1)} at last"


def _at_the_ends(run: ShownRun) -> str:
    """Say how the first module's gradient compares with the last one's, at either end."""
    sizes = decades(run.gradient_log2)
    known = np.flatnonzero(np.isfinite(sizes[:, 0] - sizes[:, -1]))
    if not known.size or sizes.shape[1] < 2:
        return ""
    first, last = (power(float(sizes[n, 0] - sizes[n, -1]), 1) for n in known[[0, -1]])
    return f"The first module's over the last one's is {first} at first and {last} at last."


# The other columns -------------------------------------------------------------------------------


def lines(run: ShownRun, name: str = "run") -> list[Plot]:
    """Draw loss, norms, updates and the learning rate, as far as they were recorded."""
    found = []
    if np.isfinite(run.loss).any() or np.isfinite(run.validation_loss).any():
        found.append(_loss(run, name))
    if _some(run.gradient_norm):
        found.append(_norms(run, name))
    if _some(run.update_ratio):
        found.append(_updates(run, name))
    if len(np.unique(run.learning_rate[np.isfinite(run.learning_rate)])) > 1:
        found.append(_rate(run, name))
    return found


def _loss(run: ShownRun, name: str) -> Plot:
    losses = np.concatenate([run.loss, run.validation_loss])
    words = f"The loss over the steps: {from_to(run.loss)}."
    chart, scale = loss_chart(f"{name}-loss", "Loss", words, _sides(run), losses, 130)
    there = drawn(run, "loss")
    chart.line(run.step[there], scale(run.loss[there]), "thin s-gradient")
    legend: list[Entry] = []
    held_out = np.isfinite(run.validation_loss)
    if held_out.any():
        x, y = run.step[held_out], scale(run.validation_loss[held_out])
        chart.line(x, y, "s-derivative")
        chart.dots(x, y, "small s-derivative")
        legend = [
            ("loss of the batches", [("line", "thin s-gradient")]),
            ("held-out rows", [("line", "s-derivative"), ("dots", "small s-derivative")]),
        ]
    if run.spikes:
        steps = [one.step for one in run.spikes]
        there = np.searchsorted(run.step, steps).clip(max=len(run.step) - 1)
        chart.marks(steps, scale(run.loss)[there], "peak", "mark f-spike")
        legend.append(("spike", [("peak", "mark f-spike")]))
    return "Loss", _finished(chart, run), legend


def _norms(run: ShownRun, name: str) -> Plot:
    before, after = _log10(run.gradient_norm), _log10(after_clip(run))
    axis = reach([before, after], least=1.0)
    words = f"The joint norm of all gradients: {from_to(run.gradient_norm)}."
    chart = Chart(f"{name}-norm", "Gradient norm", words, _sides(run), axis, 130)
    chart.y_axis(power_ticks(*axis, most=4))
    there = drawn(run, "gradient_norm")
    chart.line(run.step[there], before[there], "thin s-gradient")
    legend: list[Entry] = []
    if is_clipped(run).any():
        chart.line(run.step[there], after[there], "thin s-derivative")
        legend = [
            ("before the clip", [("line", "s-gradient")]),
            ("after it", [("line", "s-derivative")]),
        ]
    return "Global norm of the gradients", _finished(chart, run), legend


def _updates(run: ShownRun, name: str) -> Plot:
    ratios = _log10(run.update_ratio)
    axis = reach([ratios, np.array([-3.0])], least=1.5)
    words = f"‖ΔW‖/‖W‖ of the median matrix: {from_to(run.update_ratio)}."
    chart = Chart(f"{name}-update", "Update ratio", words, _sides(run), axis, 100)
    chart.y_axis(power_ticks(*axis, most=4))
    chart.rule(-3.0, "dashed s-soft")
    chart.dots(run.step, ratios, "small s-weights")
    legend: list[Entry] = [("1/1000, a usual size", [("line", "dashed s-soft")])]
    return "Update over weight, median matrix", _finished(chart, run), legend


def _rate(run: ShownRun, name: str) -> Plot:
    rates = run.learning_rate
    high = float(np.nanmax(rates))
    words = f"The learning rate: {from_to(rates)}."
    chart = Chart(f"{name}-rate", "Learning rate", words, _sides(run), (0.0, 1.08 * high), 80)
    chart.y_axis([(0.0, "0"), (high, f"{high:.3g}")])
    there = drawn(run, "learning_rate")
    chart.line(run.step[there], rates[there], "thin s-ink")
    return "Learning rate", _finished(chart, run), []


def _finished(chart: Chart, run: ShownRun) -> Chart:
    """Mark the findings of a chart over the steps, and number its steps."""
    mark_findings(chart, run, chart.y[1])
    chart.x_axis(plain_ticks(float(run.step[0]), float(run.step[-1]), 5, whole=True))
    return chart


# What they share ---------------------------------------------------------------------------------


def mark_findings(chart: Chart, run: ShownRun, top: float) -> None:
    """Mark the steps at which findings came up."""
    for one in run.noted:
        chart.upright(one.step, "dashed s-alarm")
    steps = [one.step for one in run.noted]
    chart.marks(steps, [top] * len(steps), "diamond", "mark f-finding")


def findings_legend(run: ShownRun) -> list[Entry]:
    """Return lines of a legend that tell what came up at which step; the first few."""
    mark = [("diamond", "mark f-finding")]
    told: list[Entry] = [
        (f"step {one.step}: {one.finding.cause or one.finding.kind}", mark)
        for one in run.noted[:SHOWN]
    ]
    more = len(run.noted) - len(told)
    return [*told, (f"and {more} more", mark)] if more > 0 else told


def _note(run: ShownRun) -> str:
    if not run.gradient_log2.size:
        return ""
    said = "The first module is at the top. Darker is smaller."
    cells = cells_of(run)
    if cells is not None and len(cells.rows) < len(run.modules):
        said += f" {len(run.modules)} modules share {len(cells.rows)} rows, which have the medians."
    if cells is not None and cells.log10.shape[1] < len(run.step):
        said += " Where several steps share a column, it has the largest."
    return said


def _sides(run: ShownRun) -> tuple[float, float]:
    """Return the ends of the steps, as those of the heat map."""
    apart = float(np.diff(run.step).min()) if len(run.step) > 1 else 1.0
    return float(run.step[0]), float(run.step[-1]) + apart


def _some(values: FloatArray) -> bool:
    return bool((np.isfinite(values) & (values > 0)).any())


def _log10(values: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = np.log10(values)
    return np.where(np.isfinite(found), found, np.nan)


def from_to(values: FloatArray) -> str:
    """Say what a column begins and ends with."""
    known = values[np.isfinite(values)]
    return f"{known[0]:.4g} at first, {known[-1]:.4g} at last" if known.size else "none is finite"
