"""The charts of two runs, or two diagnoses, side by side."""

from __future__ import annotations

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import DECADE
from vegrad.reports import run_charts
from vegrad.reports.heat import RATIOS, as_address, ratios_of, shades
from vegrad.reports.run_charts import Plot
from vegrad.reports.shown_comparison import ShownComparison
from vegrad.reports.shown_run import ShownRun
from vegrad.reports.svg import Chart, Entry, figure, plain_ticks, power_ticks, reach, stacked
from vegrad.reports.training_charts import loss_chart
from vegrad.reports.values import decades

COLOURS = ("gradient", "derivative")  # of the first and the second
WIDEST, NARROWEST = 6.0, 0.5  # decades on either side of 1 that the colours span
MOST_DOTS = 60


def charts(one: ShownComparison) -> str:
    """Draw both: of runs over the steps, of diagnoses over the layers; "" if there is nothing."""
    if one.runs is None:
        return _profiles(one)
    plots = [*_ratios(one, one.runs), *_lines(one, one.runs)]
    if not plots:
        return ""
    title = f"{one.names[0]} and {one.names[1]}, step by step"
    return f"<h2>Step by step</h2>{stacked(title, plots)}"


def common(one: ShownComparison) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Return the modules of both runs, the common steps, and log2 of b's gradient over a's."""
    assert one.runs is not None
    a, b = one.runs
    names = tuple(name for name, *_ in one.sizes)
    step, first, second = np.intersect1d(a.step, b.step, return_indices=True)
    sizes = [
        run.gradient_log2[place][:, [list(run.modules).index(name) for name in names]]
        if names
        else np.empty((len(place), 0))
        for run, place in ((a, first), (b, second))
    ]
    with np.errstate(invalid="ignore"):
        return names, step, sizes[1] - sizes[0]


def span(log10: FloatArray) -> float:
    """Return how many decades the colours of ratios span on either side of 1."""
    known = np.abs(log10[np.isfinite(log10)])
    return float(np.clip(known.max(initial=0.0), NARROWEST, WIDEST))


def _ratios(one: ShownComparison, runs: tuple[ShownRun, ShownRun]) -> list[Plot]:
    """Draw the ratio of the gradients by depth over time, and the scale of its colours."""
    names, step, ratio = common(one)
    cells = ratios_of(step, ratio)
    if cells is None:
        return []
    wide, rows = span(cells.log10), len(cells.rows)
    a, b = one.names
    title = f"Gradient by depth over time: {b} over {a}"
    words = f"Ratios of the gradients of {len(names)} modules over {len(step)} steps."
    height = run_charts.height_of(rows)
    chart = Chart("ratio-heat", title, words, cells.steps, (rows - 0.5, -0.5), height)
    chart.image(as_address(shades(cells.log10, (-wide, wide), -np.inf), RATIOS))
    for place, module in run_charts.names_of(names, cells, height):
        chart.left(place, module)
    legend: list[Entry] = []
    first = next((each for each in one.departures if each.step is not None), None)
    if first is not None and first.step is not None:
        chart.upright(first.step, "dashed s-ink")
        legend.append((f"step {first.step}: they part", [("line", "dashed s-ink")]))
    chart.x_axis(plain_ticks(cells.steps[0], cells.steps[1] - 1, 5, whole=True))
    scale = np.linspace(-wide, wide, 256)[None, :]
    bar = Chart("ratio-colours", "Colours", "The colours of ratios.", (-wide, wide), (0.0, 1.0), 12)
    bar.image(as_address(shades(scale, (-wide, wide), -np.inf), RATIOS))
    bar.x_axis(power_ticks(-wide, wide, "×", most=5))
    zeros: list[Entry] = []
    for size, name, css in ((-np.inf, b, "f-lost"), (np.inf, a, "f-infinite")):
        if (cells.log10 == size).any():
            zeros.append((f"0 in {name} only", [("area", css)]))
    return [(title, chart, legend), ("Ratio of the norms", bar, zeros)]


def _lines(one: ShownComparison, runs: tuple[ShownRun, ShownRun]) -> list[Plot]:
    """Draw the columns that at least one of both has, both in one plot."""
    found = []
    for title, name in (
        ("Loss", "loss"),
        ("Validation loss", "validation_loss"),
        ("Global norm of the gradients", "gradient_norm"),
        ("Update over weight, median matrix", "update_ratio"),
        ("Learning rate", "learning_rate"),
    ):
        values = [np.asarray(getattr(run, name), np.float64) for run in runs]
        if any(np.isfinite(each).any() for each in values):
            found.append(_line(one, runs, title, name, values))
    return found


def _line(
    one: ShownComparison,
    runs: tuple[ShownRun, ShownRun],
    title: str,
    name: str,
    values: list[FloatArray],
) -> Plot:
    first = min(float(run.step[0]) for run in runs)
    last = max(float(run.step[-1]) for run in runs)
    words = " ".join(
        f"{said}: {run_charts.from_to(each)}." for said, each in zip(one.names, values, strict=True)
    )
    x = (first, max(last + 1, first + 1))
    chart, scale = loss_chart(f"both-{name}", title, words, x, np.concatenate(values), 130)
    legend: list[Entry] = []
    for run, each, css, said in zip(runs, values, COLOURS, one.names, strict=True):
        known = np.isfinite(each)
        if name in ("update_ratio", "validation_loss"):  # of a few steps only
            chart.line(run.step[known], scale(each[known]), f"thin s-{css}")
        else:
            chart.line(run.step, scale(each), f"thin s-{css}")
        legend.append((said, [("line", f"s-{css}")]))
    for parted in one.departures:
        if parted.what == name and parted.step is not None:
            chart.upright(parted.step, "dashed s-ink")
    chart.x_axis(plain_ticks(first, last, 5, whole=True))
    return title, chart, legend


def _profiles(one: ShownComparison) -> str:
    """Draw the gradients of two diagnoses over the layers or modules of both."""
    if len(one.sizes) < 2:
        return ""
    names = [name for name, *_ in one.sizes]
    sizes = [decades(np.array(each, np.float64)) for each in list(zip(*one.sizes, strict=True))[1:]]
    axis, places = reach(sizes, least=3.0), np.arange(len(names))
    words = " ".join(
        f"{said}: {run_charts.from_to(10.0**each)}."
        for said, each in zip(one.names, sizes, strict=True)
    )
    title = "The gradients of both"
    chart = Chart("both", title, words, (-0.7, len(names) - 0.3), axis)
    chart.y_axis(power_ticks(*axis))
    legend: list[Entry] = []
    for each, css, said in zip(sizes, COLOURS, one.names, strict=True):
        chart.line(places, each, f"s-{css}")
        if len(names) <= MOST_DOTS:
            chart.dots(places, each, f"small s-{css}")
        legend.append((said, [("line", f"s-{css}")]))
    chart.x_axis(plain_ticks(0, len(names) - 1, whole=True))
    if len(names) <= MOST_DOTS:
        a, b = one.names
        chart.hints(
            (n, f"{name}: {_size(first)} in {a}, {_size(second)} in {b}")
            for n, (name, first, second) in enumerate(one.sizes)
        )
    return f"<h2>Layer by layer</h2>{figure(title, chart, legend, aside='input to output')}"


def _size(log2_size: float) -> str:
    return f"10^{log2_size / DECADE:.1f}" if np.isfinite(log2_size) else f"{2.0**log2_size:g}"
