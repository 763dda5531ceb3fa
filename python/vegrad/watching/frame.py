"""A frame of a run for the terminal: numbers, the loss, gradients by depth, findings."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan

import numpy as np
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import SCREEN, visible
from vegrad.flow.wording import DECADE, power
from vegrad.recordings.run import RunDiagnosis
from vegrad.reports.heat import cells_of, palette, shades
from vegrad.reports.run_charts import shortened
from vegrad.runs.run import Run

BLOCKS = " ▁▂▃▄▅▆▇█"
HIGH = 4  # lines of the chart of the loss
LABEL = 17  # columns left of charts
NARROW, WIDE = 8, 160  # columns of charts
SHADED = " ·:-=+*#%@"  # sizes where there are no colours
FINDINGS = 4  # that are shown
ROWS, LOW = 12, 32  # of the heat strip, in lines; of a terminal in which there is room for less


def frame(
    run: Run,
    diagnosis: RunDiagnosis | None,
    width: int,
    height: float = inf,
    *,
    colours: bool = True,
) -> RenderableType:
    """Return the frame of a run that fits into a terminal.

    Args:
        run: the run.
        diagnosis: its diagnosis, if it could be judged.
        width: columns of the terminal.
        height: its lines; inf where it scrolls.
        colours: False for letters in place of colours.
    """
    columns = max(min(width - LABEL - 1, WIDE), NARROW)
    found = [_head(run, width), *map(Text, _numbers(run, width))]
    charts = [("loss", run.loss, HIGH), ("gradient norm", run.gradient_norm, 2)]
    for name, values, lines in charts[: 1 if height < LOW else 2]:  # findings are to be seen
        if np.isfinite(values).any():
            found += [Text(""), *_chart(name, run.step, values, columns, lines)]
    told = _findings(run, diagnosis, width)
    taken = len(found) + sum(-(-len(one) // width) or 1 for one in told)
    room = int(max(min(ROWS, height - taken - 5), 3))
    heat = _heat(run, columns, room, colours)
    if heat:
        found += [Text(""), *heat]
    return Group(*found, _axis(run, columns), Text(""), *told)


def waiting(problem: str) -> RenderableType:
    """Return the frame of a file that cannot be shown yet."""
    return Text(f"vegrad watch: {visible(problem, SCREEN)}", style="yellow")


def _head(run: Run, width: int) -> Text:
    keys = ("path", "model")
    names = [visible(str(run.about[key]), SCREEN) for key in keys if run.about.get(key)]
    step = f"step {run.step[-1]:.0f}" if run.steps else "no step yet"
    return Text(f"{', '.join(names)}: {step}", style="bold", no_wrap=True, overflow="ellipsis")


def _numbers(run: Run, width: int) -> list[str]:
    """Return the last numbers of a run, in a line, or in more where that is too narrow."""
    clip = run.clipped_norm / np.where(run.gradient_norm > 0, run.gradient_norm, np.nan)
    clipped = clip[np.isfinite(clip)][-100:]
    lowest = float(np.nanmin(run.loss)) if np.isfinite(run.loss).any() else np.nan
    parts = [
        ("last loss", run.last("loss")),
        ("lowest", "" if isnan(lowest) else f"{lowest:.4g}"),
        ("gradient norm", run.last("gradient_norm")),
        ("update", run.last("update_ratio")),
        ("rate", run.last("learning_rate")),
        ("held out", run.last("validation_loss")),
        ("clipped", f"{(clipped < 0.999).mean():.0%}" if len(clipped) else ""),
    ]
    lines = [""]
    for said in (f"{name} {value}" for name, value in parts if value):
        if lines[-1] and len(lines[-1]) + 2 + len(said) > width:
            lines.append("")
        lines[-1] += f"  {said}" if lines[-1] else said
    return lines


def _binned(step: FloatArray, values: FloatArray, columns: int) -> FloatArray:
    """Return the median of the values that fall into each column; the one before, if none does."""
    known = np.isfinite(values)
    step, values = step[known], values[known]
    low, high = step[0], step[-1]
    place = ((step - low) / max(high - low, 1.0) * (columns - 1)).round().astype(int)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    medians = np.array([np.median(part) for part in np.split(values, starts[1:])])
    there = np.searchsorted(place[starts], np.arange(columns), "right") - 1
    return np.asarray(medians[there], np.float64)


def _chart(name: str, step: FloatArray, values: FloatArray, columns: int, lines: int) -> list[Text]:
    """Draw a line of blocks, on a scale of logarithms where the values ask for it."""
    shown = _binned(step, values, columns)
    low, high = float(shown.min()), float(shown.max())
    logs = low > 0 and high > 10 * low
    scaled = np.log10(shown) if logs else shown
    bottom, top = float(scaled.min()), float(scaled.max())
    eighths = np.round((scaled - bottom) / max(top - bottom, 1e-300) * (8 * lines - 1)) + 1
    logarithmic = ", on a scale of logarithms" if logs else ""
    medians = ", medians" if np.isfinite(values).sum() > columns else ""
    drawn = [Text(f"{name}{medians}{logarithmic}", style="dim", no_wrap=True)]
    labels = {lines - 1: f"{high:.4g}", 0: f"{low:.4g}"}
    for line in range(lines - 1, -1, -1):
        fill = np.clip(eighths - 8 * line, 0, 8).astype(int)
        text = Text(f"{labels.get(line, ''):>{LABEL - 1}} ", no_wrap=True)
        drawn.append(text.append("".join(BLOCKS[n] for n in fill), style="cyan"))
    return drawn


def _heat(run: Run, columns: int, lines: int, colours: bool) -> list[Text]:
    """Draw gradients by depth over time: two rows of modules a line, where there are colours."""
    cells = cells_of(run, columns, 2 * lines if colours else lines)
    if cells is None:
        return []
    floor = run.floor_log2 / DECADE
    scale = cells.scale(floor)
    numbers = shades(cells.log10, scale, floor)
    places = np.arange(columns) * numbers.shape[1] // columns
    names = [shortened(run.modules[first], LABEL - 1) for first, _ in cells.rows]
    low, high = (" (dark)", "") if colours else (f" ({SHADED[1]})", f" ({SHADED[-1]})")
    title = f"gradient by depth, from {power(scale[0], 1)}{low} to {power(scale[1], 1)}{high}"
    drawn = [Text(title, style="dim")]
    if not colours:
        letters = _letters(cells.log10, scale)[
            :, (np.arange(columns) * cells.log10.shape[1]) // columns
        ]
        for name, row in zip(names, letters, strict=True):
            drawn.append(Text(f"{name:>{LABEL - 1}} {''.join(row)}", no_wrap=True))
        return drawn
    ramp = [tuple(one) for one in palette().tolist()]
    for place in range(0, len(names), 2):
        upper = numbers[place, places]
        lower = numbers[place + 1, places] if place + 1 < len(names) else np.zeros_like(upper)
        text = Text(f"{names[place]:>{LABEL - 1}} ", no_wrap=True)
        _append(text, upper, lower, ramp)
        drawn.append(text)
    return drawn


def _letters(log10: FloatArray, scale: tuple[float, float]) -> np.ndarray:
    """Return a letter for each size, the denser the larger; ? where it is not known."""
    part = np.clip((np.nan_to_num(log10, neginf=scale[0]) - scale[0]) / (scale[1] - scale[0]), 0, 1)
    letters = np.array(list(SHADED))[np.round(part * (len(SHADED) - 1)).astype(int)]
    return np.where(np.isnan(log10), "?", letters)


def _append(
    text: Text, upper: np.ndarray, lower: np.ndarray, ramp: Sequence[tuple[int, ...]]
) -> None:
    """Append two rows of colours as half blocks, those that are alike in one piece."""
    changes = np.flatnonzero((np.diff(upper) != 0) | (np.diff(lower) != 0)) + 1
    for begin, end in zip([0, *changes], [*changes, len(upper)], strict=True):
        over, under = int(upper[begin]), int(lower[begin])
        colour = "rgb({},{},{})".format(*ramp[over]) if over else None
        ground = "rgb({},{},{})".format(*ramp[under]) if under else None
        block = "▀" if over else "▄" if under else " "
        style = Style.parse(colour or ground or "none")
        if over and under:
            style = Style.parse(f"{colour} on {ground}")
        text.append(block * int(end - begin), style)


def _axis(run: Run, columns: int) -> Text:
    if not run.steps:
        return Text("")
    first, last = f"{run.step[0]:.0f}", f"step {run.step[-1]:.0f}"
    return Text(f"{'':{LABEL}}{first}{last:>{max(columns - len(first), 1)}}", style="dim")


def _findings(run: Run, diagnosis: RunDiagnosis | None, width: int) -> list[Text]:
    """Tell of the findings, the last ones that came up at the bottom."""
    if diagnosis is None:
        return []
    if diagnosis.healthy:
        return [Text(f"nothing found so far: {diagnosis.looked_at}", style="green")]
    steps = {(one.finding.kind, one.finding.cause): one.step for one in run.noted}
    told = []
    for one in diagnosis.findings[:FINDINGS]:
        step = steps.get((one.kind, one.cause))
        when = f"step {step}, " if step is not None else ""
        style = "bold red" if one.severity == "critical" else "yellow"
        cause = f" ({one.cause})" if one.cause else ""
        told.append(Text(f"◆ {when}{one.kind}{cause}: {one.message}", style=style))
        told.append(Text(f"  → {one.advice}"))
    more = len(diagnosis.findings) - FINDINGS
    return [*told, Text(f"and {more} more")] if more > 0 else told
