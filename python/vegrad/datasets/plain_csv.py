"""Read a .csv file that is as plain as most are: numbers, and perhaps a column of words to learn.

NumPy reads such a file some ten times as fast as cell by cell. What is not plain (quotes, missing
values, lines that are too short) is left to `files`, which can say what is wrong and where.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vegrad.arrays.checks import Array, FloatArray

DELIMITERS = ",;\t"
BLOCK = 1 << 18  # bytes at a time
MISSING = ("", "na", "n/a", "nan", "null")


class Plain(NamedTuple):
    """The content of a plain file."""

    columns: list[str]
    """Names of the columns beside the target."""
    x: FloatArray
    """Their numbers, (B, I)."""
    target: Array
    """Numbers, or words, (B,)."""
    lines: tuple[int, ...]
    """The line that each row stands in, the first being 1."""


def read(path: Path, target_column: str | None) -> Plain | None:
    """Return what a file holds; None if it is not plain, or something is wrong with it."""
    with path.open("rb") as file:
        try:
            first = file.readline().decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
        delimiter = max(DELIMITERS, key=first.count)
        rows, cells = _counted(file, delimiter.encode())
    header = [name.strip() for name in first.split(delimiter)]
    # NumPy refuses lines that are too short; if there are no more cells, none is too long.
    if not rows or cells != rows * len(header) or '"' in first:
        return None
    if header.count(target_column or "") != 1 or len(header) < 2 or all(map(_is_number, header)):
        return None
    at = header.index(target_column or "")
    try:
        x, target = _values(path, delimiter, at, len(header))
    except ValueError:
        return None
    if len(x) != rows:
        return None
    return Plain([*header[:at], *header[at + 1 :]], x, target, tuple(range(2, rows + 2)))


def _counted(file: BinaryIO, delimiter: bytes) -> tuple[int, int]:
    """Return the numbers of lines and of cells; no lines if one is blank or has quotes."""
    rows = marks = 0
    last = b"\n"
    while block := file.read(BLOCK):
        seen = last + block
        if b'"' in block or b"\n\n" in seen or b"\n\r\n" in seen:
            return 0, 0
        rows += block.count(b"\n")
        marks += block.count(delimiter)
        last = block[-2:]
    rows += not last.endswith(b"\n")
    return rows, marks + rows


def _values(path: Path, delimiter: str, at: int, columns: int) -> tuple[FloatArray, Array]:
    """Return the numbers beside the target, and the target; ValueError if they are none."""
    others = [n for n in range(columns) if n != at]
    try:
        table = _loaded(path, delimiter, None, np.float64)
    except ValueError:  # the target may be words
        words = np.char.strip(_loaded(path, delimiter, [at], np.str_)[:, 0])
        if np.isin(np.char.lower(words), MISSING).any():
            raise
        return _loaded(path, delimiter, others, np.float64), words
    inner = 0 < at < columns - 1
    x = np.delete(table, at, axis=1) if inner else table[:, others[0] : others[-1] + 1]
    return x, table[:, at].copy()


def _loaded(path: Path, delimiter: str, columns: list[int] | None, dtype: type) -> Array:
    return np.loadtxt(
        path,
        dtype,
        comments=None,
        delimiter=delimiter,
        skiprows=1,
        usecols=columns,
        ndmin=2,
        encoding="utf-8-sig",
    )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return name.lower() in MISSING
    return True
