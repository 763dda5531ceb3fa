"""Where two runs part: the first step at which a number differs by more than its noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log2, nan

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.reports.shown_run import after_clip
from vegrad.runs.run import Run

Places = npt.NDArray[np.int64]
WIDTH = 5  # steps of which the median is taken
NOISE = 5.0  # times the usual change from step to step
ZERO = 2000.0  # -log2 of what stands for 0: below every number of float64
FEW = 10  # steps that tell what is noise
# Columns, each with the least difference that counts: a factor of both, on the scale of log2.
COLUMNS = {
    "loss": log2(1.1),
    "validation_loss": log2(1.1),
    "gradient_norm": log2(1.5),
    "clipped_norm": log2(1.5),
    "update_ratio": log2(1.5),
    "learning_rate": 1e-4,
}
MODULES = 1.0  # the same of a module's gradient


@dataclass(frozen=True)
class Departure:
    """A number of two runs, or of two diagnoses, and where it begins to differ."""

    what: str
    """The column's name, "module", "layer", or "time" of a step of recurrent layers."""
    name: str
    """Of the module or layer; "" of a column."""
    step: int | None
    """The first step at which they differ; None of two diagnoses."""
    values: tuple[float, float]
    """The number then: medians of a few steps; of a gradient its norm."""
    times_log2: float
    """log2 of the second over the first; nan if either is not finite, or a sign differs."""

    @property
    def is_finite(self) -> bool:
        """True if both numbers are finite."""
        return isfinite(self.values[0]) and isfinite(self.values[1])


def departures_of(runs: tuple[Run, Run]) -> tuple[Departure, ...]:
    """Return where each column and each module of both begins to differ, the first one first."""
    found = [*_of_columns(runs), *_of_modules(runs)]
    return tuple(sorted(found, key=_order))


def _order(one: Departure) -> tuple[float, bool, float]:
    """Return what departures are sorted by: of one step the module that parts most is first."""
    far = abs(one.times_log2) if one.times_log2 == one.times_log2 else inf
    return (inf if one.step is None else one.step, one.what != "module", -far)


def common_steps(
    runs: tuple[Run, Run],
) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the steps that both have, and their places in each."""
    found, first, second = np.intersect1d(runs[0].step, runs[1].step, return_indices=True)
    return found, first, second


def same_until(runs: tuple[Run, Run]) -> float:
    """Return the first common step at which loss or gradient differ at all; inf if at none.

    nan if neither was recorded in both.
    """
    step, *places = common_steps(runs)
    known, differs = False, np.zeros(len(step), bool)
    for name in ("loss", "gradient_norm"):
        a, b = (getattr(run, name)[place] for run, place in zip(runs, places, strict=True))
        both = ~(np.isnan(a) & np.isnan(b))
        known |= bool((~np.isnan(a) & ~np.isnan(b)).any())
        differs |= both & (a != b)
    if not known:
        return nan
    return float(step[differs][0]) if differs.any() else inf


def _of_columns(runs: tuple[Run, Run]) -> Iterator[Departure]:
    step, *places = common_steps(runs)
    for name, least in COLUMNS.items():
        a, b = (_column(run, name)[place] for run, place in zip(runs, places, strict=True))
        if name == "clipped_norm" and _same_as_norm(runs, places):
            continue
        both = np.isfinite(a) & np.isfinite(b)
        known = np.flatnonzero(both)
        place = first_away(_apart(a[both], b[both])[:, None], least)[0]
        at = inf if place < 0 else float(step[known[place]])
        wrong = [run.nonfinite.get(name, inf) for run in runs]
        if wrong[0] != wrong[1] and min(wrong) <= at:
            ends = [nan if one == min(wrong) else _near(run, name, min(wrong))
                    for run, one in zip(runs, wrong, strict=True)]  # fmt: skip
            yield Departure(name, "", int(min(wrong)), (ends[0], ends[1]), nan)
        elif at < inf:
            near = known[place : place + (1 if name == "learning_rate" else WIDTH)]
            values = float(np.median(a[near])), float(np.median(b[near]))
            yield Departure(name, "", int(at), values, _ratio(*values))


def _column(run: Run, name: str) -> FloatArray:
    values: FloatArray = after_clip(run) if name == "clipped_norm" else getattr(run, name)
    return values


def _same_as_norm(runs: tuple[Run, Run], places: Sequence[Places]) -> bool:
    """Return True if neither was clipped, so that one norm tells of both."""
    return all(
        np.array_equal(after_clip(run)[place], run.gradient_norm[place], equal_nan=True)
        for run, place in zip(runs, places, strict=True)
    )


def _near(run: Run, name: str, step: float) -> float:
    """Return a column's last known value up to a step; nan without one."""
    values = getattr(run, name)[run.step <= step]
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else nan


