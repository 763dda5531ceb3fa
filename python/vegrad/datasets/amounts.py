"""Numbers as people write them for people: with thousands marked, and a currency or % beside."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.datasets.table import is_missing

SPACES = " \u00a0\u2009\u202f"
# The mark of the thousands and that of the decimals, likelier ones first.
FORMS = (",.", "'.", " .", ".,", " ,")
UNIT = r"[€$£¥₹%]|EUR|USD|GBP|CHF|JPY"


def _pattern(form: str) -> re.Pattern[str]:
    thousands = f"[{SPACES}]" if form[0] == " " else re.escape(form[0])
    number = rf"(?:\d{{1,3}}(?:{thousands}\d{{3}})+|\d+)(?:{re.escape(form[1])}\d+)?"
    return re.compile(
        rf"([+-]?)\s*({UNIT})?\s*([+-]?)({number})\s*({UNIT})?", re.ASCII | re.IGNORECASE
    )


PATTERNS = {form: _pattern(form) for form in FORMS}


def form_of(cells: Sequence[str], decimal: str = ".") -> str | None:
    """Return the form that all cells have but the missing, with one unit at most; None of no.

    `decimal` is the mark that other numbers of the table have.
    """
    known = [cell for cell in cells if not is_missing(cell)]
    if not known:
        return None
    for form in sorted(FORMS, key=lambda one: one[1] != decimal):
        units = set[str]()
        for cell in known:
            found = PATTERNS[form].fullmatch(cell)
            if found is None or (found[1] and found[3]) or (found[2] and found[5]):
                break
            units.add((found[2] or found[5] or "").upper())
            if len(units) > 1:
                break
        else:
            return form
    return None


def is_one(cell: str) -> bool:
    """Return True of an amount in any of the forms."""
    return any(PATTERNS[form].fullmatch(cell) for form in FORMS)


def numbers_of(cells: Sequence[str], form: str) -> FloatArray:
    """Return the numbers, (B,): NaN where a cell is missing or has another form."""
    return np.array([_number(cell, form) for cell in cells], np.float64)


def _number(cell: str, form: str) -> float:
    found = None if is_missing(cell) else PATTERNS[form].fullmatch(cell)
    if found is None:
        return np.nan
    digits = found[4].translate(dict.fromkeys(map(ord, SPACES + form[0]))).replace(form[1], ".")
    return float(found[1] + found[3] + digits)
