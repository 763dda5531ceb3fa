"""Data for a diagnosis: a dataset of scikit-learn by name, a .npz file or a .csv file.

Columns are standardized, and the target is recognized as classes or numbers. Every error message
says what is wrong, where it is, and what was wanted. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import importlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from vegrad.arrays.checks import Array, FloatArray

NAMES = ("digits", "breast_cancer", "wine", "diabetes")
LOSSES = ("mse", "cross_entropy", "binary_cross_entropy")
REGRESSION = ("diabetes",)
MOST_CLASSES = 50  # a target of whole numbers with more distinct values is a quantity
MISSING = ("", "na", "n/a", "nan", "null")


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
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[int, ...] = ()
    """The line of the .csv file that each row comes from; empty for other data."""

    @property
    def classes(self) -> bool:
        """True if the target is classes, False if it is numbers."""
        return bool(self.labels)

    @property
    def loss(self) -> str:
        """The loss that suits the target."""
        return "cross_entropy" if self.classes else "mse"

    def target(self, loss: str) -> Array:
        """Return the target in the form that `loss` takes.

        It is int64 labels of shape (B,) for cross_entropy, else float64 of shape (B, O) for O
        outputs of the network.

        Raises:
            ValueError: `loss` is unknown, or needs classes and the target is numbers.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        if not self.classes:
            if loss != "mse":
                raise ValueError(f"{loss} needs classes, but the target of {self.name} is numbers")
            return self.y
        if loss == "cross_entropy":
            return self.y
        if loss == "binary_cross_entropy" and len(self.labels) == 2:
            return self.y[:, None].astype(np.float64)
        return np.eye(len(self.labels))[self.y]

    def outputs(self, loss: str) -> int:
        """Return the number of units that `loss` needs in the last layer."""
        target = self.target(loss)
        return len(self.labels) if target.ndim == 1 else int(target.shape[1])

    def place(self, row: int, column: int) -> str:
        """Describe where x[row, column] comes from."""
        name = f'column "{self.columns[column]}"' if self.columns else f"column {column}"
        return f"line {self.lines[row]}, {name}" if self.lines else f"row {row}, {name}"


def load(name_or_path: str | PathLike[str], target_column: str | None = None) -> Dataset:
    """Read a dataset: digits, breast_cancer, wine, diabetes, a .npz or a .csv file.

    Args:
        name_or_path: the name of a dataset, or a path. A .npz file holds x of shape (B, …), which
            is flattened to (B, I), and y of shape (B,) or (B, O). A .csv file has a header line and
            numbers separated by commas, semicolons or tabs; an empty cell or NA is a missing value
            and becomes NaN.
        target_column: the column of a .csv file to learn; if it holds text, the texts are classes.

    Raises:
        ValueError: the content is not as described.
        OSError: the file is missing or cannot be read.
        ImportError: scikit-learn is needed and not installed.
    """
    text = fspath(name_or_path)
    if text in NAMES:
        _no_target_column(target_column, text)
        return _load_sklearn(text)
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".csv"):
        names = ", ".join(NAMES)
        raise ValueError(f"data must be {names}, or a file that ends in .npz or .csv, not {text!r}")
    if not path.exists():
        raise FileNotFoundError(f"{text} does not exist")
    if not path.is_file():
        raise ValueError(f"{text} must be a file")
    if suffix == ".csv":
        return _load_csv(path, target_column)
    _no_target_column(target_column, text)
    return _load_npz(path)


def _no_target_column(target_column: str | None, name: str) -> None:
    if target_column is not None:
        raise ValueError(f"a target column goes with a .csv file, not with {name}")


def _load_sklearn(name: str) -> Dataset:
    try:
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            f'the dataset {name} needs scikit-learn: pip install "vegrad[cli]"'
        ) from error
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    columns = tuple(map(str, bunch.feature_names))
    return _dataset(name, bunch.data, bunch.target, columns, numbers=name in REGRESSION)


def _load_npz(path: Path) -> Dataset:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    broken = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError)
    arrays: dict[str, Array] = {}
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete .npz file (interrupted while written?)")
    try:
        with np.load(path, allow_pickle=False) as content:
            names = sorted(content.files)
            for name in {"x", "y"} & set(names):
                arrays[name] = content[name]
    except broken as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{path}: x and y must be arrays of numbers, not objects") from error
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(arrays) < 2:
        raise ValueError(f"{path} must hold x and y, not {', '.join(names) or 'nothing'}")
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path}: x must be numbers, not {x.dtype}")
    if y.dtype.kind not in "biufU":
        raise ValueError(f"{path}: y must be numbers or text, not {y.dtype}")
    if x.ndim == 0 or y.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(
            f"{path}: x (B, …) and y (B,) or (B, O) must have as many rows, "
            f"not shapes {x.shape} and {y.shape}"
        )
    if x.size == 0:
        raise ValueError(f"{path}: x must not be empty, but has shape {x.shape}")
    return _dataset(str(path), x.reshape(len(x), -1), y)


