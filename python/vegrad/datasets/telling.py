"""Columns that tell the target by themselves, as a copy of it in other units or words does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from vegrad.arrays.checks import Array, FloatArray
from vegrad.datasets.dataset import MOST_CLASSES
from vegrad.datasets.table import Table

Cells: TypeAlias = Sequence[object]
FEW_ROWS, LOOKED_AT = 20, 16  # fewer rows tell nothing; the first that nearly always tell enough
EXACT = 1e-9  # beside the largest value: more is no rounding


def telling(table: Table, target: int, places: Sequence[int]) -> list[int]:
    """Return the columns of which the target is a straight line, or another name of each class."""
    if len(table) < FEW_ROWS or not places:
        return []
    cells = table.words.get(target)
    if cells is None:
        found = _lines(table, target, [one for one in places if one not in table.words])
        if len(np.unique(table.numbers[:, target])) > MOST_CLASSES:
            return found
        cells = table.numbers[:, target].tolist()
        return sorted({*found, *_names(table, cells, places)})
    return _names(table, cells, places) if len(set(cells)) <= MOST_CLASSES else []


def _lines(table: Table, target: int, places: Sequence[int]) -> list[int]:
    """Return the columns of numbers of which the target is a straight line."""
    first, wanted = table.numbers[:LOOKED_AT, places], table.numbers[:LOOKED_AT, target]
    return [
        place
        for place, may in zip(places, _straight(first, wanted).tolist(), strict=True)
        if may and _straight(table.numbers[:, [place]], table.numbers[:, target])[0]
    ]


def _straight(columns: FloatArray, target: FloatArray) -> Array:
    """Return which columns (B, C) have a straight line to the target (B,): (C,)."""
    y = target - target[0]
    far = int(np.argmax(np.abs(y)))
    with np.errstate(all="ignore"):
        x = columns - columns[0]
        left = np.abs(x * y[far] - y[:, None] * x[far]).max(axis=0)
        most = np.abs(x).max(axis=0)
        found: Array = (most > 0) & (left <= EXACT * most * np.abs(y[far]))  # NaN is not
    return found


def _names(table: Table, cells: Cells, places: Sequence[int]) -> list[int]:
    """Return the columns with a value of its own for each class, and no other."""
    some = [
        place for place in places if _named(cells[:LOOKED_AT], _column(table, place, LOOKED_AT))
    ]
    if len(set(cells)) == len(cells):  # no class: any column of numbers has one beside each
        return []
    return [place for place in some if _named(cells, _column(table, place, len(table)))]


def _column(table: Table, place: int, rows: int) -> Cells:
    cells = table.words.get(place)
    return table.numbers[:rows, place].tolist() if cells is None else cells[:rows]


def _named(cells: Cells, others: Cells) -> bool:
    """Return True if equal cells have equal others, and the other way round."""
    pairs = set(zip(cells, others, strict=True))
    return len(pairs) == len(set(cells)) == len(set(others))
