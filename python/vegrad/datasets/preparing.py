"""Find out what is to be done to a table, and say it: which columns are left out, filled, encoded.

What is guessed here can be changed: `--columns` and `--drop` choose the columns, `--fill` says what
stands in the place of missing numbers, `--target` names what is learnt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isnan
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import Array, FloatArray, did_you_mean
from vegrad.arrays.shown import shown, some, visible
from vegrad.datasets import amounts
from vegrad.datasets.dates import form_of, is_unclear
from vegrad.datasets.preparation import MOST_NAMED, Column, columns_named
from vegrad.datasets.table import Table, is_missing
from vegrad.datasets.telling import FEW_ROWS, telling

FILLS = ("median", "mean", "zero", "none")
MOST_WORDS = 20  # of a column, that have a column of their own
LEAST_SHARE = 0.01  # of the rows, that a word with a column of its own stands in
NUMBERED = re.compile(r"(^|[ _.-])(id|idx|index|uuid|guid|rowid|unnamed: ?\d+)$|^$", re.IGNORECASE)
UNCLEAR = " (the day before the month: no row tells)"
CAMEL = re.compile(r"(?<=[a-z])(?=I[Dd]$)")
OWN_WORD = 0.9  # share of rows with a word of their own
SOME = 4096  # rows, of a column without missing values, whose median fills what others lack
MARKS, MARKED = 2, 0.1  # words beside numbers that stand for what is missing, and their share
MOST_MARKED = 0.25  # beside numbers of which so many differ that they are no classes
MISTYPED = 0.05  # share of words of any sort beside numbers
LOOKS = 64  # cells, most of which are amounts where the column may be of them


@dataclass
class Choice:
    """The columns that the user has named, and why."""

    target: str
    drop: Sequence[str] = ()
    columns: Sequence[str] | None = None
    """Those to take; None for all that look useful."""
    fill: str = "median"


@dataclass
class Plan:
    """The columns that are taken, in the table's order, and what is to be said."""

    columns: list[Column] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of columns by the reason for which they are left out."""
    filled: dict[str, int] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)
    """Words that were taken for missing values."""
    mixed: dict[str, str] = field(default_factory=dict)
    """The units of columns of words that are numbers in several."""
    amounts: dict[str, str] = field(default_factory=dict)
    """An example of the columns of numbers with a currency or marks of the thousands."""
    unclear: set[str] = field(default_factory=set)
    """Dates of which no row tells whether the day or the month stands first."""
    telling: list[str] = field(default_factory=list)
    """Columns each of which tells the target by itself."""

    def told(self, fill: str) -> tuple[str, ...]:
        """Say what is done, a line each."""
        lines = []
        if self.left_out:
            parts = [f"{_listed(names)} ({why})" for why, names in self.left_out.items()]
            lines.append(f"left out: {'; '.join(parts)}")
        words = [one for one in self.columns if one.kind == "words"]
        if words:
            parts = [
                f"{visible(one.name)} ({len(one.words) + one.other}"
                f"{', rare ones together' if one.other else ''})"
                for one in words
            ]
            lines.append(f"words as zeros and ones: {_listed(parts, quoted=False)}")
        if self.mixed:
            parts = [f"{visible(name)} ({units})" for name, units in self.mixed.items()]
            lines.append(f"{SEVERAL}, no numbers: {_listed(parts, quoted=False)}")
        if self.amounts:
            parts = [f"{visible(name)} ({shown(one)})" for name, one in self.amounts.items()]
            lines.append(f"numbers with marks or units: {_listed(parts, quoted=False)}")
        dates = [one.name for one in self.columns if one.kind == "date"]
        if dates:
            parts = [f"{visible(one)}{UNCLEAR * (one in self.unclear)}" for one in dates]
            lines.append(f"dates as days: {_listed(parts, quoted=False)}")
        for name, marks in self.marks.items():
            words_told = _listed(list(map(shown, marks)), quoted=False)
            lines.append(f"taken for missing in {visible(name)}: {words_told}")
        if self.filled:
            parts = [f"{visible(name)} ({count})" for name, count in self.filled.items()]
            way = "left as they are" if fill == "none" else f"filled ({fill}) and marked"
            lines.append(f"missing values {way}: {_listed(parts, quoted=False)}")
        if self.telling:
            lines.append(
                f"tells the target by itself: {_listed(self.telling)} (to be dropped if it is not "
                "known before)"
            )
        return tuple(lines)


def _listed(names: Sequence[str], *, quoted: bool = True) -> str:
    first = [visible(name) if quoted else name for name in names[:MOST_NAMED]]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(one or '""' for one in first) + more


def check(table: Table, choice: Choice) -> None:
    """Raise ValueError for names that a table does not have, all in one, or has twice."""
    names = [choice.target, *choice.drop, *(choice.columns or ())]
    count = Counter(table.columns)
    wrong = [name for name in dict.fromkeys(names) if count[name] != 1]
    if wrong:
        is_are = "are" if len(wrong) > 1 else "is"
        how = "twice" if all(name in table.columns for name in wrong) else "not"
        hint = did_you_mean(wrong[0], table.columns) if len(wrong) == 1 and how == "not" else ""
        has = some([name or '""' for name in table.columns], 30)
        if len(table.columns) == 1 and table.lines is not None:
            has += " alone; its cells must stand between commas, semicolons, tabs or bars"
        raise ValueError(
            f"the {columns_named(wrong)} {is_are} {how} in {table.name}, which has {has}{hint}"
        )
    if choice.fill not in FILLS:
        raise ValueError(f"fill must be {', '.join(FILLS)}, not {shown(choice.fill)}")
    if choice.target in (*choice.drop, *(choice.columns or ())):
        raise ValueError(f'"{visible(choice.target)}" is the target, and no column to take or drop')
    if len(table.columns) < 2:
        raise ValueError(f"{table.name} must have columns beside {choice.target}")


def planned(table: Table, choice: Choice) -> Plan:
    """Decide what becomes of each column.

    Raises:
        ValueError: if none is left.
    """
    plan, target = Plan(), table.columns.index(choice.target)
    chosen, dropped = set(choice.columns or ()), set(choice.drop)
    for place, name in enumerate(table.columns):
        if place == target or (choice.columns is not None and name not in chosen):
            continue
        asked = choice.columns is not None
        why = "as asked" if name in dropped else _useless(table, place, target, asked=asked)
        if why:
            plan.left_out.setdefault(why, []).append(name)
            continue
        _take(table, place, choice.fill, plan)
    if not plan.columns and plan.left_out.keys() - {"as asked"} and choice.columns is None:
        return _all_the_same(table, choice, plan)
    if not plan.columns:
        raise _none_left(table, choice, plan)
    kept = [place for place, one in zip(plan.places, plan.columns, strict=True) if not one.marked]
    plan.telling = [table.columns[place] for place in telling(table, target, kept)]
    return plan


def _all_the_same(table: Table, choice: Choice, plan: Plan) -> Plan:
    """Take numbers that look like the rows' own, where there is nothing else."""
    numbers = [name for why, names in plan.left_out.items() if why == NUMBERS for name in names]
    if not numbers:
        raise _none_left(table, choice, plan)
    return planned(table, replace(choice, columns=numbers))


