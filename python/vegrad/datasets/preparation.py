"""The way from the columns of a table to what a network takes, and from its outputs back.

A `Preparation` is made of the rows that are learnt from and goes into the network's file, so that
other rows are put through the same: missing values filled, words turned into zeros and ones, dates
into days, everything standardized; and an output comes out as a class or in the target's own units.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np

from vegrad.arrays.checks import Array, FloatArray, did_you_mean
from vegrad.arrays.shown import shown, some, visible
from vegrad.datasets import amounts
from vegrad.datasets.dates import days_of, example
from vegrad.datasets.table import Table, is_missing

MOST_NAMED = 8  # columns, in a message
MANY, LONGEST = 10_000, 2**30  # columns that are packed, and bytes that they may unfold to
TRUTHS = {word: (word, word.title(), word.upper()) for word in ("true", "false")}


@dataclass(frozen=True)
class Column:
    """A column that is taken, and what becomes of it."""

    name: str
    kind: str
    """number, date or words."""
    fill: float | None = None
    """What stands in the place of a missing number; None if it stays missing."""
    marked: bool = False
    """True if a column of zeros and ones besides says where a value was missing."""
    words: tuple[str, ...] = ()
    """Those with a column of zeros and ones of their own."""
    other: bool = False
    """True if all other words have one together."""
    form: str = ""
    """How dates are written: "" of ISO 8601, else as strftime has it. How numbers are: the marks of
    thousands and decimals, "" of plain ones."""
    without: str | None = None
    """Of two words the one without a column; None of one or many, and in files before 0.2."""
    marks: tuple[str, ...] = ()
    """The words among numbers that stand for a missing one; none in files before 0.2."""

    unit: str = ""
    """The unit of numbers, if they have one; none in files before 0.2."""

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the columns that are made of it."""
        own = (self.name,) if self.kind != "words" else ()
        words = tuple(f"{self.name}={word}" for word in self.words)
        rare = (f"{self.name}=(other)",) if self.other else ()
        return own + words + rare + ((f"{self.name} is missing",) if self.marked else ())

    def values(self, table: Table, place: int) -> FloatArray:
        """Return the columns (B, k) that are made of the table's column at a place."""
        if self.kind == "words":
            return self._zeros_and_ones(table.text(place))
        numbers = table.numbers[:, place]
        if self.kind == "date" and place in table.words:
            numbers = days_of(table.text(place), self.form)
        elif self.form and place in table.words:
            numbers = amounts.numbers_of(table.text(place), self.form, self.unit)
        missing = np.isnan(numbers)
        if self.fill is not None:
            numbers = np.where(missing, self.fill, numbers)
        return np.stack([numbers, missing] if self.marked else [numbers], axis=1).astype(np.float64)

    def missing(self, table: Table, place: int) -> int:
        """Return how many cells have no value."""
        marked = sum(cell in self.marks for cell in table.words.get(place, ())) if self.marks else 0
        return table.missing[place] + marked

    def unknown(self, table: Table, place: int) -> int:
        """Return how many cells hold a word that none of the columns made stands for."""
        if self.kind != "words" or self.other or (len(self.words) == 1 and self.without is None):
            return 0
        cells = [cell for cell in table.text(place) if not is_missing(cell)]
        known = self._places if self.without is None else self._places | _spelled({self.without: 0})
        return sum(cell not in known for cell in cells)

    @property
    def _places(self) -> dict[str, int]:
        """The number of the column of each word, however it is written."""
        return _spelled({word: n for n, word in enumerate(self.words)})

    def _zeros_and_ones(self, cells: Sequence[str]) -> FloatArray:
        place = self._places
        rest, gone = len(self.words), len(self.words) + self.other
        found = np.zeros((len(cells), len(self.made)))
        for row, cell in enumerate(cells):
            at = gone if is_missing(cell) else place.get(cell, rest if self.other else -1)
            if 0 <= at < found.shape[1]:
                found[row, at] = 1.0
        return found


