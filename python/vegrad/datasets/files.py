"""Data for a diagnosis: a dataset of scikit-learn by name, or a .npz, .csv or .tsv file.

Columns are standardized, and the target is recognized as classes or numbers. Every error message
says what is wrong, where it is, and what was wanted. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import importlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from vegrad.arrays.checks import Array, did_you_mean
from vegrad.arrays.shown import SCREEN, plainly, shown, some, visible
from vegrad.datasets import amounts, csv_files, dates
from vegrad.datasets.dataset import MOST_CLASSES, Dataset, as_dataset
from vegrad.datasets.frames import as_table, is_frame, read_excel, read_parquet
from vegrad.datasets.preparation import Preparation
from vegrad.datasets.preparing import OWN_WORD, Choice, check, check_words, planned
from vegrad.datasets.sheets import extent, told_extent, unfolded
from vegrad.datasets.table import Table, is_missing
from vegrad.datasets.telling import FEW_ROWS

NAMES = ("digits", "breast_cancer", "wine", "diabetes")
READERS: dict[str, Callable[[Path, str | None], Table]] = {
    ".csv": csv_files.read,
    ".tsv": csv_files.read,
    ".parquet": read_parquet,
    ".xlsx": read_excel,
}
TABLES = tuple(READERS)
REGRESSION = ("diabetes",)
MOST_COLUMNS = 30  # of a file, in a message


class TooLargeError(ValueError):
    """The data of a file would take more memory than they may."""


@plainly()
def load(
    source: object,
    target_column: str | None = None,
    *,
    numbers: bool = False,
    drop: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    fill: str = "median",
    sheet: str | None = None,
) -> Dataset:
    """Read a dataset: digits, breast_cancer, wine, diabetes, a .npz file, or a table.

    Of a table columns are chosen and turned into numbers; what is done is told in the dataset's
    `told` and kept in its `preparation`.

    Args:
        source: the name of a dataset, a path, or a frame of pandas or polars. A .npz file holds x
            of shape (B, …), which is flattened to (B, I), and y of shape (B,) or (B, O). A table is
            a .csv, .tsv, .parquet or .xlsx file. A .csv file has a header line; its separator,
            decimal mark and quotes are found out; an empty cell or NA is a missing value.
        target_column: the column of a table to learn.
        numbers: take a file's target of whole numbers as numbers. Else text, and whole numbers of
            at most 50 different values, are classes (over 10 only if every other row repeats one).
        drop: columns of a table to leave out.
        columns: those to take, None for all in which something may be learnt.
        fill: what stands in the place of a missing number: median, mean, zero or none, which leaves
            NaN. A column of zeros and ones besides says where it was missing. Rows without a target
            are left out, but with none.
        sheet: the name of a .xlsx file's sheet; by default its first is read.

    Raises:
        TypeError: the source is none of these.
        ValueError: the content is not as described, or would take more than 8 GB; the environment's
            VEGRAD_MAX_DATA is another number of GB.
        OSError: the file is missing or cannot be read.
        ImportError: scikit-learn, pandas or polars is needed and not installed.
    """
    if sheet is not None and (is_frame(source) or not str(source).lower().endswith(".xlsx")):
        got = "a frame" if is_frame(source) else shown(str(source))
        raise ValueError(f"a sheet goes with a .xlsx file, not with {got}")
    if is_frame(source):
        return _of_table(as_table(source), target_column, numbers, drop, columns, fill)
    if not isinstance(source, str | PathLike):
        raise TypeError(f"source must be a name, a path or a frame, not {type(source).__name__}")
    text = fspath(source)
    if text in NAMES:
        _only_for_tables(text, target_column, drop, columns)
        return _load_sklearn(text)
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in (".npz", *TABLES):
        names, endings = ", ".join(NAMES), ", ".join((".npz", *TABLES[:-1]))
        raise ValueError(
            f"data must be {names}, or a file that ends in {endings} or {TABLES[-1]}, not "
            f"{shown(text)}"
            f"{_missing(path)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"{visible(text, SCREEN)} does not exist")
    if not path.is_file():
        raise ValueError(f"{text} must be a file")
    if suffix in TABLES:
        return _of_table(
            read_table(path, target_column, sheet), target_column, numbers, drop, columns, fill
        )
    _only_for_tables(text, target_column, drop, columns)
    return _load_npz(path, numbers)


def read_table(path: Path, target_column: str | None = None, sheet: str | None = None) -> Table:
    """Read a table as its ending says, the target's column behind the others.

    Raises:
        ValueError, OSError, ImportError: as `load`.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"a table must end in {', '.join(TABLES)}, not {shown(path.name)}")
    if reader is read_excel:
        _check_sheets(path)
        return read_excel(path, target_column, sheet)
    if sheet is not None:
        raise ValueError(f"a sheet goes with a .xlsx file, not with {shown(path.name)}")
    if reader is read_parquet:
        _check_extent(path, told_extent(path), 8.0)
    return reader(path, target_column)


