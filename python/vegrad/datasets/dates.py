"""Dates in a column of words, as days since 1970."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.datasets.table import is_missing

# Day before month, as most of the world writes it, unless a row has no such day. %B is the English
# name of a month, in full or its first letters, whatever language the machine speaks.
FORMS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M")
NAMED = ("%d %B %Y", "%B %d %Y", "%d %B %Y %H:%M", "%B %d %Y %H:%M", "%Y %B %d", "%B %Y")
MONTH = re.compile(
    "(jan(?:uary)?)|(feb(?:ruary)?)|(mar(?:ch)?)|(apr(?:il)?)|(may)|(june?)|(july?)|(aug(?:ust)?)|"
    "(sep(?:t(?:ember)?)?)|(oct(?:ober)?)|(nov(?:ember)?)|(dec(?:ember)?)",
    re.IGNORECASE,
)
DAY_NAME = re.compile(
    "(?:mon|tue(?:s)?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?[.,]? ", re.IGNORECASE
)
ORDINAL = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b", re.IGNORECASE)
BETWEEN = re.compile(r"(?<=[0-9a-z])(?:[-/]|[.,] ?| )(?=[0-9a-z])", re.IGNORECASE)
DAY = 86400.0
SHORTEST, LONGEST = 8, 35  # characters of a date
BEGUN = datetime(1970, 1, 1, tzinfo=UTC)


def days_of(cells: Sequence[str], form: str) -> FloatArray:
    """Return days since 1970, (B,): NaN where a cell is missing or no date of this form."""
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        day = None if is_missing(cell) else _day(cell, form)
        if day is not None:
            found[row] = day
    return found


def form_of(cells: Sequence[str]) -> str | None:
    """Return the form of dates that all cells have but the missing; "" of ISO 8601, None of no."""
    known = [cell for cell in cells if not is_missing(cell)]
    if not known or not all(SHORTEST <= len(cell) <= LONGEST for cell in known[:1]):
        return None
    for form in ("", *FORMS, *NAMED):
        if all(_day(cell, form) is not None for cell in known):
            return form
    return None


def is_unclear(cells: Sequence[str], form: str) -> bool:
    """Return True if no cell tells whether the day or the month stands first."""
    known = [cell for cell in cells if not is_missing(cell)]
    return form == FORMS[1] and all(_day(cell, FORMS[2]) is not None for cell in known)


def example(form: str) -> str:
    """Write the last day of a year in a form."""
    last = datetime(2024, 12, 31, tzinfo=UTC)
    return last.strftime(form.replace("%B", "December") or "%Y-%m-%d")


def _day(cell: str, form: str) -> float | None:
    if "%B" in form:
        cell = cell[day.end() :] if (day := DAY_NAME.match(cell)) is not None else cell
        found = MONTH.search(cell)
        if found is None or len(cell) > LONGEST:
            return None
        number = next(n for n, name in enumerate(found.groups(), 1) if name)
        numbers = ORDINAL.sub("", f"{cell[: found.start()]}M{number}{cell[found.end() :]}")
        cell, form = BETWEEN.sub(" ", numbers), form.replace("%B", "M%m")
    try:
        when = datetime.strptime(cell, form) if form else datetime.fromisoformat(cell)
    except ValueError:
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return (when - BEGUN).total_seconds() / DAY
