"""What containers of somebody's own classes yield, as a list of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import islice
from typing import TypeVar

from vegrad.arrays.shown import shown, visible

T = TypeVar("T")
MOST = 2**22
"""Entries of what has no length, as in cpp/bindings/buffers.hpp."""


def listed(argument: str, values: Iterable[T]) -> list[T]:
    """Return what an iterator or a container yields.

    Raises:
        TypeError: it goes on for ever, or its keys, values or length are not there.
    """
    named = visible(type(values).__name__)
    try:
        most = len(values) if isinstance(values, Sized) else MOST
        kept = list(islice(values, most + 1))
    except (LookupError, ValueError) as error:
        raise TypeError(
            f"{argument} must have entries that can be read, not be a {named} that raises "
            f"{shown(error)}"
        ) from error
    if len(kept) > most:
        raise TypeError(f"{argument} must have at most {most} entries, but a {named} yields more")
    return kept
