"""Tables as text: the core's reading beside Python's own csv and float()."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vegrad.datasets import csv_files
from vegrad.datasets.table import Table, is_missing

NUMBERS = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.from_regex(r"[+-]?[0-9]{0,25}\.?[0-9]{0,25}([eE][+-]?[0-9]{1,4})?", fullmatch=True),
)
CELLS = st.one_of(
    NUMBERS,
    st.sampled_from(
        ["", " ", "NA", "n/a", "NaN", "null", "inf", "-Infinity", "1e", ".", "1 2", "x"]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=6),
)


def number(cell: str) -> float:
    """Return what `float` makes of a cell, NaN if that is nothing."""
    try:
        return math.nan if "_" in cell or is_missing(cell.strip()) else float(cell)
    except ValueError:
        return math.nan


def written(rows: Sequence[Sequence[str]], separator: str = ",", ends: str = "\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=ends).writerows(rows)
    return text.getvalue()


def read(folder: Path, text: str, last: str | None = None) -> Table:
    path = folder / "table.csv"
    path.write_bytes(text.encode())
    return csv_files.read(path, last)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=8),
    separator=st.sampled_from(",;\t|"),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_cells_are_what_python_reads(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    separator: str,
    ends: str,
) -> None:
    """To the bit, whatever stands beside them."""
    folder = tmp_path_factory.mktemp("csv")
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    table = read(folder, written([["a", "b", "c"], *rows], separator, ends), "b")
    assert table.columns == ("a", "c", "b")
    assert len(table) == len(kept)
    wanted = np.array([[number(row[n]) for n in (0, 2, 1)] for row in kept]).reshape(-1, 3)
    if "decimal commas" not in "".join(table.told):
        np.testing.assert_array_equal(table.numbers.view(np.int64) >> 63 & 1 == 1,
                                      np.signbit(table.numbers))  # fmt: skip
        np.testing.assert_array_equal(table.numbers, wanted)
    for place, column in enumerate((0, 2, 1)):
        if place in table.words:
            assert list(table.words[place]) == [row[column].strip(" \t") for row in kept]


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1,5", 1.5), ("-0,25e3", -250.0), ("7", 7.0), (",5", 0.5), ("1,5,5", math.nan)],
)
def test_decimal_commas_are_found_out(tmp_path: Path, cell: str, value: float) -> None:
    table = read(tmp_path, f"a;y\n{cell};1\n2,25;2\n")
    np.testing.assert_array_equal(table.numbers, [[value, 1.0], [2.25, 2.0]])
    assert table.told == ("cells between semicolons, decimal commas",)


def test_points_stay_points(tmp_path: Path) -> None:
    table = read(tmp_path, "a;b\n1.5;x,5\n2.5;1,5\n")
    assert table.numbers[:, 0].tolist() == [1.5, 2.5]
    assert table.words[1] == ["x,5", "1,5"]


def test_lines_are_counted_through_quotes_and_blanks(tmp_path: Path) -> None:
    table = read(tmp_path, '\n\na,b\n1,"two\nlines"\n,\n\n2,"say ""x"", ok"\n')
    assert table.lines is not None
    assert table.lines.tolist() == [4, 8]
    assert table.words[1] == ["two\nlines", 'say "x", ok']
    assert table.numbers[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,"x" y\n', "the quotes in line 2 do not end"),
        ('a,b\n1,2\n3,"x\n4,5\n', "the quotes in line 3 do not end"),
        ("a,b\n1,2\n3\n", "line 3 has 1 values, not 2 as the first line"),
        ("a,b\n1,2,3\n", "line 2 has 3 values, not 2 as the first line"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-16")
    with pytest.raises(ValueError, match="must be text in UTF-8: it is in UTF-16"):
        csv_files.read(tmp_path / "t.csv")
