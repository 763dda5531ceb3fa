"""The charts of a page about training: loss, accuracy and the steps as hops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.reports import descent
from vegrad.reports.protocols import ShownHistory
from vegrad.reports.svg import Chart, Entry, figure, plain_ticks, power_ticks, reach


class Run(NamedTuple):
    """A training to draw."""

    words: str
    """Its name in the legend; empty if there is only one."""
    css: str
    """The class of its colour, without "s-"."""
    history: ShownHistory


Curve = tuple[FloatArray, FloatArray, str]  # x, y and the class of its colour


def loss(runs: Sequence[Run], name: str = "loss") -> str:
    """Draw the loss of each training, step by step and epoch by epoch."""
    curves: list[Curve] = []
    marks: list[Curve] = []
    legend: list[Entry] = []
    for run in runs:
        ends = np.cumsum(run.history.epoch_steps) - 1
        said = f"{run.words}: " if run.words else ""
        thin = f"thin s-{run.css if len(runs) > 1 else 'faint'}"
        curves.append((np.arange(float(run.history.steps)), run.history.loss, thin))
        legend.append((f"{said}loss of the batches", [("line", thin)]))
        if len(runs) == 1:
            curves.append((ends, run.history.epoch_loss, f"s-{run.css}"))
            legend.append(("mean of an epoch", [("line", f"s-{run.css}")]))
        held_out = run.history.validation_loss
        if np.isfinite(held_out).any():
            css = "derivative" if len(runs) == 1 else run.css
            curves.append((ends, held_out, f"s-{css}"))
            marks.append((ends, held_out, f"small s-{css}"))
            drawn = [("line", f"s-{css}"), ("dots", f"small s-{css}")]
            legend.append((f"{said}held-out rows", drawn))
    last = max((run.history.steps for run in runs), default=1)
    words = "The loss over the steps. " + " ".join(
        f"{run.words or 'It goes'} from {_ends(run.history.loss)}." for run in runs
    )
    losses = np.concatenate([y for _, y, _ in curves])
    chart, scale = _loss_chart(name, "Loss", words, (-0.5, max(last - 0.5, 0.5)), losses, 220)
    for x, y, css in curves:
        chart.line(x, scale(y), css)
    for x, y, css in marks:
        chart.dots(x, scale(y), css)
    chart.x_axis(plain_ticks(0, max(last - 1, 1), 5, whole=True))
    return figure("Loss", chart if last else "no step was taken", legend, aside="over the steps")


def accuracy(runs: Sequence[Run], name: str = "accuracy") -> str:
    """Draw the validation accuracy of each training that has one; "" if none has."""
    runs = [run for run in runs if np.isfinite(run.history.validation_accuracy).any()]
    if not runs:
        return ""
    last = max(run.history.epochs for run in runs)
    words = " ".join(
        f"{run.words or 'Accuracy'}: from {_ends(100 * run.history.validation_accuracy)} %."
        for run in runs
    )
    chart = Chart(name, "Validation accuracy", words, (0.5, last + 0.5), (-4.0, 104.0), 220)
    chart.y_axis([(n, f"{n} %") for n in (0, 25, 50, 75, 100)])
    legend: list[Entry] = []
    for said, css, history in runs:
        epochs, percent = np.arange(1, history.epochs + 1), 100 * history.validation_accuracy
        chart.line(epochs, percent, f"s-{css}")
        chart.dots(epochs, percent, f"small s-{css}")
        legend.append((said or "held-out rows", [("line", f"s-{css}"), ("dots", f"small s-{css}")]))
    chart.x_axis(plain_ticks(1, max(last, 2), 5, whole=True))
    return figure("Validation accuracy", chart, legend, aside="over the epochs")


def hops(history: ShownHistory) -> str:
    """Draw the steps that the gauge looked at, as hops over the loss along them."""
    shown = descent.chosen(history)
    if not len(shown):
        return ""
    places, widths, compressed = descent.way(history)
    arcs = [descent.along(history, step) for step in shown]
    losses = np.append(history.loss, history.loss_after[shown])
    losses = losses[np.isfinite(losses)]
    kinds = [descent.kind(history, step) for step in shown]
    counts = {k: kinds.count(k) for k in sorted(set(kinds))}
    words = ", ".join(f"{n} × {descent.HOPS[k].name}" for k, n in counts.items())
    words = f"Of the steps drawn: {words}."
    chart, scale = _loss_chart("hops", "The descent", words, (0.0, places[-1]), losses, 230)
    chart.line(places[:-1], scale(history.loss), "thin s-way")
    legend: list[Entry] = [(descent.HOPS[k].name, [("line", f"s-hop{k}")]) for k in counts]
    room = np.ptp(losses) / 4
    for step, kind, (t, curve, beyond, ghost) in zip(shown, kinds, arcs, strict=True):
        start, width = places[step], widths[step]
        if curve.min() < losses.min() - room or curve.max() > losses.max() + room:
            t, curve = t[[0, -1]], curve[[0, -1]]  # a slope so steep says nothing of the way
        if len(beyond):
            chart.line(start + width * beyond, scale(ghost), "dotted s-chalk")
        chart.line(start + width * t, scale(curve), f"s-hop{kind}")
        chart.dots([start], scale(history.loss[[step]]), "small s-chalk")
    if any(len(arc.beyond) for arc in arcs):
        legend.append(("without the clip", [("line", "dotted s-chalk")]))
    aside = "way through the weights" + (", lengths by their logarithm" * compressed)
    note = (
        f"{len(shown)} of the steps that the gauge looked at, each over the loss of its batch "
        "along the step."
    )
    return figure("The descent", chart, legend, aside=aside, note=note, css="board")


def _loss_chart(
    name: str, title: str, words: str, x: tuple[float, float], losses: FloatArray, height: int
) -> tuple[Chart, Callable[[FloatArray], FloatArray]]:
    """Begin a chart of losses, logarithmic if they span much; return it and the axis's scale."""
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        finite = np.ones(1)
    if descent.tall(finite):
        ends = reach([np.log10(finite)], least=0.3)
        scale, ticks = _log10, power_ticks(*ends)
    else:
        ends = reach([finite], least=1e-9 + 1e-3 * float(np.abs(finite).max()))
        scale, ticks = _as_it_is, plain_ticks(*ends)
    chart = Chart(name, title, words, x, ends, height)
    chart.y_axis(ticks)
    return chart, scale


def _log10(values: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms: FloatArray = np.log10(values)
    return logarithms


def _as_it_is(values: FloatArray) -> FloatArray:
    return values


def _ends(values: FloatArray) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}" if len(values) else "nothing"