def _none_left(table: Table, choice: Choice, plan: Plan) -> ValueError:
    reasons = "; ".join(f"{_listed(names)}: {why}" for why, names in plan.left_out.items())
    beside = f" ({reasons})" if reasons else ""
    return ValueError(
        f"{table.name}: no column is left to learn {visible(choice.target)} from{beside}"
    )


OWN = "a word of its own in nearly every row"
NUMBERS, SEVERAL = "numbers the rows", "several units in a column"


def _useless(table: Table, place: int, target: int, *, asked: bool) -> str:
    """Return why nothing can be learnt from a column; "" if something may be."""
    numbers, cells = table.numbers[:, place], table.words.get(place)
    if table.places[table.columns[place]] != place:
        return "has the name of another column"
    if cells is None:
        if table.missing[place] == len(numbers):
            return "has no values"
        if target not in table.words and _same(numbers, table.numbers[:, target]):
            return "is the target itself"
        name = CAMEL.sub("_", table.columns[place])
        return NUMBERS if not asked and NUMBERED.search(name) and _own(numbers) else ""
    if target in table.words and list(cells) == list(table.words[target]):
        return "is the target itself"
    known = [cell for cell in cells if not is_missing(cell)]
    if not known:
        return "has no values"
    if asked or len(known) < FEW_ROWS or len(set(known)) < OWN_WORD * len(known):
        return ""
    if read_as(table, place).kind != "words":
        return ""
    units = amounts.units_of(cells, table.decimal)
    return f"{SEVERAL}: {', '.join(units[:MOST_NAMED])}" if units else OWN


def _same(one: Array, other: Array) -> bool:
    """Return True if two columns are alike; the first rows nearly always tell that they are not."""
    return np.array_equal(one[:64], other[:64], equal_nan=True) and np.array_equal(
        one, other, equal_nan=True
    )


def _own(numbers: FloatArray) -> bool:
    """Return True of whole numbers that are different in all rows."""
    whole = bool((numbers % 1 == 0).all())  # NaN is not
    return whole and len(numbers) > 1 and len(np.unique(numbers)) == len(numbers)


class As(NamedTuple):
    """The kind of a column's cells, and the way they are written."""

    kind: str
    """number, date or words."""
    form: str | None = None
    """How they are written, as `Column.form` has it; None of numbers as they are, and of words."""
    marks: tuple[str, ...] = ()
    """The words among numbers that stand in the place of missing ones."""


