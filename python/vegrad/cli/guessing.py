"""The worth of a result: beside always the same answer, and in the target's own units."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, sqrt

import numpy as np

from vegrad.arrays.checks import Array, Loss
from vegrad.arrays.shown import visible
from vegrad.datasets import Dataset, Sequences
from vegrad.diagnosis.history import History

Figures = dict[str, float | None]
FEW, MOST = 3, 4  # classes that are named, and up to how many are all named
LETTERS = 24  # of a name


def beside_guessing(
    data: Dataset, target: Array, loss: Loss, held: Array, history: History
) -> Figures:
    """Return figures of the rows held out, by name; none if there are none.

    Of classes that is the accuracy of always the commonest; of numbers R², and the root mean square
    of the error in the target's own units where they are known.
    """
    losses = history.validation_loss
    if not len(held) or not len(losses) or not isfinite(losses[-1]):
        return {}
    if data.classes and loss != "mse":
        counts = np.bincount(_known(data, held))
        return {"guessing_accuracy": float(counts.max() / counts.sum())}
    spread = float(np.var(target[held], axis=0).mean())
    if loss != "mse" or not spread > 0:
        return {}
    scale = 0.0 if data.classes or target.shape[-1] > 1 else data.target_units[1]
    error = sqrt(float(losses[-1])) * scale
    r2 = 1.0 - float(losses[-1]) / spread
    return {"r2": r2, **({"error": error} if data.preparation is not None and scale > 0 else {})}


def in_words(figures: Mapping[str, float | None]) -> str:
    """Say these figures after the loss; "" if there are none."""
    guess, r2, error = (figures.get(name) for name in ("guessing_accuracy", "r2", "error"))
    said = "" if guess is None else f" (always the commonest: {100 * guess:.1f} %)"
    said += "" if r2 is None else f", R² {r2:.3f}"
    return said + ("" if error is None else f", error {_number(error)} in the target's units")


def _number(value: float) -> str:
    """Write some digits, without a power of ten where people write none."""
    return f"{float(f'{value:.5g}'):.10g}" if 1e-3 <= abs(value) < 1e7 else f"{value:.4g}"


def shares(data: Dataset) -> dict[str, float]:
    """Return the share of each class in all rows, the commonest first; none of numbers."""
    if not data.classes:
        return {}
    counts = np.bincount(_known(data), minlength=len(data.labels))
    order = np.argsort(-counts, kind="stable").tolist()
    return {data.labels[n]: float(counts[n] / counts.sum()) for n in order}


def guess_told(data: Dataset, loss: Loss) -> list[str]:
    """Say in short lines what the target is, and how well always the same answer does.

    Of classes it names the commonest, of numbers mean and standard deviation in their own units.
    """
    name = "target" if data.preparation is None else visible(data.preparation.target, LETTERS)
    if data.classes:
        shared = shares(data)
        first = list(shared)[: MOST if len(shared) <= MOST else FEW]
        parts = [f"{visible(one, LETTERS)} ({100 * shared[one]:.1f} %)" for one in first]
        more = f" and {len(shared) - len(first)} more" if len(first) < len(shared) else ""
        best = f"accuracy {100 * shared[first[0]]:.1f} % (always {visible(first[0], LETTERS)})"
        return [f"{name}: {len(shared)} classes: {', '.join(parts)}{more}", f"baseline: {best}"]
    target = data.target(loss)
    known = target[_there(data, target)] if isinstance(data, Sequences) else target
    with np.errstate(all="ignore"):
        guess = float(np.var(known.reshape(-1, target.shape[-1]), axis=0).mean())
    if not isfinite(guess):
        return []
    shift, scale = data.target_units
    own = data.preparation is not None and scale > 0
    about = f"{_number(shift)} ± {_number(scale)}; " if own else ""
    return [f"{name}: {about}baseline: loss {guess:.3g}, R² 0 (always the mean)"]


def _known(data: Dataset, rows: Array | None = None) -> Array:
    """Return the labels of these rows, or all, flat, without steps behind the ends of rows."""
    chosen = data.y if rows is None else data.y[rows]
    if isinstance(data, Sequences):
        chosen = chosen[_there(data, chosen, rows)]
    return chosen.ravel().astype(np.int64)


def _there(data: Sequences, values: Array, rows: Array | None = None) -> Array:
    """Return which of the values of sequences count: the rows (B,), or their steps (B, T)."""
    if data.targets == "last" or data.lengths is None:
        return np.ones(len(values), bool)
    lengths = data.lengths if rows is None else data.lengths[rows]
    return np.arange(values.shape[1]) < lengths[:, None]
