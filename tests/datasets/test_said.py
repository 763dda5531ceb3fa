"""What is said of a table, and of new rows that are not written as those that were learnt from."""

from pathlib import Path

import numpy as np
import pytest
from vegrad import datasets
from vegrad.datasets.dataset import Dataset
from vegrad.datasets.files import read_table
from vegrad.datasets.preparation import Preparation

ROWS = 60
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(2, ROWS)).tolist()


def written(path: Path, columns: dict[str, list[object]]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    return path


def loaded(path: Path, columns: dict[str, list[object]], target: str = "y") -> Dataset:
    return datasets.load(written(path, columns), target_column=target)


@pytest.mark.parametrize("rows", [20, 30, 50, 60])
def test_no_column_of_numbers_tells_a_quantity_of_few_rows(tmp_path: Path, rows: int) -> None:
    few = {"a": FIRST[:rows], "y": SECOND[:rows]}
    assert loaded(tmp_path / "few.csv", few).told == ()
    labels = [f"class {n % 3}" for n in range(rows)]
    both = {**few, "number": [n % 3 for n in range(rows)], "y": labels}
    assert loaded(tmp_path / "classes.csv", both).told == (
        "tells the target by itself: number (to be dropped if it is not known before)",
    )


def test_dates_whose_order_no_row_tells_are_said_to_be_a_guess(tmp_path: Path) -> None:
    unclear = [f"{1 + n % 12:02}/{1 + n % 11:02}/2021" for n in range(ROWS)]
    data = loaded(tmp_path / "unclear.csv", {"d": unclear, "y": SECOND})
    assert data.told == ("dates as days: d (the day before the month: no row tells)",)
    data = loaded(tmp_path / "clear.csv", {"d": [*unclear[1:], "25/01/2021"], "y": SECOND})
    assert data.told == ("dates as days: d",)


def prepared(tmp_path: Path) -> Preparation:
    days = [f"2024-{1 + n % 12:02}-{1 + n % 28:02}" for n in range(ROWS)]
    flags = ["True" if n % 2 else "False" for n in range(ROWS)]
    kinds = ["old" if n % 3 else "new" for n in range(ROWS)]
    columns = {"when": days, "flag": flags, "kind": kinds, "y": SECOND}
    preparation = loaded(tmp_path / "train.csv", columns).preparation
    assert preparation is not None
    return Preparation.from_dict(preparation.to_dict())


def test_dates_of_another_form_are_not_taken_for_missing(tmp_path: Path) -> None:
    preparation = prepared(tmp_path)
    for first, odd in (("2024-12-30", "31.12.2024"), ("2024-12-30", "soon"), ("", "45657")):
        rows = {"when": [first, odd], "flag": ["True"] * 2, "kind": ["old"] * 2}
        table = read_table(written(tmp_path / "new.csv", rows))
        with pytest.raises(ValueError, match=r'line 3, column "when" \(written like 2024-12-31\)'):
            preparation.inputs(table)
    rows["when"] = ["2024-12-30", ""]
    assert np.isfinite(preparation.inputs(read_table(written(tmp_path / "new.csv", rows)))).all()


def test_a_third_word_in_the_place_of_two_is_said(tmp_path: Path) -> None:
    preparation = prepared(tmp_path)
    rows = {"when": ["2024-12-30"] * 4, "flag": ["TRUE", "false", "True", ""], "kind": ["old"] * 4}
    known = read_table(written(tmp_path / "known.csv", rows))
    assert preparation.told(known) == ('cells without a value, treated as in training: "flag" (1)',)
    rows = {**rows, "flag": ["yes", "no", "yes", "True"], "kind": ["old", "new", "new", "used"]}
    table = read_table(written(tmp_path / "new.csv", rows))
    assert preparation.told(table) == (
        'words that training has not seen, taken for none of the known: "flag" (3), "kind" (1)',
    )


def test_a_target_of_dates_is_named_as_such(tmp_path: Path) -> None:
    days = [f"{1990 + n}-03-01" for n in range(ROWS)]
    with pytest.raises(ValueError, match="must be numbers or classes, not dates such as '1990-03"):
        loaded(tmp_path / "dates.csv", {"a": FIRST, "y": days})
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": FIRST, "y": pandas.to_datetime(days)})
    assert datasets.load(frame, target_column="y").told == ("y: dates, as days since 1970",)