def read_as(table: Table, place: int) -> As:
    """Find out what the cells of a column are."""
    cells = table.words.get(place)
    if cells is None:
        return As("date" if place in table.dates else "number")
    form = form_of(cells)
    if form is not None:
        return As("date", form)
    form = amounts.form_of(cells, table.decimal)
    return As("number", form) if form is not None else _among_words(table, place, cells)


def _among_words(table: Table, place: int, cells: Sequence[str]) -> As:
    """Tell numbers with a few words among them from a column of words."""
    numbers = table.numbers[:, place]
    wordy = [c for c, one in zip(cells, numbers.tolist(), strict=True) if isnan(one)]
    counts = Counter(cell for cell in wordy if not is_missing(cell))
    form = None
    some = [cell for cell in cells if not is_missing(cell)]
    some = some[:: -(-len(some) // LOOKS) or 1]
    if 2 * sum(map(amounts.is_one, some)) > len(some):
        odd = {cell for cell in counts if not amounts.is_one(cell)}
        if len(odd) < len(counts):  # else the others are plain numbers
            form = amounts.form_of(["" if c in odd else c for c in cells], table.decimal)
        if form is not None:
            numbers = amounts.numbers_of(cells, form)
            counts = Counter({cell: counts[cell] for cell in odd})
    if not _are_few(counts, numbers[~np.isnan(numbers)]):
        return As("words")
    return As("number", form, tuple(sorted(counts)))


def _are_few(words: Counter[str], numbers: FloatArray) -> bool:
    """Return True if words among numbers are so few that these are what the column is about."""
    if not words or not len(numbers):
        return False
    share = words.total() / (words.total() + len(numbers))
    if len(words) > MARKS:
        return share <= MISTYPED
    most = MOST_MARKED if len(np.unique(numbers)) > MOST_WORDS else MARKED
    return share <= most


def _take(table: Table, place: int, fill: str, plan: Plan) -> None:
    """Add a column to the plan."""
    name, cells = table.columns[place], table.words.get(place) or ()
    kind, form, marks = read_as(table, place)
    if kind == "words":
        column, missing = _of_words(name, cells, fill)
        units = amounts.units_of(cells, table.decimal)
        if units:
            plan.mixed[name] = ", ".join(units[:MOST_NAMED])
    else:
        if marks:
            plan.marks[name] = list(marks)
        if form is not None and kind == "number":
            plan.amounts[name] = next(c for c in cells if not is_missing(c) and c not in marks)
        elif form is not None and is_unclear(cells, form):
            plan.unclear.add(name)
        unit = amounts.unit_of([plan.amounts[name]], form) if name in plan.amounts and form else ""
        column = Column(name, kind, form=form or "", marks=marks, unit=unit)
        numbers = table.numbers[:, place] if form is None else column.values(table, place)[:, 0]
        some = table.missing[place] > 0 or bool(marks)
        missing = int(np.isnan(numbers).sum()) if some else 0
        if not missing:  # of all that is to come, some rows tell enough
            numbers = numbers[:: -(-len(numbers) // SOME)]
        column = replace(
            column, fill=_filling(numbers, fill), marked=missing > 0 and fill != "none"
        )
    if missing:
        plan.filled[name] = missing
    plan.columns.append(column)
    plan.places.append(place)


def _filling(numbers: FloatArray, fill: str) -> float | None:
    """Return what stands in the place of missing numbers."""
    if fill in ("zero", "none"):
        return 0.0 if fill == "zero" else None
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return 0.0
    return float(np.median(known) if fill == "median" else known.mean())


def _of_words(name: str, cells: Sequence[str], fill: str) -> tuple[Column, int]:
    """Return the column of words, the commonest of which get a column of zeros and ones each."""
    counts = Counter(cells)
    missing = sum(counts.pop(word) for word in list(counts) if is_missing(word))
    common = sorted(counts, key=lambda word: (-counts[word], word))
    least = ceil(LEAST_SHARE * len(cells))
    own = [word for word in common[:MOST_WORDS] if counts[word] >= least]
    if len(own) + 1 == len(common):  # one alone is not many together
        own = common
    other = len(own) < len(common)
    without = None
    if len(common) == 2 and not missing and not other:
        without, *own = sorted(common)
    return Column(name, "words", marked=missing > 0 and fill != "none", words=tuple(sorted(own)),
                  other=other, without=without), missing  # fmt: skip


def check_words(table: Table, column: int) -> None:
    """Raise ValueError for the first word in a target of which nearly all are numbers."""
    cells, marks = table.text(column), read_as(table, column).marks
    for row, cell in enumerate(cells):
        if cell in marks:
            raise ValueError(
                f'{table.name}: the target column "{visible(table.columns[column])}" must be '
                f"numbers or classes, but among numbers stands {shown(cell)} in {table.place(row)}"
            )