@dataclass(frozen=True)
class Preparation:
    """All that is done to a table, in plain JSON types but for the arrays."""

    columns: tuple[Column, ...]
    target: str
    """The name of the column that is learnt."""
    labels: tuple[str, ...]
    """The classes in the order of the outputs; none of a quantity."""
    shift: FloatArray
    """The means (I,) of the columns that are made."""
    scale: FloatArray
    """Their standard deviations, 0 of a column that is the same in every row."""
    target_shift: float | FloatArray = 0.0
    target_scale: float = 1.0
    """A quantity is target_shift + target_scale · output; so is what is compared of classes, whose
    shift may be one of each, (O,)."""

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the columns that are made, I of them."""
        return tuple(name for column in self.columns for name in column.made)

    def inputs(self, table: Table) -> FloatArray:
        """Return what a network takes of a table: (B, I).

        Raises:
            ValueError: for columns that are missing, or hold words instead of numbers or dates, all
                in one; and if there are no rows.
        """
        self._check(table)
        if not len(table):
            raise ValueError(f"{table.name} has names but no rows")
        places = [table.places[one.name] for one in self.columns]
        parts = [one.values(table, place) for one, place in zip(self.columns, places, strict=True)]
        x = np.concatenate(parts, axis=1) if parts else np.zeros((len(table), 0))
        scaled: FloatArray = (x - self.shift) / np.where(self.scale > 0, self.scale, 1.0)
        scaled[:, self.scale == 0] = 0.0
        return scaled

    def told(self, table: Table) -> tuple[str, ...]:
        """Say what `inputs` puts in the place of cells of a table that the network cannot take."""
        missing = {one.name: one.missing(table, table.places[one.name]) for one in self.columns}
        said = f"cells without a value, treated as in training: {_counted(missing)}"
        return (*((said,) if any(missing.values()) else ()), *self.unseen(table))

    def unseen(self, table: Table) -> tuple[str, ...]:
        """Say which columns have words that training has not seen; nothing if none has."""
        counts = {one.name: one.unknown(table, table.places[one.name]) for one in self.columns}
        said = f"words that training has not seen, taken for none of the known: {_counted(counts)}"
        return (said,) if any(counts.values()) else ()

    def _check(self, table: Table) -> None:
        """Raise a ValueError of all columns that are missing, and all cells that are no numbers."""
        lacking = [one.name for one in self.columns if one.name not in table.places]
        first = {one.name: _first_wrong(table, one) for one in self.columns}
        odd = {
            one: f'{table.place(first[one.name])}, column "{visible(one.name)}"'
            for one in self.columns
            if first[one.name] >= 0
        }
        wordy = {
            f"{cell} (in {visible(one.unit)})" if one.unit else cell: shown(
                table.text(table.places[one.name])[first[one.name]]
            )
            for one, cell in odd.items()
            if one.kind == "number"
        }
        undated = [
            f"{cell} (written like {example(one.form)})"
            for one, cell in odd.items()
            if one.kind == "date"
        ]
        wrong = []
        if lacking:
            hint = did_you_mean(lacking[0], table.columns) if len(lacking) == 1 else ""
            has = some([name or '""' for name in table.columns], MOST_NAMED)
            wrong.append(
                f"{table.name} must have the {columns_named(lacking)} that the network has "
                f"learnt from; it has {has}{hint}"
            )
        if wordy:
            cells, got = list(wordy)[:MOST_NAMED], list(wordy.values())[:MOST_NAMED]
            wrong.append(f"{table.name}: {'; '.join(cells)}: must be numbers, not {', '.join(got)}")
        if undated:
            wrong.append(f"{table.name}: {'; '.join(undated[:MOST_NAMED])}: must be dates")
        if wrong:
            raise ValueError("; and ".join(wrong))

    def outputs(self, made: Array) -> Array:
        """Return what a network's outputs (B, O) mean, (B,): classes, or numbers in own units."""
        own = made.astype(np.float64) * self.target_scale + self.target_shift
        if not self.labels:
            return own[:, 0]
        chosen = (made[:, 0] > 0).astype(int) if made.shape[1] == 1 else own.argmax(axis=1)
        found: Array = np.array(self.labels)[chosen]
        return found

    def scaled(
        self,
        columns: tuple[Array, Array] | None = None,
        target: tuple[Array, float] | None = None,
    ) -> Preparation:
        """Return this and then a scaling: shift and scale (I,) of what it makes, and of the target.

        Those of the target are a shift (O,) and one scale.
        """
        found = self
        if columns is not None:
            shift, scale = (np.asarray(one, np.float64) for one in columns)
            found = replace(found, shift=self.shift + self.scale * shift, scale=self.scale * scale)
        if target is not None:
            moved = self.target_shift + self.target_scale * np.asarray(target[0], np.float64)
            found = replace(
                found, target_shift=moved, target_scale=self.target_scale * float(target[1])
            )
        return found

    def packed(self) -> dict[str, object]:
        """Return plain JSON types for the header of a file, which may not be long."""
        state = self.to_dict()
        if len(self.made) <= MANY:
            return state
        text = zlib.compress(json.dumps(state).encode(), 1)
        return {"zlib": base64.b64encode(text).decode()}

    @classmethod
    def unpacked(cls, state: Mapping[str, object]) -> Preparation:
        """Return what `packed` wrote.

        Raises:
            KeyError, TypeError, ValueError: for what it cannot have written.
        """
        if "zlib" not in state:
            return cls.from_dict(state)
        try:
            text = base64.b64decode(str(state["zlib"]), validate=True)
            return cls.from_dict(json.loads(zlib.decompressobj().decompress(text, LONGEST)))
        except zlib.error as error:
            raise ValueError(f"preparation cannot be unpacked: {error}") from error

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        found = asdict(self)
        for name in ("shift", "scale", "target_shift"):
            found[name] = np.asarray(found[name]).tolist()
        return found

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> Preparation:
        """Return what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: for what it cannot have written.
        """
        columns = tuple(
            replace(
                Column(**one),
                words=tuple(map(str, one["words"])),
                marks=tuple(map(str, one.get("marks", ()))),
            )
            for one in cast(list[dict[str, Any]], state["columns"])
        )
        found = cls(
            columns,
            str(state["target"]),
            tuple(map(str, cast(list[str], state["labels"]))),
            np.array(state["shift"], np.float64),
            np.array(state["scale"], np.float64),
            np.array(state["target_shift"], np.float64),
            float(str(state["target_scale"])),
        )
        if found.shift.shape != (len(found.made),) or found.scale.shape != found.shift.shape:
            raise ValueError("shift and scale must have a number for each column")
        if np.shape(found.target_shift) not in ((), (1,), (len(found.labels),)):
            raise ValueError("target_shift must be a number, or have one for each class")
        return found


