"""The parts of a page about a model that is no chain: its modules, its training and its spikes."""

from __future__ import annotations

from collections.abc import Sequence

from vegrad.reports import charts, parts, run_charts, spikes, tables
from vegrad.reports.shown_run import ShownModules, ShownRun

ENDS = 40  # modules at either end that a page's table has, of many


def modules(shown: ShownModules) -> str:
    """Show the training, as far as it was recorded, and the modules."""
    found = [training(shown.run), *parts_of(shown, ENDS).values()]
    return "".join(found)


def training(run: ShownRun | None) -> str:
    """Show a training: the chart of its steps, and its spikes; nothing of a single step."""
    if run is None or len(run.step) < 2:
        return ""
    return f"<h2>The training</h2>{run_charts.course(run)}{spikes.section(run)}"


def parts_of(shown: ShownModules, ends: int) -> dict[str, str]:
    """Return what is shown of the modules themselves, by what to call it."""
    in_time = tables.through_time(shown.through_time)
    return {
        "the gradient by module": f"<h2>The modules</h2>{charts.modules(shown.rows, shown.dtype)}"
        if shown.rows
        else "",
        "the modules": tables.modules(shown.rows, ends) if shown.rows else "",
        "the flow through time": f"<h2>Through time</h2>{in_time}" if in_time else "",
        "the notes": notes(shown.notes),
    }


def notes(said: Sequence[str]) -> str:
    """Write what a user should know, though it is no fault."""
    return "".join(f'<p class="soft note">{parts.sentence(one)}</p>' for one in said)
