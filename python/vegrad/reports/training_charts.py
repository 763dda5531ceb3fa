"""The charts of a page about training: loss, accuracy and the steps as hops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.reports import descent
from vegrad.reports.svg import Chart, Entry, Numbers, figure, plain_ticks, power_ticks, reach

Run = tuple[str, str, Any]  # what it is called, its colour's class, its history


def loss(runs: Sequence[Run], name: str = "loss") -> str:
    """The loss of each (words, colour's class, history), step by step, epoch by epoch."""
    curves: list[tuple[Numbers, Numbers, str]] = []
    legend: list[Entry] = []
    marks: list[tuple[Numbers, Numbers, str]] = []
    for words, css, history in runs:
        steps = np.arange(history.steps)
        ends = np.cumsum(history.epoch_steps) - 1
        said = f"{words}: " if words else ""
        curves.append((steps, history.loss, f"thin s-{css if len(runs) > 1 else 'faint'}"))
        legend.append((f"{said}loss of the batches", [("line", curves[-1][2])]))
        if len(runs) == 1:
            curves.append((ends, history.epoch_loss, f"s-{css}"))
            legend.append(("mean of an epoch", [("line", f"s-{css}")]))
        if np.isfinite(history.validation_loss).any():
            held = "derivative" if len(runs) == 1 else css
            curves.append((ends, history.validation_loss, f"s-{held}"))
            marks.append((ends, history.validation_loss, f"small s-{held}"))
            drawn = [("line", f"s-{held}"), ("dots", f"small s-{held}")]
            legend.append((f"{said}held-out rows", drawn))
    everything = np.concatenate([y for _, y, _ in curves + marks])
    scale, bottom, top, ticks = _loss_axis(everything)
    last = max((history.steps for _, _, history in runs), default=1)
    words = "The loss over the steps. " + " ".join(
        f"{words or 'It goes'} from {_ends(history.loss)}." for words, _, history in runs
    )
    chart = Chart(name, "Loss", words, (-0.5, max(last - 0.5, 0.5)), (bottom, top), 220)
    chart.y_axis(ticks)
    for x, y, css in curves:
        chart.line(x, scale(y), css)
    for x, y, css in marks:
        chart.dots(x, scale(y), css)
    chart.x_axis(plain_ticks(0, max(last - 1, 1), 5, whole=True))
    return figure("Loss", chart if last else "no step was taken", legend, aside="over the steps")


def accuracy(runs: Sequence[Run], name: str = "accuracy") -> str:
    """The validation accuracy of each (words, colour's class, history); nothing if none has any."""
    runs = [run for run in runs if np.isfinite(run[2].validation_accuracy).any()]
    if not runs:
        return ""
    last = max(history.epochs for _, _, history in runs)
    words = " ".join(
        f"{words or 'Accuracy'}: from {_ends(100 * history.validation_accuracy)} %."
        for words, _, history in runs
    )
    chart = Chart(name, "Validation accuracy", words, (0.5, last + 0.5), (-4.0, 104.0), 220)
    chart.y_axis([(n, f"{n} %") for n in (0, 25, 50, 75, 100)])
    legend: list[Entry] = []
    for said, css, history in runs:
        epochs = np.arange(1, history.epochs + 1)
        chart.line(epochs, 100 * history.validation_accuracy, f"s-{css}")
        chart.dots(epochs, 100 * history.validation_accuracy, f"small s-{css}")
        legend.append((said or "held-out rows", [("line", f"s-{css}"), ("dots", f"small s-{css}")]))
    chart.x_axis(plain_ticks(1, max(last, 2), 5, whole=True))
    return figure("Validation accuracy", chart, legend, aside="over the epochs")


def hops(history: Any) -> str:
    """The steps that the gauge looked at, as hops over the loss along them."""
    shown = descent.chosen(history)
    if not len(shown):
        return ""
    way, widths, compressed = descent.way(history)
    curves = [descent.along(history, step) for step in shown]
    ends = np.append(history.loss, history.loss_after[shown])
    ends = ends[np.isfinite(ends)]
    scale, bottom, top, ticks = _loss_axis(ends)
    kinds = [descent.kind(history, step) for step in shown]
    counts = {k: kinds.count(k) for k in sorted(set(kinds))}
    words = ", ".join(f"{n} × {descent.HOPS[k].name}" for k, n in counts.items())
    chart = Chart("hops", "The descent", f"Of the steps drawn: {words}.", (0.0, way[-1]),
                  (bottom, top), 230)  # fmt: skip
    chart.y_axis(ticks)
    chart.line(way[:-1], scale(history.loss), "thin s-way")
    legend: list[Entry] = [(descent.HOPS[k].name, [("line", f"s-hop{k}")]) for k in counts]
    for step, kind, (t, below, beyond, ghost) in zip(shown, kinds, curves, strict=True):
        start, width = way[step], widths[step]
        room = np.ptp(ends) / 4
        if below.min() < ends.min() - room or below.max() > ends.max() + room:
            t, below = t[[0, -1]], below[[0, -1]]  # a slope so steep says nothing of the way
        if len(beyond):
            chart.line(start + width * beyond, scale(ghost), "dotted s-chalk")
        chart.line(start + width * t, scale(below), f"s-hop{kind}")
        chart.dots([start], scale(history.loss[[step]]), "small s-chalk")
    if any(len(beyond) for _, _, beyond, _ in curves):
        legend.append(("without the clip", [("line", "dotted s-chalk")]))
    aside = "way through the weights" + (", lengths by their logarithm" * compressed)
    note = (
        f"{len(shown)} of the steps that the gauge looked at, each over the loss of its batch "
        "along the step."
    )
    return figure("The descent", chart, legend, aside=aside, note=note, css="board")


# Heights ----------------------------------------------------------------------------------------


def _loss_axis(heights: FloatArray) -> tuple[Any, float, float, Any]:
    """From loss to height, the ends of the axis and its ticks; by logarithms if it is tall."""
    finite = heights[np.isfinite(heights)]
    if not len(finite):
        finite = np.ones(1)
    if finite.min() > 0 and finite.max() > descent.TALL * finite.min():
        bottom, top = reach([np.log10(finite)], least=0.3)
        return _log10, bottom, top, power_ticks(bottom, top)
    bottom, top = reach([finite], least=1e-9 + 1e-3 * float(np.abs(finite).max()))
    return np.asarray, bottom, top, plain_ticks(bottom, top)


def _log10(values: Any) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms: FloatArray = np.log10(values)
    return logarithms


def _ends(values: FloatArray) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}" if len(values) else "nothing"
