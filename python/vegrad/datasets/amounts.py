"""Numbers as people write them for people: with thousands marked, and a currency or unit beside."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.datasets.table import is_missing

SPACES = " \u00a0\u2009\u202f"
# The mark of the thousands and that of the decimals, likelier ones first.
FORMS = (",.", "'.", " .", ".,", " ,")
CURRENCY = r"[€$£¥₹%]|EUR|USD|GBP|CHF|JPY"
# Units of one kind, by what `meaning` makes of them. A letter that may be a part's number is none.
KINDS = tuple(
    frozenset(text.split())
    for text in (
        "kg g mg µg t lb oz st",
        "m km cm mm µm nm mi yd ft in nmi",
        "m2 km2 cm2 mm2 ft2 in2 sqm sqft ha acre",
        "l ml cl dl gal m3 cm3 ft3 cc",
        "s ms µs ns min h hr hour minute second day week month year yr",
        "°C °F ° °K",
        "W kW kw mW MW hp ps bhp",
        "Wh kWh kwh MWh J kJ MJ cal kcal",
        "km/h kmh mph m/s kmpl mpg",
        "V kV mV",
        "A mA mAh Ah",
        "Hz kHz MHz GHz hz khz mhz ghz",
        "Pa hPa kPa MPa bar psi",
        "B kB KB MB GB TB kb mb gb tb",
        "€ $ £ ¥ ₹ eur usd gbp chf jpy",
        "% ‰",
        "px ppm rpm db dB mp MP dpi ct",
    )
)
CLOSE = frozenset("mglshtWVL°").union(*KINDS) - frozenset("AB")
"""Those that may follow a number without a space."""
WORD = r"[^\W\d_][^\d,;:]{0,23}?(?:(?<=[^\W\d_])\^?[23])?|°[A-Za-z]?"
SAME = str.maketrans({"²": "2", "³": "3", "^": "", "μ": "µ", " ": "", "\u00a0": "", ".": ""})
SHORT = 3  # letters, up to which large and small ones may tell units apart
LOOSE = "l kg km cm mm lb lbs ft gal oz hrs yrs rpm psi mph kwh kmh"
PLAIN = frozenset(LOOSE.split())


def _pattern(form: str) -> re.Pattern[str]:
    thousands = f"[{SPACES}]" if form[0] == " " else re.escape(form[0])
    number = rf"(?:[0-9]{{1,3}}(?:{thousands}[0-9]{{3}})+|[0-9]+)(?:{re.escape(form[1])}[0-9]+)?"
    return re.compile(
        rf"([+-]?)\s*({CURRENCY})?\s*([+-]?)({number})(\s*)({CURRENCY}|{WORD})?", re.IGNORECASE
    )


PATTERNS = {form: _pattern(form) for form in FORMS}


def form_of(cells: Sequence[str], decimal: str = ".") -> str | None:
    """Return the form that all cells have but the missing, with one unit at most; None of no.

    `decimal` is the mark that other numbers of the table have.
    """
    form, units = _read(cells, decimal, 1)
    return form if units else None


def unit_of(cells: Sequence[str], form: str) -> str:
    """Return the unit of numbers of a form, as the first cell has it; "" of plain ones."""
    cell = next(one for one in cells if not is_missing(one))
    found = PATTERNS[form].fullmatch(cell)
    return (found[2] or found[6] or "").strip() if found is not None else ""


def units_of(cells: Sequence[str], decimal: str = ".") -> tuple[str, ...]:
    """Return the units of numbers that have several of a kind, as kg and g; else nothing."""
    form, units = _read(cells, decimal, len(cells))
    named = units.keys() - {""}
    several = named and len(units) > 1 and any(named <= kind for kind in KINDS)
    return tuple(one or "none" for one in units.values()) if form is not None and several else ()


def _read(cells: Sequence[str], decimal: str, most: int) -> tuple[str | None, dict[str, str]]:
    """Return the form of all cells that are not missing, and their units, by what they mean."""
    known = [cell for cell in cells if not is_missing(cell)]
    for form in sorted(FORMS, key=lambda one: one[1] != decimal) if known else ():
        units = dict[str, str]()
        for cell in known:
            found = _match(cell, form)
            if found is None:
                break
            unit = (found[2] or found[6] or "").strip()
            units.setdefault(meaning(unit), unit)
            if len(units) > most:
                break
        else:
            return form, units
    return None, {}


def meaning(unit: str) -> str:
    """Return what different spellings of a unit have in common."""
    text = unit.strip().translate(SAME)
    small = text.casefold()
    if len(text) > SHORT or small in PLAIN or re.fullmatch(CURRENCY, text, re.IGNORECASE):
        text = small
    return text[:-1] if len(text) >= SHORT and text.endswith("s") else text


def is_one(cell: str) -> bool:
    """Return True of an amount in any of the forms."""
    return any(_match(cell, form) is not None for form in FORMS)


def numbers_of(cells: Sequence[str], form: str, unit: str = "") -> FloatArray:
    """Return the numbers, (B,): NaN where a cell is missing, or has another form or unit.

    No unit stands for any, as in files before 0.2; cells without one are taken as they are.
    """
    return np.array([_number(cell, form, meaning(unit)) for cell in cells], np.float64)


def _number(cell: str, form: str, unit: str) -> float:
    found = None if is_missing(cell) else _match(cell, form)
    if found is None or (unit and meaning(found[2] or found[6] or "") not in ("", unit)):
        return np.nan
    digits = found[4].translate(dict.fromkeys(map(ord, SPACES + form[0]))).replace(form[1], ".")
    return float(found[1] + found[3] + digits)


def _match(cell: str, form: str) -> re.Match[str] | None:
    """Return the parts of an amount, None of what is none."""
    found = PATTERNS[form].fullmatch(cell)
    if found is None or (found[1] and found[3]) or (found[2] and found[6]):
        return None
    unit = (found[6] or "").strip()
    if not unit or found[5] or re.fullmatch(CURRENCY, unit, re.IGNORECASE):
        return found
    return found if meaning(unit) in CLOSE else None
