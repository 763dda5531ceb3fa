"""Tables as people have them: columns with names, of numbers, of words, or of dates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan

import numpy as np
import numpy.typing as npt

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray

MISSING = ("", "na", "n/a", "nan", "null")


@dataclass
class Table:
    """Rows of named columns, before anything is done to them."""

    name: str
    """What it was read from."""
    columns: tuple[str, ...]
    numbers: FloatArray
    """(B, C): NaN where a cell is missing, or no number."""
    missing: tuple[int, ...]
    """How many cells of each column, (C,), are missing."""
    words: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """The cells, (B,), of the columns in which some are no numbers."""
    lines: npt.NDArray[np.int64] | None = None
    """The lines of the file that the rows begin in, the first being 1; None of other tables."""
    dates: frozenset[int] = frozenset()
    """Columns of numbers that are days since 1970."""
    told: tuple[str, ...] = ()
    """What was found out of the file's form."""
    decimal: str = "."
    """The mark before the decimals."""

    @cached_property
    def places(self) -> dict[str, int]:
        """The first column of each name."""
        names = range(len(self.columns) - 1, -1, -1)
        return {self.columns[place]: place for place in names}

    def __len__(self) -> int:
        return len(self.numbers)

    def text(self, column: int) -> Sequence[str]:
        """Return the cells of a column as text, (B,): "" of what is missing."""
        cells = self.words.get(column)
        if cells is not None:
            return cells
        return ["" if isnan(one) else f"{one:.17g}" for one in self.numbers[:, column].tolist()]

    def kept(self, rows: npt.NDArray[np.bool_]) -> Table:
        """Return the rows of a mask (B,)."""
        places = np.flatnonzero(rows).tolist()
        words = {n: [cells[row] for row in places] for n, cells in self.words.items()}
        numbers = self.numbers[rows]
        missing = np.isnan(numbers).sum(axis=0).tolist()
        for n, cells in words.items():
            missing[n] = sum(map(is_missing, cells))
        lines = None if self.lines is None else self.lines[rows]
        return replace(self, numbers=numbers, missing=tuple(missing), words=words, lines=lines)

    def place(self, row: int) -> str:
        """Describe where a row comes from."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


def is_missing(cell: str) -> bool:
    """Return True if a cell stands for no value."""
    return cell.lower() in MISSING