def _of_table(
    table: Table,
    target_column: str | None,
    numbers: bool,
    drop: Sequence[str],
    columns: Sequence[str] | None,
    fill: str,
) -> Dataset:
    if target_column is None:
        names = some(list(table.columns), MOST_COLUMNS)
        raise ValueError(f"{table.name} needs a target column, one of {names}")
    choice = Choice(str(target_column), _names(drop), None if columns is None else _names(columns))
    return of_table(table, replace(choice, fill=fill), numbers)


def _names(columns: Sequence[str]) -> list[str]:
    """Return names of columns as text, as those of a frame may be numbers; one alone is a list."""
    return [columns] if isinstance(columns, str) else list(map(str, columns))


def _missing(path: Path) -> str:
    """Say of a path with another ending that there is no such file, and what is near it."""
    if not path.suffix or path.exists():
        return ""
    near = [path.with_suffix(one).name for one in (".npz", *TABLES)]
    there = [one for one in near if path.with_name(one).is_file()]
    return f", which does not exist{did_you_mean(path.name, there)}"


def _only_for_tables(
    name: str, target_column: str | None, drop: Sequence[str], columns: Sequence[str] | None
) -> None:
    """Refuse columns by name where there are no names."""
    if target_column is not None or drop or columns is not None:
        what = "a target column goes" if target_column is not None else "names of columns go"
        raise ValueError(f"{what} with a table ({', '.join(TABLES)}), not with {name}")


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
        # The system's errors have numbers, EINVAL that of a place that cannot be; bz2's have none.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
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


def of_table(table: Table, choice: Choice, numbers: bool) -> Dataset:
    """Make a dataset of a table: columns chosen, filled, encoded and standardized.

    Raises:
        ValueError: what is wrong with the table or the choice, with the line or row of it.
    """
    check(table, choice)
    if not len(table):
        raise ValueError(f"{table.name} has names but no rows")
    last = table.columns.index(choice.target)
    table = table if choice.fill == "none" else _with_targets(table, last)
    target = _target(table, last)
    plan = planned(table, choice)
    if plan.places == list(range(last)) and all(one.made == (one.name,) for one in plan.columns):
        x = table.numbers[:, :last]  # as most are, without a copy
        for place, one in enumerate(plan.columns):
            if one.kind == "date" or one.form:
                x[:, place] = one.values(table, place)[:, 0]
    else:
        _check_room(table, sum(len(one.made) for one in plan.columns))
        pairs = zip(plan.columns, plan.places, strict=True)
        x = np.concatenate([one.values(table, place) for one, place in pairs], axis=1)
    made = tuple(name for one in plan.columns for name in one.made)
    lines = () if table.lines is None else tuple(table.lines.tolist())
    found = as_dataset(table.name, x, target, made, numbers=numbers, lines=lines, owned=True)
    assert found.units is not None
    shift, scale = found.units
    preparation = Preparation(
        tuple(plan.columns), choice.target, found.labels, shift, scale, *found.target_units
    )
    if last in table.words and target.dtype.kind == "f":
        plan.amounts[choice.target] = next(c for c in table.words[last] if not is_missing(c))
    days = (f"{visible(choice.target)}: dates, as days since 1970",) * (last in table.dates)
    told = (*table.told, *days, *plan.told(choice.fill))
    return replace(found, preparation=preparation, told=told)


