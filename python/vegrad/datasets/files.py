"""Data for a diagnosis: a dataset of scikit-learn by name, or a .npz, .csv or .tsv file.

Columns are standardized, and the target is recognized as classes or numbers. Every error message
says what is wrong, where it is, and what was wanted. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import errno
import importlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from math import nan, prod
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from vegrad.arrays.checks import Array, FloatArray, did_you_mean
from vegrad.arrays.shown import plainly, shown, some, visible
from vegrad.datasets import plain_csv
from vegrad.datasets.dataset import Dataset, as_dataset
from vegrad.datasets.plain_csv import DELIMITERS, MISSING

NAMES = ("digits", "breast_cancer", "wine", "diabetes")
TABLES = (".csv", ".tsv")
REGRESSION = ("diabetes",)
MOST_NAMED = 8  # columns that an error names
MOST_COLUMNS = 30  # of a file, in a message


class TooLargeError(ValueError):
    """The data of a file would take more memory than they may."""


@plainly()
def load(
    name_or_path: str | PathLike[str],
    target_column: str | None = None,
    *,
    numbers: bool = False,
) -> Dataset:
    """Read a dataset: digits, breast_cancer, wine, diabetes, a .npz, .csv or .tsv file.

    Args:
        name_or_path: the name of a dataset, or a path. A .npz file holds x of shape (B, …), which
            is flattened to (B, I), and y of shape (B,) or (B, O). A .csv or .tsv file has a header
            line and numbers separated by commas, semicolons or tabs; an empty cell or NA is a
            missing value and becomes NaN.
        target_column: the column of a .csv or .tsv file to learn.
        numbers: take a file's target of whole numbers as numbers. Else text, and whole numbers of
            at most 50 different values, are classes.

    Raises:
        ValueError: the content is not as described, or the arrays of a .npz file would take more
            than 8 GB; the environment's VEGRAD_MAX_DATA is another number of GB.
        OSError: the file is missing or cannot be read.
        ImportError: scikit-learn is needed and not installed.
    """
    text = fspath(name_or_path)
    if text in NAMES:
        _no_target_column(target_column, text)
        return _load_sklearn(text)
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in (".npz", *TABLES):
        names = ", ".join(NAMES)
        raise ValueError(
            f"data must be {names}, or a file that ends in .npz, .csv or .tsv, not {shown(text)}"
            f"{_missing(path)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"{text} does not exist")
    if not path.is_file():
        raise ValueError(f"{text} must be a file")
    if suffix in TABLES:
        return _load_csv(path, target_column, numbers)
    _no_target_column(target_column, text)
    return _load_npz(path, numbers)


def _missing(path: Path) -> str:
    """Say of a path with another ending that there is no such file, and what is near it."""
    if not path.suffix or path.exists():
        return ""
    near = [path.with_suffix(one).name for one in (".npz", *TABLES)]
    there = [one for one in near if path.with_name(one).is_file()]
    return f", which does not exist{did_you_mean(path.name, there)}"


def _no_target_column(target_column: str | None, name: str) -> None:
    if target_column is not None:
        raise ValueError(f"a target column goes with a .csv or .tsv file, not with {name}")


def _load_sklearn(name: str) -> Dataset:
    try:
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            f'the dataset {name} needs scikit-learn: pip install "vegrad[cli]"'
        ) from error
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    columns = tuple(map(str, bunch.feature_names))
    return as_dataset(name, bunch.data, bunch.target, columns, numbers=name in REGRESSION)


def _load_npz(path: Path, numbers: bool) -> Dataset:
    arrays = read_npz(path)
    x, y = arrays["x"], arrays["y"]
    if x.ndim == 0 or y.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(
            f"{path}: x (B, …) and y (B,) or (B, O) must have as many rows, "
            f"not shapes {x.shape} and {y.shape}"
        )
    if x.size == 0:
        raise ValueError(f"{path}: x must not be empty, but has shape {x.shape}")
    found = as_dataset(str(path), x.reshape(len(x), -1), y, numbers=numbers)
    return replace(found, flattened=x.shape[1:] if x.ndim > 2 else ())


def read_npz(path: Path, optional: Sequence[str] = ()) -> dict[str, Array]:
    """Read x, y and, if they are there, the optional arrays of a .npz file; x is numbers.

    Raises:
        ValueError: the file is damaged, x or y is missing or of the wrong kind, or the arrays would
            take more memory than `most_bytes` allows; nothing has been read of them then.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete .npz file (interrupted while written?)")
    try:
        with np.load(path, allow_pickle=False) as content:
            names = sorted(content.files)
            chosen = [name for name in names if name in ("x", "y", *optional)]
            _check_size(path, content.zip, chosen)
            arrays = {name: content[f"{name}.npy"] for name in chosen}
    except (TooLargeError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for damage
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place that cannot be
            raise
        if "allow_pickle" in str(error):
            raise ValueError(f"{path}: x and y must be arrays of numbers, not objects") from error
        raise ValueError(f"{path} is damaged: {error}") from error
    if not {"x", "y"} <= set(arrays):
        raise ValueError(f"{path} must hold x and y, not {some(names) or 'nothing'}")
    for name, kinds, wanted in (("x", "biuf", "numbers"), ("y", "biufU", "numbers or text")):
        if arrays[name].dtype.kind not in kinds:
            raise ValueError(f"{path}: {name} must be {wanted}, not {arrays[name].dtype}")
    return arrays


def most_bytes() -> int:
    """Return how much memory the arrays of a file may take: VEGRAD_MAX_DATA in GB, or 8 of them.

    A compressed file may be a thousand times smaller than what it unfolds to.
    """
    text = os.environ.get("VEGRAD_MAX_DATA", "8")
    try:
        found = float(text) * 1e9
        return int(found) if found >= 0 else int("no size")
    except (ValueError, OverflowError):
        raise TooLargeError(f"VEGRAD_MAX_DATA must be a number of GB, not {shown(text)}") from None


def _check_size(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """Read the shapes in the headers of members, and refuse what takes too much memory."""
    total, most = 0, most_bytes()
    for name in names:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"{name} must be an array, as np.savez writes it, not plain bytes")
        with archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        if any(length < 0 for length in shape):
            raise ValueError(f"{name} must have a shape, not {shape}")
        total += prod(shape) * dtype.itemsize
        if total > most:
            raise TooLargeError(
                f"{path}: {name} of shape {shape} brings the arrays to {total / 1e9:.3g} GB, and "
                f"the most is {most / 1e9:.3g} (VEGRAD_MAX_DATA=GB in the environment changes that)"
            )


def _load_csv(path: Path, target_column: str | None, numbers: bool) -> Dataset:
    plain = plain_csv.read(path, target_column)
    if plain is not None:
        names, x, target, lines = plain
        return as_dataset(str(path), x, target, names, numbers=numbers, lines=lines, owned=True)
    header, rows = _read_csv(path)
    columns = some(header, MOST_COLUMNS)
    if target_column is None:
        raise ValueError(f"{path} needs a target column, one of {columns}")
    if header.count(target_column) != 1:
        wrong = "twice" if target_column in header else "not"
        hint = "" if target_column in header else did_you_mean(target_column, header)
        raise ValueError(
            f'the column "{visible(target_column)}" is {wrong} in {path}, which has {columns}{hint}'
        )
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
    target = _csv_target(path, target_column, targets, lines)
    x = _csv_inputs(path, header, rows)
    return as_dataset(str(path), x, target, header, numbers=numbers, lines=lines)


def _csv_inputs(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> FloatArray:
    """Return the cells (B, I) as numbers, or name every column that holds something else."""
    x = np.empty((len(rows), len(header)))
    bad: dict[int, str] = {}
    for number, (line, row) in enumerate(rows):
        for column, cell in enumerate(row):
            value = _number(cell)
            if value is None:
                bad.setdefault(
                    column,
                    f'line {line}, column "{visible(header[column])}" is {shown(cell.strip())}',
                )
            else:
                x[number, column] = value
    if bad:
        cells = [bad[column] for column in sorted(bad)]
        more = f"; {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
        raise ValueError(
            f"{path}: {'; '.join(cells[:MOST_NAMED])}{more}: every column but the target must be "
            f"numbers, so leave {'these' if len(cells) > 1 else 'it'} out of the file or write "
            "numbers instead"
        )
    return x


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the names of the columns and, with the numbers of their lines, the rows of cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=first.count)
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
        raise ValueError(f"{path} must begin with a line of names, not with {some(header)}")
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
