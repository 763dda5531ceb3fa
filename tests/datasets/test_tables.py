"""Tables as people have them: what is made of words, dates, missing values and useless columns."""

import json
import sys
import zipfile
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from vegrad.datasets import Dataset, Preparation, load
from vegrad.datasets.csv_files import read
from vegrad.datasets.dates import form_of

ROWS = 60
WORDS = ["a"] * 30 + ["b"] * 20 + ["c"] * 10


def written(folder: Path, name: str = "t.csv", **columns: Any) -> Path:
    """Write columns of the same length as a table; the last is named y."""
    columns.setdefault("y", [n % 7 + n / 100 for n in range(ROWS)])
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def own(n: int) -> float:
    return (n * 37 % ROWS) / 7


def made(folder: Path, **columns: Any) -> Dataset:
    return load(written(folder, x=[own(n) for n in range(ROWS)], **columns), "y")


def unscaled(data: Dataset, name: str) -> np.ndarray:
    """Return a column as it was before it was standardized."""
    assert data.units is not None
    place = data.columns.index(name)
    return np.asarray(data.x[:, place] * data.units[1][place] + data.units[0][place])


def test_words_become_zeros_and_ones(tmp_path: Path) -> None:
    data = made(tmp_path, w=WORDS)
    assert data.columns == ("x", "w=a", "w=b", "w=c")
    for word in "abc":
        wanted = np.array(WORDS) == word
        np.testing.assert_allclose(unscaled(data, f"w={word}"), wanted, atol=1e-12)
    assert data.told == ("words as zeros and ones: w (3)",)


def test_two_words_take_one_column(tmp_path: Path) -> None:
    assert made(tmp_path, w=["yes", "no"] * 30).columns == ("x", "w=yes")


def test_rare_words_go_together(tmp_path: Path) -> None:
    many = [f"w{n % 25}" for n in range(ROWS)]
    data = made(tmp_path, w=many)
    assert len(data.columns) == 22
    rest = unscaled(data, "w=(other)")
    shown = {name.removeprefix("w=") for name in data.columns[1:-1]}
    np.testing.assert_allclose(rest, [word not in shown for word in many], atol=1e-12)
    assert data.told == ("words as zeros and ones: w (21, rare ones together)",)


FORMS = ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y-%m-%dT%H:%M:%S+00:00")
NAMED = (
    "%d %B %Y",
    '"%B %d, %Y"',
    '"%b. %d, %Y"',
    "%d-%b-%Y",
    "%dth %B %Y",
    "%d %B %Y 00:00",
    '"%A, %d %B %Y"',
)


@pytest.mark.parametrize("form", [*FORMS, *NAMED])
def test_dates_become_days(tmp_path: Path, form: str) -> None:
    first = date(2023, 12, 20)
    days = [(first + timedelta(n)).strftime(form) for n in range(ROWS)]
    data = made(tmp_path, d=days)
    since = (first - date(1970, 1, 1)).days
    np.testing.assert_allclose(unscaled(data, "d"), since + np.arange(ROWS), atol=1e-8)
    assert data.told == ("dates as days: d",)


def test_dates_in_words_of_new_rows(tmp_path: Path) -> None:
    days = [(date(2023, 12, 20) + timedelta(n)).strftime("%B %d %Y") for n in range(ROWS)]
    preparation = made(tmp_path, d=days).preparation
    assert preparation is not None
    again = Preparation.from_dict(json.loads(json.dumps(preparation.to_dict())))
    new = tmp_path / "new.csv"
    new.write_text('x,d\n1,"Mar 4, 2024"\n2,MARCH 4 2024\n', encoding="utf-8")
    x = again.inputs(read(new))
    day = (date(2024, 3, 4) - date(1970, 1, 1)).days
    assert x[:, 1] * again.scale[1] + again.shift[1] == pytest.approx([day, day])
    new.write_text("x,d\n1,4 March 2024\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"written like December 31 2024\): must be dates"):
        again.inputs(read(new))


@pytest.mark.parametrize("word", ["3 Mary 2021", "31 Feb 2020", "12-Jan-20", "5 marzo 2021"])
def test_words_that_are_no_dates(word: str) -> None:
    assert form_of([word]) is None


@pytest.mark.parametrize(("fill", "value"), [("median", 3.0), ("mean", 4.0), ("zero", 0.0)])
def test_missing_numbers_are_filled_and_marked(tmp_path: Path, fill: str, value: float) -> None:
    numbers = ["", 1, 3, 8] * 15
    path = written(tmp_path, x=numbers)
    data = load(path, "y", fill=fill)
    assert data.columns == ("x", "x is missing")
    wanted = [value if one == "" else one for one in numbers]
    np.testing.assert_allclose(unscaled(data, "x"), wanted, atol=1e-12)
    np.testing.assert_allclose(unscaled(data, "x is missing"), [1, 0, 0, 0] * 15, atol=1e-12)
    assert data.told == (f"missing values filled ({fill}) and marked: x (15)",)


