"""A table of inputs and the target to learn from them: columns standardized, classes recognized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vegrad.arrays.checks import Array, FloatArray, Loss
from vegrad.arrays.shown import shown
from vegrad.datasets.preparation import Preparation

LOSSES = ("mse", "cross_entropy", "binary_cross_entropy")
ROWS = 512  # that are standardized at a time
MOST_CLASSES = 50  # a target of whole numbers with more distinct values is a quantity
FEW_CLASSES = 10  # so is one with more than these, if they are more than half of the rows


@dataclass(frozen=True)
class Dataset:
    """Inputs ready for a network, and the target to learn from them.

    `x` has shape (B, I); its columns have mean 0 and standard deviation 1, but constant columns are
    0 and values that are not finite stay. `y` is int64 labels of shape (B,) from 0 on if `classes`,
    else float64 of shape (B, O), standardized like x. `labels` are the names of the classes,
    `columns` those of the columns of x.
    """

    name: str
    x: FloatArray
    y: Array
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()
    """The line of the .csv or .tsv file that each row comes from; empty for other data."""
    whole: bool = False
    """True if the classes are whole numbers, which might as well be a quantity."""
    flattened: tuple[int, ...] = ()
    """The shape that a row of x had in its file, if it was not a row of columns."""
    units: tuple[FloatArray, FloatArray] | None = None
    """Means and standard deviations (I,) that the columns of x had."""
    target_units: tuple[float, float] = (0.0, 1.0)
    """The same of a target of numbers, of its first column."""
    preparation: Preparation | None = None
    """What was done to a table, so that it can be done to other rows."""
    told: tuple[str, ...] = ()
    """What was found out of a table and done to it, a line each."""

    @property
    def classes(self) -> bool:
        """True if the target is classes, False if it is numbers."""
        return bool(self.labels)

    @property
    def loss(self) -> Loss:
        """The loss that suits the target."""
        return "cross_entropy" if self.classes else "mse"

    def target(self, loss: Loss) -> Array:
        """Return the target in the form that `loss` takes.

        It is int64 labels of shape (B,) for cross_entropy, else float64 of shape (B, O) for O
        outputs of the network.

        Raises:
            ValueError: `loss` is unknown, or needs classes and the target is numbers.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {shown(loss)}")
        if not self.classes:
            if loss != "mse":
                raise ValueError(f"{loss} needs classes, but the target of {self.name} is numbers")
            return self.y
        if loss == "cross_entropy":
            return self.y
        if loss == "binary_cross_entropy" and len(self.labels) == 2:
            return self.y[..., None].astype(np.float64)
        return np.eye(len(self.labels))[self.y]

    def outputs(self, loss: Loss) -> int:
        """Return the number of units that `loss` needs in the last layer."""
        target = self.target(loss)
        return len(self.labels) if loss == "cross_entropy" else int(target.shape[-1])

    def place(self, row: int, *rest: int) -> str:
        """Describe where x[row, column] comes from."""
        column = rest[-1]
        name = f'column "{self.columns[column]}"' if self.columns else f"column {column}"
        return f"line {self.lines[row]}, {name}" if self.lines else f"row {row}, {name}"

    def target_place(self, row: int) -> str:
        """Describe where y[row] comes from."""
        return f"line {self.lines[row]}, the target" if self.lines else f"row {row}, the target"


def as_dataset(
    name: str,
    x: Array,
    y: Array,
    columns: Sequence[str] = (),
    *,
    numbers: bool = False,
    lines: tuple[int, ...] = (),
    owned: bool = False,
) -> Dataset:
    """Make a dataset of x (B, I), standardized, and y (B,) or (B, O), classes or numbers.

    `numbers` says that whole numbers are no classes, however few they are; `owned`, that x may be
    overwritten.

    Raises:
        ValueError: the target is the same in every row, or columns of text.
    """
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    labels: tuple[str, ...] = ()
    whole, target_units = False, (0.0, 1.0)
    values = np.unique(y) if y.ndim == 1 else y
    if y.ndim == 1 and len(values) == 1:
        same = label_of(values.tolist()[0])
        raise ValueError(f"the target of {name} is {same} in every row: nothing to learn")
    if y.ndim == 1 and are_labels(values, len(y)) and not (numbers and is_number(values)):
        labels, whole = tuple(label_of(value) for value in values.tolist()), is_number(values)
        target: Array = np.searchsorted(values, y).astype(np.int64)
    elif y.dtype.kind == "U":
        raise ValueError(f"the target of {name} must be one column of text or columns of numbers")
    else:
        target, shift, scale = standardized(y.reshape(len(y), -1))
        target_units = float(shift[0]), float(scale[0])
    scaled, *units = standardized(x, owned=owned)
    return Dataset(
        name,
        scaled,
        target,
        labels,
        tuple(columns),
        lines,
        whole,
        units=(units[0], units[1]),
        target_units=target_units,
    )


def are_labels(values: Array, rows: int | None = None) -> bool:
    """Tell if a target of these distinct values is classes: text, or a few whole numbers."""
    if values.dtype.kind in "Ub":
        return True
    if rows is not None and len(values) > max(FEW_CLASSES, rows / 2):
        return False
    whole = values.dtype.kind != "f" or bool(np.isfinite(values).all() and (values % 1 == 0).all())
    return whole and len(values) <= MOST_CLASSES


def is_number(values: Array) -> bool:
    """Tell if values are numbers, not text and not truths."""
    return values.dtype.kind not in "Ub"


def label_of(value: object) -> str:
    """Return the name of the class that a target's value stands for."""
    return str(int(value)) if isinstance(value, float) and value % 1 == 0 else str(value)


def standardize(values: Array, *, owned: bool = False) -> FloatArray:
    """Give columns mean 0 and standard deviation 1 by their finite values; constant ones are 0."""
    return standardized(values, owned=owned)[0]


def standardized(
    values: Array, *, owned: bool = False
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return columns (B, I) of mean 0 and standard deviation 1, and what these were, (I,) each.

    The standard deviation of a column that is the same in every row is 0, as all its values are.

    Some rows at a time, as each pass over a large table would else go through memory. What is
    `owned` may be overwritten.
    """
    columns: FloatArray = np.array(values, np.float64, copy=None if owned else True)
    parts = [columns[start : start + ROWS] for start in range(0, len(columns), ROWS)]
    width = columns.shape[1]
    kept: list[tuple[Array, Array] | None] = []  # what is not finite
    count, largest = np.zeros(width), np.full(width, np.finfo(np.float64).tiny)
    for part in parts:
        finite = np.isfinite(part)
        kept.append(None if finite.all() else (~finite, part[~finite]))
        part[~finite] = 0.0
        count += finite.sum(axis=0)
        largest = np.maximum(largest, np.abs(part).max(axis=0))
    total, squares = np.zeros((2, width))
    for part in parts:
        part /= largest  # so that the squares stay in range
        total += part.sum(axis=0)
    mean = total / np.maximum(count, 1)
    for part, lost in zip(parts, kept, strict=True):
        part -= mean
        if lost is not None:
            part[lost[0]] = 0.0
        squares += (part**2).sum(axis=0)
    deviation = np.sqrt(squares / np.maximum(count, 1))
    varies = deviation > 1e-12  # relative to the largest value: less is only rounding
    for part, lost in zip(parts, kept, strict=True):
        part /= np.where(varies, deviation, 1.0)
        part[:, ~varies] = 0.0
        if lost is not None:
            part[lost[0]] = lost[1]
    return columns, mean * largest, np.where(varies, deviation * largest, 0.0)
