"""Gains of batches drawn again from the rows of one, with as few further passes as can be.

Where each row goes its own way through the model and the loss is a mean over rows, δ of a batch
drawn again consists of the rows' own: their sizes, which the first pass measures, tell all of it.
Elsewhere (batch norms, dropout, attention over a batch) each of these batches is run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.resampling import resampled
from vegrad.torch.reading import passes


def batches(task: passes.Task, run: passes.Pass, count: int, seed: int) -> FloatArray:
    """Return gains (count, L - 1) of batches drawn with replacement, if there are rows to draw."""
    rows = passes.row_count(task.x, task.target)
    alone = all(one.row_sizes is not None and len(one.row_sizes) == rows for one in run.layers)
    gains = _of_rows(run) if alone else _of_passes(task, run)
    return resampled(gains, rows, len(run.path) - 1, count, seed)


def _of_rows(run: passes.Pass) -> Callable[[Array], FloatArray]:
    """Return a function that puts the gains of a batch together from the sizes of its rows."""
    squares = np.array([layer.row_sizes for layer in run.layers]) ** 2
    shifts = np.array([run.shift(place) for place in run.path])

    def gains(rows: Array) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = np.log2(squares[:, rows].sum(axis=1)) / 2 - shifts
            found: FloatArray = sizes[:-1] - sizes[1:]
        return found

    return gains


def _of_passes(task: passes.Task, run: passes.Pass) -> Callable[[Array], FloatArray]:
    """Return a function that runs a batch for its gains."""
    take, deep = passes.rows_of(task.x, task.target), passes.is_deep(run)
    missing = np.full(len(run.path) - 1, np.nan)

    def gains(rows: Array) -> FloatArray:
        assert take is not None
        x, target = take(rows)
        again = passes.replayed(task._replace(x=x, target=target), run, deep=deep)
        if again is None:
            return missing
        with np.errstate(invalid="ignore"):
            found: FloatArray = again[0][:-1] - again[0][1:]
        return found

    return gains
