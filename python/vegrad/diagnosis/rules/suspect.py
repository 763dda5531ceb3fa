"""A suspect: parameters that are off together, and the edit that makes them as their like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vegrad.flow.edits import Edit, together
from vegrad.flow.reading import Parameter
from vegrad.flow.wording import DECADE

OFF = 1.0  # decades beyond all that is usual, from which a single parameter is a suspect
TOGETHER = 0.3  # decades within which parameters of one name are off together


@dataclass(frozen=True)
class Suspect:
    """Parameters that are off together, and the edit that makes them as their like."""

    names: tuple[str, ...]
    edit: Edit
    off: float
    """Decades beyond what is usual."""
    cause: str
    rows: tuple[int, int] | None = None


def size_of(one: Parameter) -> float:
    """Return log10 of a parameter's root mean square."""
    return one.rms_log2 / DECADE


def beyond(size: float, guesses: Mapping[str, float]) -> float:
    """Return by how much a size is larger than all guesses, or smaller (negative); else 0."""
    low, high = size - max(guesses.values()), size - min(guesses.values())
    return low if low > 0 else high if high < 0 else 0.0


def pattern(name: str) -> str:
    """Return a name without its numbers, as all of its kind have it."""
    return re.sub(r"\d+", "#", name)


def grouped(suspects: Iterable[Suspect]) -> list[Suspect]:
    """Join suspects of one name but for numbers that are off alike."""
    groups: list[list[Suspect]] = []
    for one in suspects:
        for group in groups:
            first = group[0]
            alike = pattern(one.names[0]) == pattern(first.names[0]) and one.rows == first.rows
            if alike and type(one.edit) is type(first.edit) and abs(one.off - first.off) < TOGETHER:
                group.append(one)
                break
        else:
            groups.append([one])
    return [
        group[0]
        if len(group) == 1
        else replace(
            group[0],
            names=tuple(name for one in group for name in one.names),
            edit=together(*(one.edit for one in group)),
        )
        for group in groups
    ]
