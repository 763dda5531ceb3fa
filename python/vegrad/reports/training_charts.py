"""The charts of a page about training: loss, accuracy and the steps as hops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import escape
from vegrad.flow.descent import Descent
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
    chart, scale = loss_chart(name, "Loss", words, (-0.5, max(last - 0.5, 0.5)), losses, 220)
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


def hops(one: Descent, title: str = "The descent", name: str = "hops") -> str:
    """Draw the steps that were looked at, as hops over the loss along them."""
    if not one.looks:
        return ""
    places, widths, compressed = descent.way(one)
    losses = descent.losses_of(one)
    kinds = [descent.kind(look) for look in one.looks]
    counts = {k: kinds.count(k) for k in sorted(set(kinds))}
    words = ", ".join(f"{n} × {descent.HOPS[k].name}" for k, n in counts.items())
    words = f"Of the steps drawn: {words}."
    ends = descent.reach(one, losses)
    chart, scale = loss_chart(name, title, words, (0.0, places[-1]), losses, 230, ends)
    if isfinite(one.guess):
        level = scale(np.array([one.guess, one.guess]))
        chart.line(places[[0, -1]], level, "dashed s-chalk")
        chart.text(places[-1], float(level[0]), "guessing", "faint-text", "end", below=14)
    if len(one.looks) < len(one.length) or not one.whole:
        chart.line(places, scale(one.loss), "thin s-way")
    for look, kind in zip(one.looks, kinds, strict=True):
        start, width = places[look.step], widths[look.step]
        if len(look.beyond):
            chart.line(start + width * look.beyond, scale(look.ghost), "dotted s-chalk")
        chart.line(start + width * look.places, scale(look.loss), f"s-hop{kind}")
        chart.dots([start], scale(look.loss[:1]), "small s-chalk")
        hop = descent.HOPS[kind]
        chart.marks([start + width], scale(look.loss[-1:]), hop.mark, f"mark f-hop{kind}")
    legend: list[Entry] = [
        (descent.HOPS[k].name, [("line", f"s-hop{k}"), (descent.HOPS[k].mark, f"mark f-hop{k}")])
        for k in counts
    ]
    if any(len(look.beyond) for look in one.looks):
        legend.append(("without the clip", [("line", "dotted s-chalk")]))
    aside = "way through the weights" + (", lengths by their logarithm" * compressed)
    rows = "the loss of all rows" if one.whole else "the loss of its batch"
    said = "; ".join(words.replace("\n", " ") for _, words in descent.notes(one))
    note = f"{len(one.looks)} of {len(one.length)} steps, each over {rows} along the step."
    note = f"{said[:1].upper()}{said[1:]}. {note}" if said else note
    return figure(title, chart, legend, aside=aside, note=escape(note), css="board")


def loss_chart(
    name: str,
    title: str,
    words: str,
    x: tuple[float, float],
    losses: FloatArray,
    height: int,
    ends: tuple[float, float] | None = None,
) -> tuple[Chart, Callable[[FloatArray], FloatArray]]:
    """Begin a chart of losses, logarithmic if they span much; return it and the axis's scale.

    `ends` are those of an axis that is not logarithmic, if they are not to follow from the losses.
    """
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        finite = np.ones(1)
    if descent.tall(finite):
        ends = reach([np.log10(finite)], least=0.3)
        scale, ticks = _log10, power_ticks(*ends)
    else:
        least = 1e-9 + 1e-3 * float(np.abs(finite).max())
        ends = reach([finite], least) if ends is None else ends
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