def _of_modules(runs: tuple[Run, Run]) -> Iterator[Departure]:
    step, *places = common_steps(runs)
    names = [name for name in runs[0].modules if name in set(runs[1].modules)]
    if not names or not len(step):
        return
    a, b = (
        np.nan_to_num(
            run.gradient_log2[place][:, [run.modules.index(name) for name in names]],
            nan=nan,
            posinf=inf,
            neginf=-ZERO,
        )
        for run, place in zip(runs, places, strict=True)
    )
    known = np.isfinite(a).any(axis=1) & np.isfinite(b).any(axis=1)
    with np.errstate(invalid="ignore"):
        away = (b - a)[known]
    there = np.flatnonzero(known)
    for place, name, one in zip(first_away(away, MODULES), names, range(len(names)), strict=True):
        if place >= 0:
            near = there[place : place + WIDTH]
            sizes = [float(np.nanmedian(values[near, one])) for values in (a, b)]
            values = [0.0 if size <= -ZERO else float(np.exp2(size)) for size in sizes]
            times = sizes[1] - sizes[0]
            yield Departure("module", name, int(step[there[place]]), (values[0], values[1]), times)


def first_away(away: FloatArray, least: float) -> Places:
    """Return the first place at which each column is farther from 0 than its noise; -1 if none.

    A column is far where the median of five entries is, from there on; the noise is the usual
    change from entry to entry up to about twice as many.

    Args:
        away: differences, (S, M); nan where none is known.
        least: the least distance that counts.
    """
    steps, count = away.shape
    found = np.full(count, -1)
    if not steps:
        return found
    width = min(WIDTH, steps)
    windows = np.lib.stride_tricks.sliding_window_view(away, width, axis=0)
    smooth = np.median(windows, axis=-1)  # nan where one of the five is
    jumps = np.abs(np.diff(away, axis=0))
    ends = [end for n in range(40) if (end := FEW << n) < steps]
    for column in range(count):
        for end in (*ends, steps):  # noise is asked of what came before, as if there were no more
            noise = _usual(jumps[:end, column])
            far = np.abs(smooth[:end, column]) > max(least, NOISE * noise)
            if far.any():
                found[column] = _begins(away[:, column], int(np.argmax(far)), width, least)
                break
    return found


def _usual(jumps: FloatArray) -> float:
    """Return the standard deviation of an entry by the median of changes; 0 if none is known."""
    known = jumps[np.isfinite(jumps)]
    return float(np.median(known)) * 1.4826 / 2**0.5 if known.size else 0.0


def _begins(away: FloatArray, place: int, width: int, least: float) -> int:
    """Return the first entry of a window whose median is far that is far itself."""
    far = np.flatnonzero(np.abs(away[place : place + width]) > least)
    return place + (int(far[0]) if far.size else 0)


def _apart(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return log2 of b over a; if not all are positive, their difference beside a's usual size."""
    if (a > 0).all() and (b > 0).all():
        return np.log2(b) - np.log2(a)
    usual = float(np.median(np.abs(a))) if a.size else 1.0
    return (b - a) / (usual or 1.0)


def _ratio(a: float, b: float) -> float:
    if a > 0 and b > 0:
        return log2(b / a) if b / a > 0 else -inf
    return nan
