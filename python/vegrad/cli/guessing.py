"""The worth of a result: beside always the same answer, and in the target's own units."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isfinite, log10, sqrt

import numpy as np

from vegrad.arrays.checks import Array, Loss
from vegrad.arrays.shown import visible
from vegrad.datasets import Dataset, Sequences
from vegrad.diagnosis.history import History
from vegrad.networks.mlp import MLP
from vegrad.networks.rnn import RNN
from vegrad.networks.rows import Batch

Figures = dict[str, float | None]
FEW, MOST = 3, 4  # classes that are named, and up to how many are all named
LETTERS = 24  # of a name
NEARLY_ALL = 0.8  # of the rows, that are of one class


def beside_guessing(
    data: Dataset,
    target: Array,
    network: MLP | RNN,
    learnt: Array,
    held: Array,
    history: History,
) -> Figures:
    """Return figures of the rows held out, by name; none if there are none.

    Of classes that is the accuracy of always the commonest of the rows learnt from, and, where it
    stands in nearly all of them, the mean of each class's own; of numbers R², that of always their
    mean, and the root mean square of the error in the target's own units where they are known.
    """
    losses, loss = history.validation_loss, network.config["loss"]
    if not len(held) or not len(losses) or not isfinite(losses[-1]):
        return {}
    if data.classes and loss != "mse":
        counts, known = np.bincount(_known(data, learnt)), _known(data, held)
        found: Figures = {"guessing_accuracy": float(np.mean(known == counts.argmax()))}
        if counts.max() >= NEARLY_ALL * counts.sum():
            found |= _each_class(data, target, network, held)
        return found
    spread = float(np.var(target[held], axis=0).mean())
    if loss != "mse" or not spread > 0:
        return {}
    scale = 0.0 if data.classes or target.shape[-1] > 1 else data.target_units[1]
    error = sqrt(float(losses[-1])) * scale
    off = float(np.mean((target[held] - target[learnt].mean(axis=0)) ** 2))
    r2 = {"r2": 1.0 - float(losses[-1]) / spread, "guessing_r2": 1.0 - off / spread}
    return {**r2, **({"error": error} if data.preparation is not None and scale > 0 else {})}


def _each_class(data: Dataset, target: Array, network: MLP | RNN, held: Array) -> Figures:
    """Return the mean of the accuracies of each class; nothing where outputs are no classes."""
    rows = data.x[held], target[held]
    if isinstance(network, RNN):
        lengths = getattr(data, "lengths", None)
        batch = network.batch(*rows, None if lengths is None else lengths[held])
    else:
        batch = Batch(*network.checked(*rows))
    output, wanted = network.compared(batch)
    if output.shape[1] == 1:
        chosen = (output[:, 0] > 0).astype(np.int64)
    elif network.config["loss"] == "cross_entropy":
        chosen = output.argmax(axis=1)
    else:
        return {}
    wanted = wanted.ravel().astype(np.int64)
    own = [float(np.mean(chosen[wanted == one] == one)) for one in np.unique(wanted)]
    return {"class_accuracy": float(np.mean(own))}


def in_words(figures: Mapping[str, float | None]) -> str:
    """Say these figures after the loss; "" if there are none."""
    names = ("validation_accuracy", "guessing_accuracy", "class_accuracy")
    accuracy, guess, each = (figures.get(name) for name in names)
    r2, mean, error = (figures.get(name) for name in ("r2", "guessing_r2", "error"))
    said = ""
    if guess is not None:
        said += f" ({_worth(accuracy, guess)}always the commonest: {100 * guess:.1f} %)"
    if each is not None:
        said += f", {100 * each:.1f} % if each class counts alike"
    if r2 is not None and mean is not None:
        said += f", R² {r2:.3f} ({_worth(r2, mean)}always the mean: {round(mean, 3) + 0.0:.3f})"
    return said + ("" if error is None else f", error {_number(error)} in the target's units")


def _worth(reached: float | None, guess: float) -> str:
    return "no better than " if reached is not None and reached <= guess else ""


def _number(value: float, digits: int = 5) -> str:
    """Write some digits, without a power of ten where people write none."""
    if not 1e-3 <= abs(value) < (1e7 if digits <= 5 else 1e15):
        return f"{value:.{digits - 1}g}"
    return f"{float(f'{value:.{digits}g}'):.15g}"


def _mean_told(mean: float, spread: float) -> str:
    """Write a mean and a standard deviation, the mean to three digits of what it is apart."""
    apart = abs(mean) / spread
    digits = 5 if apart < 100 or not isfinite(apart) else min(ceil(log10(apart)) + 3, 17)
    return f"{_number(mean, digits)} ± {_number(spread)}"


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
    about = f"{_mean_told(shift, scale)}; " if own else ""
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
