"""Spikes of a training: what came before, at and after each, in words and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import inf, isnan

from vegrad.reports import tables
from vegrad.reports.shown_run import ShownRun, ShownSpike, ShownSpikeStep
from vegrad.reports.values import count_of

MOST = 5  # spikes that are shown: those that went highest
AROUND = 3  # steps shown on either side of a spike
LETTERS = 40  # of a batch's name


def section(run: ShownRun) -> str:
    """Show the highest spikes, each with the steps around it; nothing if there are none."""
    if not run.spikes:
        return ""
    highest = sorted(run.spikes, key=lambda one: -max(one.loss_times, one.norm_times))[:MOST]
    shown = "".join(_card(run, one) for one in sorted(highest, key=lambda one: one.step))
    left = len(run.spikes) - len(highest)
    more = f'<p class="above">The {len(highest)} highest of {len(run.spikes)}.</p>' if left else ""
    return f"<h2>Spikes</h2>{more}{shown}"


def words(run: ShownRun, spike: ShownSpike) -> list[str]:
    """Tell of a spike: how high it went, in which batch, and which module moved first."""
    sizes = [
        f"{what} {_times(factor)} the median of the steps before"
        for what, factor in (("loss", spike.loss_times), ("gradient", spike.norm_times))
        if factor > 0
    ]
    batch = "" if spike.batch is None else f", batch {_name(spike.batch)}"
    said = [f"step {spike.step}{batch}: {' and '.join(sizes)}"]
    moved = run.moved(spike)
    if moved is not None:
        when = "at that step" if moved.step == spike.step else f"at step {moved.step}"
        others = f", with {count_of(moved.others, 'other module')}" if moved.others else ""
        said.append(
            f"the gradient of {moved.module} moved first and most, {when}{others}: to "
            f"{_times(moved.times)} its usual size"
        )
    elif run.gradient_log2.size:
        said.append("no module's gradient left its usual size before it")
    return said


def _card(run: ShownRun, spike: ShownSpike) -> str:
    title, *rest = words(run, spike)
    body = "".join(f"<p>{escape(one[0].upper() + one[1:])}.</p>" for one in rest)
    return (
        f'<div class="card spike"><h3>{escape(title[0].upper() + title[1:])}</h3>{body}'
        f"{tables.window(_around(spike), spike.step)}</div>"
    )


def _around(spike: ShownSpike) -> Sequence[ShownSpikeStep]:
    """Return the few steps before and after a spike."""
    place = next((n for n, one in enumerate(spike.window) if one.step == spike.step), 0)
    return spike.window[max(place - AROUND, 0) : place + AROUND + 1]


def _times(factor: float) -> str:
    if isnan(factor) or factor == inf:
        return "beyond every multiple of"
    return f"{factor:.3g} times"


def _name(batch: object) -> str:
    said = " ".join(str(batch).split())
    return said if len(said) <= LETTERS else f"{said[: LETTERS - 1]}…"