def _check_sheets(path: Path) -> None:
    """Refuse a workbook whose cells lie so far apart that all between take too much memory."""
    most, size = most_bytes(), float(unfolded(path))
    if size > most:
        raise TooLargeError(
            f"{path} unfolds to {size / 1e9:.3g} GB, and the most is {most / 1e9:.3g} "
            "(VEGRAD_MAX_DATA=GB in the environment changes that)"
        )
    _check_extent(path, extent(path), 100.0)


def _check_extent(path: Path, found: tuple[int, int], cell: float) -> None:
    """Refuse so many rows and columns, of so many bytes a cell as readers have them."""
    (rows, columns), most = found, most_bytes()
    size = cell * rows * columns
    if size > most:
        raise TooLargeError(
            f"{path}: {rows} rows of {columns} columns take {size / 1e9:.3g} GB, and the most is "
            f"{most / 1e9:.3g} (VEGRAD_MAX_DATA=GB in the environment changes that)"
        )


def _with_targets(table: Table, last: int) -> Table:
    """Leave out the rows whose target is missing, unless it is in all, and say so."""
    if not table.missing[last]:
        return table
    cells = table.words.get(last)
    there = ~np.isnan(table.numbers[:, last])
    if cells is not None:
        there = np.array([not is_missing(cell) for cell in cells])
    without = int((~there).sum())
    if without in (0, len(there)):
        return table
    name = visible(table.columns[last])
    told = f"rows left out: {without} without {name}"
    return replace(table.kept(there), told=(*table.told, told))


def _check_room(table: Table, columns: int) -> None:
    """Refuse a table that becomes too large."""
    size, most = 8.0 * len(table) * columns, most_bytes()
    if size > most:
        raise TooLargeError(
            f"{table.name}: {columns} columns of {len(table)} rows take {size / 1e9:.3g} GB, and "
            f"the most is {most / 1e9:.3g} (VEGRAD_MAX_DATA=GB in the environment changes that)"
        )


def _target(table: Table, column: int) -> Array:
    """Return the target, (B,): numbers, or words of which none is missing."""
    cells, name = table.words.get(column), table.columns[column]
    if cells is None:
        numbers = table.numbers[:, column].copy()
        if np.isnan(numbers).all():
            raise ValueError(f'{table.name}: the target column "{visible(name)}" has no values')
        return numbers
    for row, cell in enumerate(cells):
        if is_missing(cell):
            raise ValueError(
                f'{table.name}: the target column "{visible(name)}" has no value in '
                f"{table.place(row)}"
            )
    form = amounts.form_of(cells, table.decimal)
    if form is not None:
        return amounts.numbers_of(cells, form)
    if dates.form_of(cells) is not None and len(set(cells)) > MOST_CLASSES:
        raise ValueError(
            f'{table.name}: the target column "{visible(name)}" must be numbers or classes, not '
            f"dates such as {shown(cells[0])}: days since a first one are numbers"
        )
    if len(cells) >= FEW_ROWS and len(set(cells)) >= OWN_WORD * len(cells):
        check_words(table, column)
        units = amounts.units_of(cells, table.decimal)
        if units:
            raise ValueError(
                f'{table.name}: the target column "{visible(name)}" must be numbers of one unit, '
                f"not of {', '.join(units)}"
            )
        raise ValueError(
            f'{table.name}: the target column "{visible(name)}" must be numbers or classes, but '
            f"nearly every row has a word of its own, such as {shown(cells[0])}"
        )
    return np.array(cells)
