"""Read .csv and .tsv files: tables as text, whose separator, decimal mark and quotes are found out.

The core reads the cells, several times as fast as NumPy does. What is wrong with a file is said
with the line in which it stands.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vegrad import _core
from vegrad.arrays.shown import some
from vegrad.datasets.table import Table, is_missing

SEPARATORS = ",;\t|"
LOOKED_AT = 100  # lines, for the decimal mark
COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
POINT = re.compile(r"\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*")
THOUSANDS = re.compile(r"\s*[+-]?\d{1,3}(\.\d{3})+\s*")  # that a point may mark
MARKS = (b"\xff\xfe", b"\xfe\xff")  # with which text in UTF-16 begins


def read(path: Path, last: str | None = None) -> Table:
    """Return the table in a file, its column `last` behind the others if there is one.

    Raises:
        ValueError: the file is no table of text, or a line is longer or shorter than the first one;
            it says where.
    """
    data = path.read_bytes()
    try:
        header, start, line, separator = _header(path, data)
        decimal = _decimal(data, start, separator)
        order = sorted(range(len(header)), key=lambda n: header[n] == last)
        place = sorted(range(len(order)), key=order.__getitem__)
        numbers, lines, met, (uneven, there), broken, empty = _core.csv_numbers(
            data, start, separator, decimal, place, line
        )
        if broken:
            raise ValueError(f"{path} is not a .csv file: the quotes in line {broken} do not end")
        if uneven:
            raise ValueError(
                f"{path}: line {uneven} has {there} values, not {len(header)} as the first line"
            )
        wordy = [column for column, (words, *_) in enumerate(met) if words]
        cells = _core.csv_words(data, start, separator, wordy) if wordy else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {_not_utf_8(data)}") from error
    return Table(
        str(path),
        tuple(header[n] for n in order),
        numbers,
        tuple(met[n][1] for n in order),
        {place[n]: column for n, column in zip(wordy, cells, strict=True)},
        lines,
        told=_told(separator, decimal, empty),
        decimal=decimal,
    )


def _header(path: Path, data: bytes) -> tuple[list[str], int, int, str]:
    """Return the names, where the rows begin, the number of that line, and the separator."""
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    if data.startswith(MARKS):
        raise ValueError(
            f"{path} must be text in UTF-8: it is in UTF-16 (saved anew as UTF-8 it can be read)"
        )
    number = 1
    for raw in _lines(data, start):
        if raw.strip():
            break
        start, number = start + len(raw), number + 1
    else:
        raise ValueError(f"{path} is empty")
    separator = max(SEPARATORS, key=_outside_quotes(raw.decode()).count)
    reader = csv.reader(
        (one.decode() for one in _lines(data, start)), delimiter=separator, strict=True
    )
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise ValueError(f"{path} is not a .csv file: {error}") from error
    if all(map(_is_number, names)):
        raise ValueError(f"{path} must begin with a line of names, not with {some(names)}")
    if len(names) > 1 and all(len(name) > 1 and name[0] == name[-1] == "'" for name in names):
        names = [name[1:-1].strip() for name in names]
    start += sum(map(len, islice(_lines(data, start), reader.line_num)))
    return names, start, number + reader.line_num, separator


def _not_utf_8(data: bytes) -> str:
    """Say in which line text is in another encoding, and what that may be."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"line {line} is not (in Windows-1252? saved anew as UTF-8 it can be read)"
    return "it is not"


def _lines(data: bytes, start: int) -> Iterator[bytes]:
    """Yield the lines from a place on, with their ends."""
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _decimal(data: bytes, start: int, separator: str) -> str:
    """Return the decimal mark: a comma if numbers have one, and none has a point."""
    if separator == ",":
        return "."
    lines = [one.decode(errors="replace") for one in islice(_lines(data, start), LOOKED_AT)]
    cells = [cell.strip('" \r\n') for line in lines for cell in line.split(separator)]
    comma = any(map(COMMA.fullmatch, cells))
    point = any(POINT.fullmatch(cell) and not THOUSANDS.fullmatch(cell) for cell in cells)
    return "," if comma and not point else "."


def _told(separator: str, decimal: str, empty: int) -> tuple[str, ...]:
    """Say what was found out of the file's form, where it is not the usual one."""
    names = {";": "semicolons", "\t": "tabs", "|": "bars"}
    said = [f"cells between {names[separator]}"] if separator in names else []
    said += ["decimal commas"] if decimal == "," else []
    lines = [", ".join(said)] if said else []
    return (*lines, *([f"lines without a cell, left out: {empty}"] if empty else []))


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return is_missing(name)
    return True
