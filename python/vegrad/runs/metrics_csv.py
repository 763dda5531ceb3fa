"""Runs of Lightning, from the `metrics.csv` of its CSVLogger, and other tables with a step."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator

from vegrad.runs.run import Run
from vegrad.runs.tags import Tags, number

SOURCE = "table of metrics"
COLUMNS = 10_000
NUMBERS = re.compile(r"(\d{1,9})")
STEPS = ("step", "global_step", "iteration", "iter", "epoch")
"""The columns that may have the step's number, the first that is there first."""


def is_table(first: str) -> bool:
    """Return True if a line can be the head of such a table."""
    return "," in first and any(name.strip(' "\r\n').lower() in STEPS for name in first.split(","))


def of_metrics(lines: Iterable[str]) -> Run:
    """Return the run of a table with a head; entries that are empty or no numbers are passed over.

    Raises:
        ValueError: there is no column of steps, or none with a known name.
    """
    tags = Tags()
    try:
        _take(csv.reader(lines, strict=False), tags)
    except csv.Error as error:
        raise ValueError(f"it is no table: {error}") from error
    return tags.run(SOURCE)


def _take(rows: Iterator[list[str]], tags: Tags) -> None:
    names = [name.strip() for name in next(rows, [])]
    if len(names) > COLUMNS:
        raise ValueError(f"it must have {COLUMNS} columns at most, not {len(names)}")
    lower = [name.lower() for name in names]
    at = next((lower.index(name) for name in STEPS if name in lower), None)
    if at is None:
        raise ValueError(f"it must have a column of one of the names {', '.join(STEPS)}")
    places = [place for place, name in enumerate(lower) if name not in STEPS]
    if names == sorted(names):  # as Lightning writes them: 10 before 2
        places.sort(key=lambda place: _numbered(names[place]))
    for row in _whole(rows, len(names)):
        step = number(row[at]) if at < len(row) else None
        if step is None:
            continue
        for place in places:
            value = number(row[place]) if place < len(row) and row[place] else None
            if value is not None:
                tags.add(names[place], step, value)


def _whole(rows: Iterator[list[str]], columns: int) -> Iterator[list[str]]:
    """Leave out a last row that is cut off, as of a file that is being written."""
    held = next(rows, None)
    for row in rows:
        if held is not None:
            yield held
        held = row
    if held is not None and len(held) >= columns:
        yield held


def _numbered(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers within names by their size."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in NUMBERS.split(name)]