def test_words_that_mark_missing_numbers(tmp_path: Path) -> None:
    data = made(tmp_path, n=["?" if n == 7 else n / 3 for n in range(ROWS)])
    assert data.columns == ("x", "n", "n is missing")
    assert data.told[0] == "taken for missing in n: '?'"


MIXED: list[tuple[dict[int, str], str]] = [  # what stands in every so many of 60 rows
    ({7: "-", 9: "unknown"}, "'-', 'unknown'"),
    ({6: "n/a", 10: "-"}, "'-'"),
    ({59: "12o", 31: "ca. 80", 43: ">200"}, "'12o', '>200', 'ca. 80'"),
]


@pytest.mark.parametrize(("words", "told"), MIXED)
@pytest.mark.parametrize("form", ["{:.2f}", '"€ {:,.2f}"'])
def test_a_column_of_which_most_are_numbers_is_one(
    tmp_path: Path, words: dict[int, str], told: str, form: str
) -> None:
    cells = [form.format(100 * own(n)) for n in range(ROWS)]
    for every, word in words.items():
        cells[every - 1 :: every] = [word] * len(cells[every - 1 :: every])
    data = made(tmp_path, n=cells)
    assert data.columns == ("x", "n", "n is missing")
    assert f"taken for missing in n: {told}" in data.told
    missing = [not one.strip('"€ ')[0].isdigit() or one == "12o" for one in cells]
    np.testing.assert_allclose(unscaled(data, "n is missing"), missing, atol=1e-12)
    values = 100 * np.array([own(n) for n in range(ROWS)])
    there = ~np.array(missing)
    np.testing.assert_allclose(unscaled(data, "n")[there], values[there], atol=0.01)


@pytest.mark.parametrize(
    "cells",
    [
        [["1", "2", "3", "A", "B"][n % 5] for n in range(ROWS)],  # grades
        [f"{n}" if n % 5 else f"V{n}" for n in range(ROWS)],  # codes
        [f"{n}" if n % 3 else "none" for n in range(ROWS)],
    ],
)
def test_numbers_among_many_words_are_words(tmp_path: Path, cells: list[str]) -> None:
    data = made(tmp_path, n=cells, m=["u", "v", "w"] * 20)
    assert "n" not in data.columns


def test_thousands_among_plain_numbers_are_no_words_that_mark_missing_ones(tmp_path: Path) -> None:
    cells = [str(own(n)) for n in range(ROWS)]
    cells[3], cells[4], cells[5] = '"1,200"', '"1,350.5"', "-"
    data = made(tmp_path, n=cells)
    assert data.told[:2] == (
        "numbers with marks or units: n ('0.0')",
        "taken for missing in n: '-'",
    )
    np.testing.assert_allclose(unscaled(data, "n")[3:5], [1200, 1350.5])


def test_words_that_mark_missing_numbers_do_so_in_other_rows(tmp_path: Path) -> None:
    data = made(tmp_path, n=["?" if n == 7 else n / 3 for n in range(ROWS)])
    assert data.preparation is not None
    again = Preparation.from_dict(json.loads(json.dumps(data.preparation.to_dict())))
    new = tmp_path / "new.csv"
    new.write_text("x,n\n1,?\n2,\n", encoding="utf-8")
    table = read(new)
    x = again.inputs(table)
    assert (x[0, 1:] == x[1, 1:]).all()
    assert again.told(table) == ('cells without a value, treated as in training: "n" (2)',)
    new.write_text("x,n\n1,?\n2,12o\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r'line 3, column "n": must be numbers, not .12o'):
        again.inputs(read(new))


def test_a_word_in_a_target_of_numbers_is_shown(tmp_path: Path) -> None:
    y = [f"{own(n)}" for n in range(ROWS)]
    y[8] = "12o"
    with pytest.raises(ValueError, match=r'column "y" must be numbers .* .12o. in line 10'):
        made(tmp_path, y=y)


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "numbers": ({"id": range(100, 160)}, "id (numbers the rows)"),
    "camel": ({"PassengerId": range(ROWS)}, "PassengerId (numbers the rows)"),
    "unnamed": ({"": range(ROWS)}, '"" (numbers the rows)'),
    "words": ({"w": [f"n{n}" for n in range(ROWS)]}, "w (a word of its own in nearly every row)"),
    "empty": ({"w": [""] * ROWS}, "w (has no values)"),
    "target": ({"z": [n % 7 + n / 100 for n in range(ROWS)]}, "z (is the target itself)"),
}


