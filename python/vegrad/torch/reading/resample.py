"""Gains of batches drawn again from the rows of one, with as few further passes as can be.

Where each row goes its own way through the model and the loss is a mean over rows, δ of a batch
drawn again consists of the rows' own: their sizes, which the first pass measures, tell all of it.
Elsewhere (batch norms, dropout, attention over a batch) they tell nearly all of it, since what a
row takes from the others is a mean over them. There the batches are run only if an answer hangs on
them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.resampling import resampled
from vegrad.torch import models
from vegrad.torch.reading import passes

NONE = np.zeros((0, 0))


def batches(
    task: passes.Task, run: passes.Pass, count: int, seed: int
) -> tuple[FloatArray, Callable[[], FloatArray] | None]:
    """Return gains (count, L - 1) of batches drawn with replacement, if there are rows to draw.

    If the sizes of rows do not tell all of it, a function is returned too, which runs the batches.
    """
    rows = passes.row_count(task.x, task.target)
    if not count or rows < 2:
        return NONE, None
    known = all(one.row_sizes is not None and len(one.row_sizes) == rows for one in run.layers)
    told = resampled(_of_rows(run), rows, len(run.path) - 1, count, seed) if known else NONE
    if known and run.alone:
        return told, None
    return told, partial(_run, task, run, count, seed, torch.get_rng_state())


def _run(
    task: passes.Task, run: passes.Pass, count: int, seed: int, random: torch.Tensor
) -> FloatArray:
    """Run the batches; random numbers go on as they were after the first pass."""
    rows = passes.row_count(task.x, task.target)
    with models.untouched(task.model, task.loss_fn):
        torch.set_rng_state(random)
        return resampled(_of_passes(task, run), rows, len(run.path) - 1, count, seed)


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