def _first_word(table: Table, column: Column) -> int:
    """Return the first row in which a column of numbers has none; -1 if there is no such row."""
    place = table.places.get(column.name, -1)
    cells = table.words.get(place)
    if cells is None:
        return -1
    numbers = table.numbers[:, place]
    if column.form:
        numbers = amounts.numbers_of(cells, column.form, column.unit)
    known, rows = set(column.marks), np.flatnonzero(np.isnan(numbers)).tolist()
    return next((row for row in rows if not is_missing(cells[row]) and cells[row] not in known), -1)


def _first_undated(table: Table, column: Column) -> int:
    """Return the first row in which a column of dates has something else; -1 if none has."""
    place = table.places.get(column.name, -1)
    if place in table.dates or place < 0:
        return -1
    odd = ~np.isnan(table.numbers[:, place])  # plain numbers are no days
    if place in table.words:
        cells = table.words[place]
        odd = np.isnan(days_of(cells, column.form)) & [not is_missing(one) for one in cells]
    rows = np.flatnonzero(odd)
    return int(rows[0]) if len(rows) else -1


def _first_wrong(table: Table, column: Column) -> int:
    """Return the first row in which a column has what it cannot take; -1 if none has."""
    if column.kind == "words":
        return -1
    return (_first_undated if column.kind == "date" else _first_word)(table, column)


def _spelled(places: Mapping[str, int]) -> dict[str, int]:
    """Return words with their places, and truths also as other programs write them."""
    found = dict(places)
    for word, place in places.items():
        for one in TRUTHS.get(word.lower(), ()):
            found.setdefault(one, place)
    return found


def _counted(counts: Mapping[str, int]) -> str:
    """Return how many cells each column has, as in '"a" (3), "b" (1)'; none of those without."""
    return some([f'"{name}" ({n})' for name, n in counts.items() if n], MOST_NAMED)


def columns_named(names: Sequence[str]) -> str:
    """Return columns by name, as in 'columns "a", "b" and 3 more'."""
    shown = ", ".join(f'"{visible(name)}"' for name in names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"column{'s' if len(names) > 1 else ''} {shown}{more}"
