"""Runs of Lightning, from the `metrics.csv` of its CSVLogger, and other tables with a step."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from vegrad.runs.run import Run
from vegrad.runs.tags import Tags, number

SOURCE = "table of metrics"
COLUMNS = 10_000
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
    for row in rows:
        step = number(row[at]) if at < len(row) else None
        if step is None:
            continue
        for name, entry in zip(names, row, strict=False):
            value = number(entry) if entry else None
            if value is not None and name.lower() not in STEPS:
                tags.add(name, step, value)