@pytest.mark.parametrize(("columns", "told"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_tells_nothing_is_left_out(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    data = made(tmp_path, **columns)
    assert data.columns == ("x",)
    assert data.told == (f"left out: {told}",)


def test_a_column_named_like_a_number_but_with_repeats_stays(tmp_path: Path) -> None:
    assert made(tmp_path, shop_id=[n % 5 for n in range(ROWS)]).columns == ("x", "shop_id")


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    path = written(tmp_path, id=range(ROWS), x=[own(n) for n in range(ROWS)], w=WORDS)
    assert load(path, "y", columns=["id", "x"]).columns == ("id", "x")
    dropped = load(path, "y", drop=["w"])
    assert dropped.columns == ("x",)
    assert dropped.told == ("left out: id (numbers the rows); w (as asked)",)


def test_numbers_of_rows_are_taken_where_there_is_nothing_else(tmp_path: Path) -> None:
    assert load(written(tmp_path, id=range(ROWS)), "y").columns == ("id",)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"drop": ["a", "b"], "columns": ["x", "c"]}, 'columns "a", "b", "c" are not in'),
    "near": ({"drop": ["wrd"]}, r'column "wrd" is not in .* \(did you mean word\?\)'),
    "target": ({"drop": ["y"]}, '"y" is the target'),
    "fill": ({"fill": "max"}, "fill must be median, mean, zero, none, not 'max'"),
    "nothing": ({"drop": ["x", "word"]}, "no column is left to learn y from"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_wrong_choices(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = written(tmp_path, x=range(ROWS), word=WORDS)
    with pytest.raises(ValueError, match=message):
        load(path, "y", **options)


def test_a_target_without_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='target column "y" has no values'):
        load(written(tmp_path, x=range(ROWS), y=["NA"] * ROWS), "y")


def test_only_the_target_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column is left .* \(x: is the target itself\)"):
        load(written(tmp_path, x=range(ROWS), y=range(ROWS)), "y")


def mixed(folder: Path) -> Path:
    return written(
        folder,
        id=range(ROWS),
        w=WORDS,
        d=[date(2024, 1, 1) + timedelta(n) for n in range(ROWS)],
        n=["" if n % 9 == 0 else own(n) for n in range(ROWS)],
        same=[3] * ROWS,
    )


def test_the_same_is_done_to_other_rows(tmp_path: Path) -> None:
    data = load(mixed(tmp_path), "y")
    assert data.preparation is not None
    state = json.loads(json.dumps(data.preparation.to_dict()))
    again = Preparation.from_dict(state)
    table = read(mixed(tmp_path))
    np.testing.assert_allclose(again.inputs(table), data.x, atol=1e-9)
    text = "same,n,w,d\n3,,zebra,\n4,1.5,,2024-03-01\n"
    (tmp_path / "new.csv").write_text(text, encoding="utf-8")
    x = again.inputs(read(tmp_path / "new.csv"))
    assert data.units is not None
    back = dict(zip(again.made, (x * data.units[1] + data.units[0]).T, strict=True))
    np.testing.assert_allclose(back["w=a"], [0, 0], atol=1e-12)
    np.testing.assert_allclose(back["n is missing"], [1, 0], atol=1e-12)
    assert back["n"][1] == pytest.approx(1.5)
    assert back["d"][1] == pytest.approx((date(2024, 3, 1) - date(1970, 1, 1)).days)
    assert (x[:, again.made.index("same")] == 0).all()


def test_all_columns_that_lack_are_named_at_once(tmp_path: Path) -> None:
    preparation = load(mixed(tmp_path), "y").preparation
    assert preparation is not None
    (tmp_path / "new.csv").write_text("n,same\n1,x\n", encoding="utf-8")
    with pytest.raises(ValueError, match='must have the columns "w", "d" that the network has'):
        preparation.inputs(read(tmp_path / "new.csv"))
    (tmp_path / "new.csv").write_text("n,same,w,d\n1,x,a,\nq,2,b,\n", encoding="utf-8")
    with pytest.raises(ValueError, match='line 3, column "n"; line 2, column "same": must be num'):
        preparation.inputs(read(tmp_path / "new.csv"))


# Frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_are_tables(tmp_path: Path, library: str) -> None:
    frames = pytest.importorskip(library)
    wanted = load(mixed(tmp_path), "y")
    frame = frames.read_csv(mixed(tmp_path))
    found = load(frame, "y")
    assert (found.columns, found.told) == (wanted.columns, wanted.told)
    np.testing.assert_allclose(found.x, wanted.x, atol=1e-12)
    with pytest.raises(ValueError, match='column "z" is not in the frame'):
        load(frame, "z")


def test_dates_of_a_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(mixed(tmp_path), parse_dates=["d"])
    frame.loc[3, "d"] = pandas.NaT
    data = load(frame, "y")
    assert "d is missing" in data.columns
    assert data.told[2] == "dates as days: d"


@pytest.mark.parametrize("ending", ["parquet", "xlsx"])
def test_files_of_other_libraries(tmp_path: Path, ending: str) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow" if ending == "parquet" else "openpyxl")
    frame = pandas.read_csv(mixed(tmp_path))
    path = tmp_path / f"t.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_excel(path, index=False)
    wanted, found = load(mixed(tmp_path), "y"), load(path, "y")
    assert found.columns == wanted.columns
    np.testing.assert_allclose(found.x, wanted.x, atol=1e-9)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load(path, "y")


def test_no_library_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match="needs pandas or polars"):
        load(tmp_path / "t.parquet", "y")


def test_a_library_without_what_it_reads_files_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(path: Path) -> None:
        raise ImportError("missing optional dependency")

    for library in ("pandas", "polars"):
        module = ModuleType(library)
        module.read_excel = module.read_parquet = reading  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, library, module)
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK")
    told = r"needs fastexcel \(for polars\) or openpyxl \(for pandas\): pip install openpyxl$"
    with pytest.raises(ImportError, match=told):
        load(path, "y")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs fastexcel \(for polars\): pip"):
        load(path, "y")
    monkeypatch.setitem(sys.modules, "pandas", sys.modules["polars"])
    monkeypatch.setitem(sys.modules, "polars", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"needs pyarrow \(for pandas\): pip install pyarrow$"):
        load(tmp_path / "t.parquet", "y")


