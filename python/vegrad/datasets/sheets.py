"""The sheets of a workbook, and how large tables become that are small as files.

Of a workbook readers fill what lies between the cells; a .parquet file says a number once.
"""

from __future__ import annotations

import importlib
import re
import zipfile
from html import unescape
from pathlib import Path

BOOK, RELATIONS = "xl/workbook.xml", "xl/_rels/workbook.xml.rels"
SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
PLACE = re.compile(rb'\sr="([A-Z]{0,3})([0-9]{1,7})"')  # of a row or a cell
TAG = re.compile(r"<(?:\w+:)?(sheet|Relationship)\s([^>]*)>")
ATTRIBUTE = re.compile(r"""([\w:]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
PIECE, LONGEST = 1 << 20, 32  # bytes that are read at once; those that a place may have


def unfolded(path: Path) -> int:
    """Return the bytes that a .xlsx file says its parts have; 0 of what is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(part.file_size for part in archive.infolist())
    except zipfile.BadZipFile:
        return 0


def sheet_names(path: Path) -> tuple[str, ...]:
    """Return the names of a .xlsx file's tables in their order; none of what is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(one).decode() for one in (BOOK, RELATIONS)]
    except Exception:  # of damage zipfile has a dozen kinds; whoever reads it says so
        return ()
    sheets, relations = ([_attributes(tag[2]) for tag in TAG.finditer(one)] for one in parts)
    kinds = {one.get("Id"): one.get("Type", "") for one in relations}
    return tuple(
        one["name"]
        for one in sheets
        if "name" in one and kinds.get(one.get("r:id"), "/worksheet").endswith("/worksheet")
    )


def _attributes(text: str) -> dict[str, str]:
    return {name: unescape(a or b) for name, a, b in ATTRIBUTE.findall(text)}


def extent(path: Path) -> tuple[int, int]:
    """Return the rows and columns of a .xlsx file's largest sheet; (0, 0) of what is damaged."""
    rows, columns = 0, 0
    try:
        with zipfile.ZipFile(path) as archive:
            for name in filter(SHEET.fullmatch, archive.namelist()):
                with archive.open(name) as sheet:
                    rest = b""
                    while piece := sheet.read(PIECE):
                        places = PLACE.findall(rest + piece)
                        rows = max(rows, *(int(row) for _, row in places), 0)
                        names = {column for column, _ in places}
                        columns = max(columns, *map(_number, names), 0)
                        rest = piece[-LONGEST:]
    except Exception:  # of damage zipfile has a dozen kinds; whoever reads it says so
        return 0, 0
    return rows, columns


def told_extent(path: Path) -> tuple[int, int]:
    """Return the rows and columns that a .parquet file says it has; (0, 0) where nobody can ask."""
    try:
        found = importlib.import_module("pyarrow.parquet").ParquetFile(path).metadata
        return found.num_rows, found.num_columns
    except ImportError:
        pass
    except Exception:  # of damage, each library has kinds of its own; whoever reads it says so
        return 0, 0
    try:
        polars = importlib.import_module("polars")
        rows = polars.scan_parquet(path).select(polars.len()).collect().item()
        return rows, len(polars.read_parquet_schema(path))
    except Exception:
        return 0, 0


def _number(column: bytes) -> int:
    """Return the number of a column by its letters: A is 1, and AA comes after Z."""
    number = 0
    for letter in column:
        number = 26 * number + letter - ord("A") + 1
    return number
