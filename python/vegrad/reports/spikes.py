"""Spikes of a training: what came before, at and after each, in words and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import inf
from statistics import median

from vegrad.reports import tables
from vegrad.reports.shown_run import ShownRun, ShownSpike, ShownSpikeStep
from vegrad.reports.text import WIDTH, indented
from vegrad.reports.values import count_of

MOST = 5  # spikes that are shown: those that went highest
AROUND = 3  # steps shown on either side of a spike
LETTERS = 40  # of a batch's name
FAR = 2.0  # times the median before: less is no part of the spike


def section(run: ShownRun) -> str:
    """Show the highest spikes, each with the steps around it; nothing if there are none."""
    if not run.spikes:
        return ""
    highest = _highest(run)
    shown = "".join(_card(run, one) for one in highest)
    left = len(run.spikes) - len(highest)
    more = f'<p class="above">The {len(highest)} highest of {len(run.spikes)}.</p>' if left else ""
    return f"<h2>Spikes</h2>{more}{shown}"


def told(run: ShownRun, width: int = WIDTH) -> list[str]:
    """Tell of the highest spikes in lines of a text, below an empty one; nothing of none."""
    lines = [
        indented("~ ", f"spike at {'; '.join(words(run, one))}.", width) for one in _highest(run)
    ]
    left = len(run.spikes) - len(lines)
    more = [f"  and {count_of(left, 'lower spike')}"] if left > 0 else []
    return ["", *lines, *more] if lines else []


def _highest(run: ShownRun) -> Sequence[ShownSpike]:
    highest = sorted(run.spikes, key=lambda one: -max(one.loss_times, one.norm_times))[:MOST]
    return sorted(highest, key=lambda one: one.step)


def words(run: ShownRun, spike: ShownSpike) -> list[str]:
    """Tell of a spike: how high it went, in which batch, and which module moved first."""
    sizes = [
        f"{what} {factor:.3g} times"
        for what, factor in (("loss", spike.loss_times), ("gradient", _norm_times(run, spike)))
        if FAR <= factor < inf
    ]
    batch = "" if spike.batch is None else f", batch {_name(spike.batch)}"
    far = f"{' and '.join(sizes)} the median of the steps before" if sizes else "not finite"
    said = [f"step {spike.step}{batch}: {far}"]
    moved = run.moved(spike)
    if moved is not None:
        when = "at that step" if moved.step == spike.step else f"at step {moved.step}"
        others = f", with {count_of(moved.others, 'other module')}" if moved.others else ""
        said.append(
            f"the gradient of {moved.module} moved first and most, {when}{others}: to "
            f"{moved.times:.3g} times its usual size"
        )
    elif run.gradient_log2.size:
        said.append("no module's gradient left its usual size before it")
    return said


def _card(run: ShownRun, spike: ShownSpike) -> str:
    title, *rest = words(run, spike)
    body = "".join(f"<p>{escape(one[0].upper() + one[1:])}.</p>" for one in rest)
    norms = _norms(run)
    around = [(one, norms.get(one.step, one.gradient_norm)) for one in _around(spike)]
    return (
        f'<div class="card spike"><h3>{escape(title[0].upper() + title[1:])}</h3>{body}'
        f"{tables.window(around, spike.step)}</div>"
    )


def _around(spike: ShownSpike) -> Sequence[ShownSpikeStep]:
    """Return the few steps before and after a spike."""
    place = next((n for n, one in enumerate(spike.window) if one.step == spike.step), 0)
    return spike.window[max(place - AROUND, 0) : place + AROUND + 1]


def _norm_times(run: ShownRun, spike: ShownSpike) -> float:
    """Return the gradient's joint norm, before any clip, over the median of those before it."""
    norms = _norms(run)
    before = [
        norms[one.step] for one in spike.window if one.step < spike.step and one.step in norms
    ]
    if spike.step not in norms or not before or not median(before) > 0:
        return spike.norm_times
    return norms[spike.step] / median(before)


def _norms(run: ShownRun) -> dict[int, float]:
    """Return the joint norm before any clip, by step."""
    return {int(n): x for n, x in zip(run.step.tolist(), run.gradient_norm.tolist(), strict=True)}


def _name(batch: object) -> str:
    said = " ".join(str(batch).split())
    return said if len(said) <= LETTERS else f"{said[: LETTERS - 1]}…"