def test_a_source_that_is_none() -> None:
    with pytest.raises(TypeError, match="source must be a name, a path or a frame, not list"):
        load([[1.0, 2.0]], "y")


SHEETS = ('2019 & "old"', "Prices", "Chart", "Notes")


def book(path: Path, names: tuple[str, ...] = SHEETS) -> Path:
    """Write the parts of a workbook that name its sheets, one of which is a picture."""
    sheets = "".join(
        f"<sheet name={quoteattr(name)} sheetId='{n}' r:id='r{n}'/>" for n, name in enumerate(names)
    )
    kinds = ("chart" if name == "Chart" else "work" for name in names)
    relations = "".join(
        f'<Relationship Target="sheet{n}.xml" Type="http://x/{kind}sheet" Id="r{n}"/>'
        for n, kind in enumerate(kinds)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", f"<workbook><sheets>{sheets}</sheets></workbook>")
        archive.writestr(
            "xl/_rels/workbook.xml.rels", f"<Relationships>{relations}</Relationships>"
        )
    return path


def test_the_sheet_of_a_workbook_is_told_and_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    asked = list[object]()

    def read_excel(path: Path, sheet_name: str | None = None) -> object:
        asked.append(sheet_name)
        return pandas.DataFrame({"x": np.arange(9.0), "y": np.arange(9.0) ** 0.5})

    monkeypatch.setitem(sys.modules, "polars", SimpleNamespace(read_excel=read_excel))
    path = book(tmp_path / "t.xlsx")
    told = load(path, "y").told
    assert told == ("sheet: '2019 & \"old\"'; not read: 'Prices', 'Notes'",)
    assert load(path, "y", sheet="Notes").told[0].startswith("sheet: 'Notes'; not read: '2019")
    assert asked == [None, "Notes"]
    for wrong in ("prices", "Chart"):
        with pytest.raises(ValueError, match=f"has no sheet '{wrong}', but '2019 & \"old\"', 'Pri"):
            load(path, "y", sheet=wrong)
    assert not load(book(tmp_path / "one.xlsx", SHEETS[:1]), "y").told
    for other in (written(tmp_path, x=range(ROWS)), pandas.DataFrame({"x": [1], "y": [2]}), "wine"):
        with pytest.raises(ValueError, match=r"a sheet goes with a \.xlsx file"):
            load(other, "y", sheet="Notes")


@pytest.mark.parametrize("library", ["openpyxl", "fastexcel"])
def test_a_sheet_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("openpyxl")
    pytest.importorskip(library)
    if library == "openpyxl":
        monkeypatch.setitem(sys.modules, "polars", None)
    frame = pandas.DataFrame({"x": np.arange(9.0), "y": np.arange(9.0) ** 0.5})
    path = tmp_path / "t.xlsx"
    with pandas.ExcelWriter(path) as writer:
        for n, name in enumerate(("one & two", "other")):
            frame.head(9 - n).to_excel(writer, sheet_name=name, index=False)
    assert len(load(path, "y").x) == 9
    assert len(load(path, "y", sheet="other").x) == 8
    assert load(path, "y").told == ("sheet: 'one & two'; not read: 'other'",)