def _load_csv(path: Path, target_column: str | None) -> Dataset:
    header, rows = _read_csv(path)
    shown = ", ".join(header)
    if target_column is None:
        raise ValueError(f"{path} needs a target column, one of {shown}")
    if header.count(target_column) != 1:
        wrong = "twice" if target_column in header else "not"
        raise ValueError(f'the column "{target_column}" is {wrong} in {path}, which has {shown}')
    if len(header) < 2:
        raise ValueError(f"{path} must have columns beside {target_column}")
    if not rows:
        raise ValueError(f"{path} has names but no rows")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}: line {line} has {len(row)} values, not {len(header)} as the first line"
            )
    lines = tuple(line for line, _ in rows)
    at = header.index(target_column)
    targets = [row.pop(at).strip() for _, row in rows]
    header.pop(at)
    x = np.empty((len(rows), len(header)))
    for number, (line, row) in enumerate(rows):
        for column, cell in enumerate(row):
            value = _number(cell)
            if value is None:
                raise ValueError(
                    f'{path}: the column "{header[column]}" must be numbers, not {cell!r} '
                    f"as in line {line}"
                )
            x[number, column] = value
    return _dataset(
        str(path), x, _csv_target(path, target_column, targets, lines), header, lines=lines
    )


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the names of the columns and, with the numbers of their lines, the rows of cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            rows = [(reader.line_num, row) for row in reader if any(c.strip() for c in row)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error.reason}") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a .csv file: {error}") from error
    if not rows:
        raise ValueError(f"{path} is empty")
    header = [name.strip() for name in rows.pop(0)[1]]
    if all(_number(name) is not None for name in header):
        raise ValueError(f"{path} must begin with a line of names, not with {', '.join(header)}")
    return header, rows


def _csv_target(path: Path, name: str, cells: list[str], lines: Sequence[int]) -> Array:
    numbers = [_number(cell) for cell in cells]
    if None not in numbers:
        return np.array(numbers, dtype=np.float64)
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() in MISSING:
            raise ValueError(f'{path}: the target column "{name}" has no value in line {line}')
    return np.array(cells)


def _number(cell: str) -> float | None:
    """Return the number in a cell, NaN if it is missing, or None if it is text."""
    cell = cell.strip()
    if cell.lower() in MISSING:
        return nan
    try:
        return float(cell)
    except ValueError:
        return None


def _dataset(
    name: str,
    x: Array,
    y: Array,
    columns: Sequence[str] = (),
    *,
    numbers: bool = False,
    lines: tuple[int, ...] = (),
) -> Dataset:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    labels: tuple[str, ...] = ()
    values = np.unique(y) if y.ndim == 1 else y
    if y.ndim == 1 and len(values) == 1:
        raise ValueError(f"the target of {name} is {values[0]} in every row: nothing to learn")
    if y.ndim == 1 and not numbers and _are_labels(values):
        labels = tuple(_label(value) for value in values.tolist())
        target: Array = np.searchsorted(values, y).astype(np.int64)
    elif y.dtype.kind == "U":
        raise ValueError(f"the target of {name} must be one column of text or columns of numbers")
    else:
        target = _standardize(y.reshape(len(y), -1))
    return Dataset(name, _standardize(x), target, labels, tuple(columns), lines)


def _are_labels(values: Array) -> bool:
    if values.dtype.kind in "Ub":
        return True
    whole = values.dtype.kind != "f" or bool((np.isfinite(values) & (values % 1 == 0)).all())
    return whole and len(values) <= MOST_CLASSES


def _label(value: object) -> str:
    return str(int(value)) if isinstance(value, float) else str(value)


def _standardize(values: Array) -> FloatArray:
    """Give columns mean 0 and standard deviation 1 by their finite values; constant ones are 0."""
    columns = np.array(values, dtype=np.float64)
    finite = np.isfinite(columns)
    count = np.maximum(finite.sum(axis=0), 1)
    known = np.where(finite, columns, 0.0)
    scale = np.maximum(np.abs(known).max(axis=0), np.finfo(np.float64).tiny)
    known /= scale  # so that the squares stay in range
    mean = known.sum(axis=0) / count
    centred = np.where(finite, known - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    varies = deviation > 1e-12  # relative to the largest value: less is only rounding
    result = np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)
    result[~finite] = columns[~finite]
    return result
