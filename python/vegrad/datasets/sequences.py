"""Sequences and what to learn from them, and their reading from a .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from vegrad.arrays.checks import Array, Targets
from vegrad.arrays.shown import SCREEN, plainly, shown, visible
from vegrad.datasets.dataset import Dataset, are_labels, is_number, label_of, standardize
from vegrad.datasets.files import read_npz

TARGETS = ("last", "all")


@dataclass(frozen=True)
class Sequences(Dataset):
    """Sequences for a recurrent network, and the target to learn from them.

    `x` has shape (B, T, I). If `targets` is "last", a row has one target: `y` is int64 labels (B,),
    if `classes`, else float64 (B, O). If it is "all", each step has one: (B, T) or (B, T, O).
    """

    lengths: Array | None = None
    """Number of steps of each row (B,), int64; None if all have T. The steps behind are 0."""
    targets: Targets = "last"

    def place(self, row: int, *rest: int) -> str:
        """Describe where x[row, step, column] comes from."""
        step, column = rest
        return f"row {row}, step {step}, column {column}"


@plainly()
def load_sequences(
    path: str | PathLike[str], targets: Targets | None = None, *, numbers: bool = False
) -> Sequences:
    """Read sequences from a .npz file.

    It holds x (B, T, I) or, with one input, (B, T); y; and, if the rows are of unequal length,
    lengths (B,), whole numbers from 1 to T. With one target a row, y is (B,) or (B, O); with one a
    step, (B, T) or (B, T, O). Text, and whole numbers of at most 50 different values, are classes.
    Columns of x, and of y if it is numbers, get mean 0 and standard deviation 1 over all steps of
    all rows; steps beyond a row's length count nowhere, and become 0.

    Args:
        path: of the file.
        targets: "last" or "all"; None takes what the shape of y says: (B, T) is one a step.
        numbers: take whole numbers as numbers, never as classes.

    Raises:
        ValueError: the content is not as described.
        OSError: the file is missing or cannot be read.
    """
    file = Path(fspath(path))
    if file.suffix.lower() != ".npz":
        raise ValueError(
            f"sequences must be in a file that ends in .npz, not {shown(fspath(path))}"
        )
    if not file.exists():
        raise FileNotFoundError(f"{visible(str(file), SCREEN)} does not exist")
    if not file.is_file():
        raise ValueError(f"{file} must be a file")
    arrays = read_npz(file, ("lengths",))
    x, y = arrays["x"], arrays["y"]
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or y.ndim not in (1, 2, 3) or len(x) != len(y):
        raise ValueError(
            f"{file}: x (B, T, I) and y (B,), (B, O), (B, T) or (B, T, O) must have as many rows, "
            f"not shapes {arrays['x'].shape} and {y.shape}"
        )
    if x.size == 0 or y.size == 0:
        raise ValueError(f"{file}: x and y must not be empty, but have {x.shape} and {y.shape}")
    steps = x.shape[1]
    lengths = _lengths(file, arrays.get("lengths"), len(x), steps)
    targets = targets or ("all" if y.ndim == 3 or y.shape[1:] == (steps,) else "last")
    _check_targets(file, targets, y, steps)
    valid = np.ones(x.shape[:2], bool)
    if lengths is not None:
        valid = np.arange(steps) < lengths[:, None]
    known = np.zeros(x.shape)
    known[valid] = standardize(x[valid])
    target, labels = _target(file, y, valid if targets == "all" else None, numbers)
    whole = bool(labels) and is_number(y)
    return Sequences(
        str(file), known, target, labels, whole=whole, lengths=lengths, targets=targets
    )


def _lengths(file: Path, lengths: Array | None, rows: int, steps: int) -> Array | None:
    if lengths is None:
        return None
    whole = lengths.dtype.kind in "iu" or (
        lengths.dtype.kind == "f" and bool((lengths % 1 == 0).all())
    )
    if lengths.shape != (rows,) or not whole:
        raise ValueError(
            f"{file}: lengths must be whole numbers of shape ({rows},), one a row of x, "
            f"not {lengths.dtype} of shape {lengths.shape}"
        )
    outside = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(outside):
        row = outside[0]
        raise ValueError(
            f"{file}: lengths must be from 1 to {steps}, the steps of x, "
            f"not {lengths[row]:g} as in row {row}"
        )
    return lengths.astype(np.int64)


def _check_targets(file: Path, targets: str, y: Array, steps: int) -> None:
    if targets not in TARGETS:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, not {shown(targets)}")
    if targets == "last" and y.ndim == 3:
        raise ValueError(f"{file}: one target a row is y (B,) or (B, O), not shape {y.shape}")
    if targets == "all" and y.shape[1:2] != (steps,):
        raise ValueError(
            f"{file}: one target a step is y (B, {steps}) or (B, {steps}, O), not shape {y.shape}"
        )


def _target(
    file: Path, y: Array, valid: Array | None, numbers: bool
) -> tuple[Array, tuple[str, ...]]:
    """Return the target and its classes; `valid` (B, T) are the steps that count.

    It is None if there is one target a row.
    """
    axes = 2 if valid is not None else 1
    y = y[..., 0] if y.ndim == axes + 1 and y.shape[-1] == 1 else y
    counts = y if valid is None else y[valid]
    values = np.unique(counts)
    if len(values) == 1:
        raise ValueError(f"the target of {file} is {values[0]} everywhere: nothing to learn")
    if y.ndim == axes and are_labels(values) and not (numbers and is_number(values)):
        labels = tuple(label_of(value) for value in values.tolist())
        places = np.minimum(np.searchsorted(values, y), len(values) - 1)
        return places.astype(np.int64), labels
    if y.dtype.kind == "U":
        raise ValueError(f"the target of {file} must be one column of text or columns of numbers")
    y = y[..., None] if y.ndim == axes else y
    if valid is None:
        return standardize(y), ()
    target = np.zeros(y.shape)
    target[valid] = standardize(y[valid])
    return target, ()
