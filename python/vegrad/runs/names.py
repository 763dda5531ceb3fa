"""Names and texts from files that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping

from vegrad.arrays.shown import visible
from vegrad.diagnosis.noted import Json

LETTERS = 300  # of a name


def clean(text: object, letters: int = LETTERS) -> str:
    """Return a text that a terminal can show: without control characters, and not too long."""
    return visible(str(text), letters)


def cleaned(value: Json, letters: int = 10 * LETTERS) -> Json:
    """Return JSON types with all of their texts clean."""
    if isinstance(value, Mapping):
        return {clean(name): cleaned(entry, letters) for name, entry in value.items()}
    if isinstance(value, list):
        return [cleaned(entry, letters) for entry in value]
    return clean(value, letters) if isinstance(value, str) else value
