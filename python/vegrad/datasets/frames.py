"""Take frames of pandas and polars as tables, and read the files that these libraries read.

Neither is imported until a file needs it; a frame is told by the module of its class.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np

from vegrad.arrays.checks import Array, FloatArray, did_you_mean
from vegrad.arrays.shown import shown, some
from vegrad.datasets.sheets import sheet_names
from vegrad.datasets.table import Table, is_missing

LIBRARIES = ("polars", "pandas")
READ_WITH = {
    "read_excel": {"pandas": "openpyxl", "polars": "fastexcel"},
    "read_parquet": {"pandas": "pyarrow"},
}
"""The packages with which the libraries read files."""
MOST_NAMED = 8  # sheets, in a message
DAY = np.timedelta64(1, "D")


class Series(Protocol):
    """A column of a frame."""

    @property
    def dtype(self) -> object:
        """The type of its values."""

    def to_numpy(self) -> Array:
        """Return its values, (B,)."""

    def __iter__(self) -> Iterator[object]: ...


class Frame(Protocol):
    """A frame of pandas or polars."""

    @property
    def columns(self) -> Iterable[object]:
        """The names of its columns."""

    def __len__(self) -> int: ...
    def __getitem__(self, name: object, /) -> Series: ...


def is_frame(value: object) -> TypeGuard[Frame]:
    """Return True of a frame of pandas or polars."""
    kind = type(value)
    return kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] in LIBRARIES


def as_table(frame: Frame, name: str = "the frame", last: str | None = None) -> Table:
    """Return a frame as a table, its column `last` behind the others if there is one.

    Numbers and dates become numbers; all else is text, truths too, as they are in a .csv file.
    """
    keys = list(frame.columns)
    names = list(map(str, keys))
    order = sorted(range(len(names)), key=lambda n: names[n] == last)
    numbers = np.full((len(frame), len(names)), np.nan)
    words: dict[int, list[str]] = {}
    dates = set[int]()
    for place, n in enumerate(order):
        column = _column(frame, keys[n], n)
        values, kind = _numbers(column)
        if values is None:
            cells = ["" if _is_none(one) else str(one).strip() for one in column]
            numbers[:, place] = [_number(cell) for cell in cells]
            unread = np.flatnonzero(np.isnan(numbers[:, place])).tolist()
            if not all(is_missing(cells[row]) for row in unread):
                words[place] = cells  # else they are numbers as text, as in a .csv file
            continue
        numbers[:, place] = values
        if kind == "b":
            words[place] = ["" if _is_none(one) else str(one) for one in column]
        if kind == "M":
            dates.add(place)
    missing = np.isnan(numbers).sum(axis=0)
    for place, cells in words.items():
        missing[place] = sum(map(is_missing, cells))
    ordered = tuple(names[n] for n in order)
    return Table(name, ordered, numbers, tuple(missing.tolist()), words, dates=frozenset(dates))


def _column(frame: Frame, key: object, place: int) -> Series:
    """Return a column, also one of pandas that shares its name."""
    by_place = getattr(frame, "iloc", None)
    found: Series = frame[key] if by_place is None else by_place[:, place]
    return found


def _numbers(column: Series) -> tuple[FloatArray | None, str]:
    """Return a column as numbers (B,), None if it is none, and the kind of its dtype."""
    try:
        values: Array = np.asarray(column.to_numpy())
        if values.dtype.kind == "O" and _is_numeric(column):
            cells = [np.nan if _is_none(one) else one for one in column]
            kind = "b" if str(column.dtype).lower().startswith("bool") else "f"
            return np.array([float(one) for one in cells]), kind  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None, "O"
    if values.ndim != 1:  # of records
        return None, "O"
    kind = values.dtype.kind
    if kind in "biuf":
        return values.astype(np.float64), kind
    if kind == "M":
        days = (values - np.datetime64(0, "D").astype(values.dtype)) / DAY
        return days, kind
    if kind == "m":
        return values / DAY, kind
    return None, kind


def _is_numeric(column: Series) -> bool:
    """Return True of numbers with a missing value of their own, which NumPy has as objects."""
    return str(column.dtype).lower().startswith(("int", "uint", "float", "bool", "decimal"))


def _is_none(value: object) -> bool:
    nan = isinstance(value, float) and value != value  # of other kinds this may be no truth
    return value is None or nan or str(value) in ("<NA>", "NaT")


def _number(cell: str) -> float:
    try:
        return np.nan if "_" in cell or is_missing(cell) else float(cell)
    except ValueError:
        return np.nan


def read_parquet(path: Path, last: str | None = None) -> Table:
    """Read a .parquet file by polars or pandas, whichever there is."""
    return _read(path, "read_parquet", last)


def read_excel(path: Path, last: str | None = None, sheet: str | None = None) -> Table:
    """Read a sheet of a .xlsx file, by default the first, by polars or pandas, whichever there is.

    Raises:
        ValueError: it has no such sheet; and as for any file.
    """
    names = sheet_names(path)
    if sheet is not None and names and sheet not in names:
        has, hint = some(list(map(shown, names)), MOST_NAMED), did_you_mean(sheet, names)
        raise ValueError(f"{path} has no sheet {shown(sheet)}, but {has}{hint}")
    found = _read(path, "read_excel", last, **({} if sheet is None else {"sheet_name": sheet}))
    if len(names) < 2:
        return found
    read = names[0] if sheet is None else sheet
    others = some([shown(one) for one in names if one != read], MOST_NAMED)
    return replace(found, told=(f"sheet: {shown(read)}; not read: {others}", *found.told))


def _read(path: Path, function: str, last: str | None, **more: str) -> Table:
    """Read a file by the first of the libraries that can.

    Raises:
        ImportError: there is none that can.
        ValueError: the file is damaged.
    """
    there, missing = list[str](), ""
    for library in LIBRARIES:
        try:
            read = getattr(importlib.import_module(library), function)
            there.append(library)
            return as_table(read(path, **more), str(path), last)
        except ImportError as error:  # the library, or what it reads such files with
            missing = missing or f" ({error})"
        except OSError:
            raise
        except Exception as error:  # each library has kinds of its own for damage
            raise ValueError(f"{path} cannot be read: {str(error).strip():.200}") from error
    packages = {READ_WITH[function][one]: one for one in there if one in READ_WITH[function]}
    if packages:
        needs = " or ".join(f"{package} (for {one})" for package, one in packages.items())
        raise ImportError(f"{path} needs {needs}: pip install {next(reversed(packages))}")
    raise ImportError(f'{path} needs pandas or polars: pip install "vegrad[tables]"{missing}')
