"""Numbers as people write them, targets that are no classes, columns that tell the target."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vegrad.datasets import Preparation, amounts, load
from vegrad.datasets.csv_files import read

from tests.datasets.test_tables import ROWS, made, own, unscaled, written

MARKS = {",.": (",", "."), ".,": (".", ","), "'.": ("'", "."), " .": (" ", "."), " ,": (" ", ",")}


@given(
    values=st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=6),
    form=st.sampled_from(list(MARKS)),
    unit=st.sampled_from(["", "€ {}", "{} %", "{}$", "CHF {}", "{} eur"]),
)
def test_what_is_written_is_read(values: list[int], form: str, unit: str) -> None:
    thousands, decimal = MARKS[form]
    cells = []
    for value in values:
        text = f"{abs(value) / 100:,.2f}".translate({44: thousands, 46: decimal})
        cells.append("-" * (value < 0) + (unit or "{}").format(text))
    found = amounts.form_of(cells, decimal)
    assert found is not None
    np.testing.assert_allclose(amounts.numbers_of(cells, found), np.array(values) / 100)


@pytest.mark.parametrize(
    "cells",
    [["1,23,456"], ["€ 5 $"], ["€ 5", "5 $"], ["a 5"], ["12:30"], ["1.2.3"], ["--5"], ["", "NA"]],
)
def test_what_is_no_number(cells: list[str]) -> None:
    assert amounts.form_of(cells) is None


def test_marks_that_may_be_either_follow_the_table() -> None:
    assert amounts.numbers_of(["1,234"], amounts.form_of(["1,234"]) or "") == [1234.0]
    assert amounts.numbers_of(["1,234"], amounts.form_of(["1,234"], ",") or "") == [1.234]
    assert math.isnan(amounts.numbers_of(["x"], ",.")[0])


def test_columns_of_amounts_are_numbers_also_of_other_rows(tmp_path: Path) -> None:
    prices = [f'"€ {1000 * n + 0.5:,.2f}"' for n in range(ROWS)]
    prices[5] = ""
    data = made(tmp_path, price=prices)
    assert data.columns == ("x", "price", "price is missing")
    assert "numbers with marks or units: price ('€ 0.50')" in data.told
    np.testing.assert_allclose(unscaled(data, "price")[6:], 1000.0 * np.arange(6, ROWS) + 0.5)
    assert data.preparation is not None
    again = Preparation.from_dict(json.loads(json.dumps(data.preparation.to_dict())))
    (tmp_path / "new.csv").write_text('x,price\n1,"€ 7,000.50"\n2,7000.5\n', encoding="utf-8")
    x = again.inputs(read(tmp_path / "new.csv"))
    assert x[0, 1] == pytest.approx(x[1, 1]) == pytest.approx(data.x[7, 1])
    (tmp_path / "new.csv").write_text('x,price\n1,"€ 7,000.50"\n2,dear\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r'line 3, column "price" \(in €\): must be numbers'):
        again.inputs(read(tmp_path / "new.csv"))


ONE_UNIT = {
    "m²": ["134 m²", "56m2", "1,200.5 m^2"],
    "kg": ["12.5 kg", "3KG", "", "4 kg"],
    "%": ["35 %", "5%", "0.5 %"],
    "day": ["1 day", "20 days"],
    "°C": ["-5 °C", "21°C"],
    "bedroom": ["1 bedroom", "3 bedrooms"],
    "L": ["0.5 L", "2 l", "3l"],
}


@pytest.mark.parametrize("unit", ONE_UNIT)
def test_numbers_of_one_unit(unit: str) -> None:
    cells = ONE_UNIT[unit]
    form = amounts.form_of(cells)
    assert form is not None
    found = amounts.unit_of(cells, form)
    assert amounts.meaning(found) == amounts.meaning(unit)
    numbers = amounts.numbers_of(cells, form, found)
    assert [bool(one) for one in cells] == np.isfinite(numbers).tolist()
    assert np.isnan(amounts.numbers_of(["5 stones"], form, found)).all()


@pytest.mark.parametrize(
    ("cells", "units"),
    [
        (["12 kg", "300 g"], ("kg", "g")),
        (["12 kg", "300"], ("kg", "none")),
        (["3 MW", "5 mW"], ("MW", "mW")),
        (["€ 5", "$ 6"], ("€", "$")),
        (["12A", "3C"], ()),  # seats
        (["1 low", "2 high"], ()),
        (["5 kg", "6 m"], ()),
        (["1st", "2nd"], ()),
    ],
)
def test_several_units_are_no_numbers(cells: list[str], units: tuple[str, ...]) -> None:
    assert amounts.form_of(cells) is None
    assert amounts.units_of(cells) == units


def test_a_column_with_a_unit_takes_no_other(tmp_path: Path) -> None:
    areas = [f"{n + 0.5} m²" for n in range(ROWS)]
    mixed = [f"{n % 5 + 1} {'kg' if n % 2 else 'g'}" for n in range(ROWS)]
    data = made(tmp_path, area=areas, weight=mixed)
    assert "numbers with marks or units: area ('0.5 m²')" in data.told
    assert "several units in a column, no numbers: weight (g, kg)" in data.told
    np.testing.assert_allclose(unscaled(data, "area"), np.arange(ROWS) + 0.5)
    assert data.preparation is not None
    again = Preparation.from_dict(json.loads(json.dumps(data.preparation.to_dict())))
    new = tmp_path / "new.csv"
    new.write_text("x,area,weight\n1,7.5m2,1 kg\n2,7.5,1 kg\n", encoding="utf-8")
    place = data.columns.index("area")
    assert again.inputs(read(new))[:, place] == pytest.approx([data.x[7, place]] * 2)
    new.write_text("x,area,weight\n1,7.5 sqft,1 kg\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r'"area" \(in m²\): must be numbers, not \'7.5 sqft\''):
        again.inputs(read(new))
    own_units = made(tmp_path, weight=[f"{n} {'kg' if n % 2 else 'g'}" for n in range(ROWS)])
    assert own_units.told == ("left out: weight (several units in a column: g, kg)",)
    with pytest.raises(ValueError, match='column "y" must be numbers of one unit, not of g, kg'):
        made(tmp_path, y=[f"{n} {'kg' if n % 2 else 'g'}" for n in range(ROWS)])


def test_thousands_beside_decimal_commas(tmp_path: Path) -> None:
    rows = "".join(f"{n},5;{n}.000;{n % 7}.{n:03}\n" for n in range(1, ROWS))
    (tmp_path / "t.csv").write_text(f"a;b;y\n{rows}", encoding="utf-8")
    data = load(tmp_path / "t.csv", "y")
    assert "cells between semicolons, decimal commas" in data.told
    assert "numbers with marks or units: b ('1.000'), y ('1.001')" in data.told
    np.testing.assert_allclose(unscaled(data, "b"), 1000.0 * np.arange(1, ROWS))
    assert not data.classes
    mean = np.mean([n % 7 * 1000 + n for n in range(1, ROWS)])
    assert data.target_units[0] == pytest.approx(mean)


def test_a_target_of_words_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be numbers or classes, but .* such as 'n0'"):
        made(tmp_path, y=[f"n{n}" for n in range(ROWS)])


def test_whole_numbers_that_hardly_repeat_are_a_quantity(tmp_path: Path) -> None:
    few = written(tmp_path, x=[own(n) for n in range(20)], y=[100 + n * n for n in range(20)])
    data = load(few, "y")
    assert (data.classes, data.loss) == (False, "mse")
    again = written(tmp_path, x=[own(n) for n in range(20)], y=[n % 10 for n in range(20)])
    assert len(load(again, "y").labels) == 10


@pytest.mark.parametrize("y", [[n / 7 for n in range(ROWS)], ["a", "b", "c"] * (ROWS // 3)])
def test_rows_without_a_target_are_left_out(tmp_path: Path, y: list[object]) -> None:
    gone = [3, 30, 31]
    cells = ["" if n in gone else one for n, one in enumerate(y)]
    data = made(tmp_path, w=["u", "v"] * (ROWS // 2), y=cells)
    assert len(data.x) == len(data.y) == ROWS - 3
    assert data.told[0] == "rows left out: 3 without y"
    assert data.place(3, 0) == 'line 6, column "x"'
    np.testing.assert_allclose(
        unscaled(data, "x"), [own(n) for n in range(ROWS) if n not in gone], atol=1e-12
    )


TELLING = {
    "a line": ([3 - 2 * (n % 7 + n / 100) for n in range(ROWS)], None),
    "a name": ([f"kind {n % 3}" for n in range(ROWS)], ["abc"[n % 3] for n in range(ROWS)]),
    "a number": ([n % 3 + 5 for n in range(ROWS)], ["abc"[n % 3] for n in range(ROWS)]),
}


@pytest.mark.parametrize(("column", "y"), TELLING.values(), ids=TELLING)
def test_columns_that_tell_the_target(
    tmp_path: Path, column: list[object], y: list[object] | None
) -> None:
    more = {} if y is None else {"y": y}
    data = made(tmp_path, z=column, **more)
    assert data.told[-1].startswith("tells the target by itself: z (to be dropped if")
    column[7] = column[8]  # now it does not
    assert not any("tells" in one for one in made(tmp_path, z=column, **more).told)


def test_a_second_column_of_a_name_is_left_out(tmp_path: Path) -> None:
    text = "a,a,y\n" + "".join(f"{n},{5 - n},{n / 3}\n" for n in range(6))
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    data = load(tmp_path / "t.csv", "y")
    assert data.columns == ("a",)
    assert data.told == ("left out: a (has the name of another column)",)


def test_names_in_single_quotes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("'a'\t'y'\n1\t2\n3\t5\n", encoding="utf-8")
    assert load(tmp_path / "t.csv", "y").columns == ("a",)


def test_why_no_column_is_left(tmp_path: Path) -> None:
    path = written(tmp_path, x=["NA"] * ROWS, z=range(ROWS))
    with pytest.raises(ValueError, match=r"no column is left to learn y from \(x: has no values\)"):
        load(path, "y", columns=["x"])


def test_the_line_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,y\n1,2\nä,3\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"UTF-8: line 3 is not \(in Windows-1252\?"):
        load(tmp_path / "t.csv", "y")


def test_numbers_keep_their_digits_as_words(tmp_path: Path) -> None:
    """A column of words may come as numbers in other rows."""
    words = ["1234567", "1234568", "x9"] * (ROWS // 3)
    preparation = made(tmp_path, w=words).preparation
    assert preparation is not None
    (tmp_path / "new.csv").write_text("x,w\n1,1234567\n2,1234568\n", encoding="utf-8")
    x = preparation.inputs(read(tmp_path / "new.csv"))
    places = [preparation.made.index(f"w={word}") for word in words[:2]]
    assert (x[[0, 1], places] > 0).all()
    assert (x[[1, 0], places] < 0).all()


def test_numbers_as_text_in_a_frame_are_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    y = [own(n) for n in range(ROWS)]
    frame = pandas.DataFrame({"t": [str(n * n) for n in range(ROWS)], "y": y})
    assert load(frame, "y").columns == ("t",)
    frame["t"] = [f"a{n % 3}" for n in range(ROWS)]
    assert load(frame, "y").columns == ("t=a0", "t=a1", "t=a2")


def test_truths_are_words_however_they_are_written(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    truths = [n % 3 == 0 for n in range(ROWS)]
    y = [own(n) for n in range(ROWS)]
    frame = pandas.DataFrame({"t": truths, "y": y})
    data = load(frame, "y")
    assert data.columns == ("t=True",)
    assert data.preparation is not None
    for write in (str.lower, str.upper, str.title):
        path = written(tmp_path, t=[write(str(one)) for one in truths])
        np.testing.assert_allclose(data.preparation.inputs(read(path)), data.x)
    frame["t"] = pandas.array([None, *truths[1:]], dtype="boolean")
    assert load(frame, "y").columns == ("t=False", "t=True", "t is missing")
    named = load(pandas.DataFrame({"x": y, "t": truths}), "t")
    assert named.labels == ("False", "True")


def test_frames_with_odd_columns() -> None:
    pandas = pytest.importorskip("pandas")
    y = np.array([own(n) for n in range(ROWS)])
    twice = pandas.DataFrame(np.stack([y**2, y**3, y], axis=1), columns=["a", "a", "y"])
    assert load(twice, "y").told == ("left out: a (has the name of another column)",)
    numbered = twice.set_axis([0, 1, 2], axis=1)
    assert load(numbered, 2, drop=[0]).columns == ("1",)  # type: ignore[arg-type,list-item]
    assert load(twice.set_axis(["aa", "b", "y"], axis=1), "y", drop="aa").columns == ("b",)
    mixed = pandas.DataFrame({"m": [pandas.NA, float("nan"), None, "w", "v"] * 12, "y": y})
    assert load(mixed, "y").columns == ("m=v", "m=w", "m is missing")
    with pytest.raises(ValueError, match=r'column "z" is not in the frame, which has y$'):
        load(twice[["y"]], "z")


def test_records_of_polars_are_words() -> None:
    polars = pytest.importorskip("polars")
    y = [own(n) for n in range(ROWS)]
    frame = polars.DataFrame({"r": [{"a": n % 2} for n in range(ROWS)], "y": y})
    assert load(frame, "y").columns == ("r={'a': 1}",)
