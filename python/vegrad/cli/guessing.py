"""The worth of a result: beside always the same answer, and in the target's own units."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, sqrt

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.cli.task import Task
from vegrad.diagnosis.history import History

Figures = dict[str, float | None]


def beside_guessing(task: Task, held: Array, history: History) -> Figures:
    """Return figures of the rows held out, by name; none if there are none.

    Of classes that is the accuracy of always the commonest; of numbers R², and the root mean square
    of the error in the target's own units where they are known.
    """
    losses, data = history.validation_loss, task.data
    if not len(held) or not len(losses) or not isfinite(losses[-1]):
        return {}
    if data.classes:
        counts = np.bincount(data.y[held].ravel().astype(np.int64))
        return {"guessing_accuracy": float(counts.max() / counts.sum())}
    spread = float(np.var(task.target[held], axis=0).mean())
    if task.network.config["loss"] != "mse" or not spread > 0:
        return {}
    scale = data.target_units[1] if task.target.ndim == 1 or task.target.shape[-1] == 1 else 0.0
    error = sqrt(float(losses[-1])) * scale
    r2 = 1.0 - float(losses[-1]) / spread
    return {"r2": r2, **({"error": error} if data.preparation is not None and scale > 0 else {})}


def in_words(figures: Mapping[str, float | None]) -> str:
    """Say these figures after the loss; "" if there are none."""
    guess, r2, error = (figures.get(name) for name in ("guessing_accuracy", "r2", "error"))
    said = "" if guess is None else f" (always the commonest: {100 * guess:.1f} %)"
    said += "" if r2 is None else f", R² {r2:.3f}"
    return said + ("" if error is None else f", error {error:.4g} in the target's units")
