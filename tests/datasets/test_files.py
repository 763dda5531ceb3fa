"""Datasets: reading, standardizing, and the errors for files that cannot be read."""

import io
import re
import string
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vegrad import datasets
from vegrad.datasets import load
from vegrad.datasets.sheets import extent


def write(folder: Path, text: str, name: str = "data.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# -------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("digits", (1797, 64), 10),
        ("breast_cancer", (569, 30), 2),
        ("wine", (178, 13), 3),
        ("diabetes", (442, 10), 0),
    ],
)
def test_datasets_by_name(name: str, shape: tuple[int, int], classes: int) -> None:
    data = load(name)
    assert data.x.shape == shape
    assert len(data.labels) == classes
    assert len(data.columns) == shape[1]
    assert data.loss == ("cross_entropy" if classes else "mse")
    assert data.outputs(data.loss) == (classes or 1)
    assert data.y.shape == ((shape[0],) if classes else (shape[0], 1))
    assert data.y.dtype == (np.int64 if classes else np.float64)


def test_columns_are_standardized() -> None:
    x = load("digits").x
    deviation = x.std(axis=0)
    constant = deviation == 0
    assert constant.sum() == 3  # pixels in the corners, which no digit reaches
    assert (x[:, constant] == 0).all()
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(deviation[~constant], 1)


def test_targets_for_losses() -> None:
    cancer, wine, diabetes = load("breast_cancer"), load("wine"), load("diabetes")
    assert cancer.target("binary_cross_entropy").shape == (569, 1)
    assert wine.target("binary_cross_entropy").shape == (178, 3)
    assert wine.target("mse").sum() == 178
    assert wine.outputs("mse") == 3
    assert diabetes.target("mse").std() == pytest.approx(1)
    with pytest.raises(ValueError, match="cross_entropy needs classes"):
        diabetes.target("cross_entropy")
    with pytest.raises(ValueError, match="loss must be one of"):
        wine.target("hinge")


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match=r"digits, breast_cancer, .*\.parquet or \.xlsx, not 'iris'"
    ):
        load("iris")
    with pytest.raises(ValueError, match=r"goes with a table"):
        load("digits", "target")


def test_scikit_learn_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "vegrad\[cli\]"'):
        load("digits")


# ---------------------------------------------------------------------------------------- csv


def test_csv_classes_by_text(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffa, kind ,b\n1,cat,5\n\n2,dog,5\n3,cat,5\n")
    data = load(path, "kind")
    assert data.labels == ("cat", "dog")
    assert data.y.tolist() == [0, 1, 0]
    assert data.columns == ("a", "b")
    np.testing.assert_allclose(data.x[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    assert (data.x[:, 1] == 0).all()
    assert data.place(1, 0) == 'line 4, column "a"'


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters_and_quotes(tmp_path: Path, delimiter: str) -> None:
    rows = [['"x"', "y"], ["1.5", "0.25"], ['" 2.5"', "0.5"], ["-1e3", "7"]]
    data = load(write(tmp_path, "\r\n".join(delimiter.join(row) for row in rows)), "y")
    assert not data.classes
    assert data.y.shape == (3, 1)


def test_csv_whole_numbers_are_classes_unless_many(tmp_path: Path) -> None:
    few = write(tmp_path, "x,y\n" + "".join(f"{i},{i % 4 + 3}\n" for i in range(60)), "few.csv")
    many = write(tmp_path, "x,y\n" + "".join(f"{i},{2 * i}\n" for i in range(60)), "many.csv")
    assert load(few, "y").labels == ("3", "4", "5", "6")
    assert not load(many, "y").classes


def test_whole_numbers_are_numbers_if_asked(tmp_path: Path) -> None:
    years = write(tmp_path, "x,y\n" + "".join(f"{i},{1990 + i % 20}\n" for i in range(60)))
    guessed, asked = load(years, "y"), load(years, "y", numbers=True)
    assert (guessed.whole, len(guessed.labels), guessed.loss) == (True, 20, "cross_entropy")
    assert (asked.whole, asked.labels, asked.loss) == (False, (), "mse")
    assert asked.y.std() == pytest.approx(1)
    text = load(write(tmp_path, "x,y\n1,a\n2,b\n"), "y", numbers=True)
    assert (text.whole, text.labels) == (False, ("a", "b"))


def test_missing_values_stay_if_asked_and_spoil_nothing_else(tmp_path: Path) -> None:
    data = load(write(tmp_path, "x,z,y\n1,1,a\n,2,b\n3,NA,a\n"), "y", fill="none")
    assert np.argwhere(np.isnan(data.x)).tolist() == [[1, 0], [2, 1]]
    np.testing.assert_allclose(data.x[[0, 2], 0], [-1, 1])
    infinite = load(write(tmp_path, "x,y\n1,a\ninf,b\n3,a\n"), "y")
    assert np.isinf(infinite.x[1, 0])


BAD_CSV = {
    "": "is empty",
    "\n\n": "is empty",
    "x,y\n": "names but no rows",
    "1,2\n3,4\n": "must begin with a line of names, not with 1, 2",
    "x,z\n1,2\n": 'the column "y" is not in .*data.csv, which has x, z',
    "y,y\n1,2\n": 'the column "y" is twice in',
    "y\n1\n2\n": "must have columns beside y",
    "x,y\n1,2\n1,2,3\n": "line 3 has 3 values, not 2 as the first line",
    "x,y\n1,2\n1\n": "line 3 has 1 values, not 2",
    "x,y\n1,a\n2,\n": "is a in every row: nothing to learn",
    "x,y\n1,7\n2,7\n": "is 7 in every row: nothing to learn",
    "x z\n1 2\n": "which has x z alone; its cells must stand between commas",
    'x,y\n1,"7\n2,7\n': "is not a .csv file: the quotes in line 2 do not end",
}


@pytest.mark.parametrize(("text", "message"), BAD_CSV.items(), ids=BAD_CSV.values())
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path, text), "y")
    assert "\n" not in str(error.value)


def test_csv_needs_a_target(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a target column, one of x, y"):
        load(write(tmp_path, "x,y\n1,2\n"))


def test_csv_must_be_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"x,y\n\xff\xfe,2\n")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        load(path, "y")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("a.csv", "a.npz"):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
            load(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="must be a file"):
        load(tmp_path / "folder.csv", "y")


# ---------------------------------------------------------------------------------------- npz


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 4, 4), dtype=np.uint8), np.arange(20) % 3
    data = load(save(tmp_path, x=images, y=labels))
    assert data.x.shape == (20, 16)
    assert data.labels == ("0", "1", "2")
    assert data.place(2, 3) == "row 2, column 3"
    assert load(save(tmp_path, x=images, y=labels == 1)).labels == ("False", "True")
    assert load(save(tmp_path, x=images, y=labels.astype(float))).labels == ("0", "1", "2")
    assert load(save(tmp_path, x=images, y=rng.random((20, 2)))).y.shape == (20, 2)
    assert load(save(tmp_path, x=images, y=np.array(["a", "b"] * 10))).labels == ("a", "b")
    assert load(save(tmp_path, x=np.arange(20.0), y=labels)).x.shape == (20, 1)


def test_huge_and_tiny_columns_are_standardized(tmp_path: Path) -> None:
    x = np.array([[1e300, 1e-300, 5.0], [-1e300, 3e-300, 5.0]])
    data = load(save(tmp_path, x=x, y=[0, 1]))
    np.testing.assert_allclose(data.x, [[1, -1, 0], [-1, 1, 0]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(3)}, "must hold x and y, not x"),
        ({"a": np.ones(3)}, "must hold x and y, not a"),
        ({"x": np.ones((3, 2)), "y": np.ones(2)}, r"not shapes \(3, 2\) and \(2,\)"),
        ({"x": np.ones((3, 2)), "y": np.ones((3, 2, 2))}, "as many rows"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "must not be empty"),
        ({"x": np.array(["a", "b"]), "y": np.arange(2)}, "x must be numbers, not <U1"),
        ({"x": np.ones(2) * 1j, "y": np.arange(2)}, "x must be numbers, not complex128"),
        ({"x": np.ones(2), "y": np.ones(2) * 1j}, "y must be numbers or text"),
        ({"x": np.ones(2), "y": np.array([{}, {}])}, "must be arrays of numbers, not objects"),
        ({"x": np.ones((3, 2)), "y": np.ones(3)}, "is 1 in every row"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path, **arrays))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_whose_members_are_packed_otherwise(tmp_path: Path, method: int) -> None:
    """One bit of damage makes of one way to pack another."""
    path = tmp_path / "packed.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, bytes(range(256)))
    damaged = bytearray(path.read_bytes())
    for found in re.finditer(b"PK\x01\x02", damaged):
        damaged[found.start() + 10] = method
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"packed\.npz is damaged: "):
        load(path)


def test_damaged_npz(tmp_path: Path) -> None:
    """Every way to cut a file short or to flip a byte gives one message, never another error."""
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=rng.standard_normal((50, 8)), y=rng.integers(0, 3, 50))
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is empty|not a complete \.npz"):
            load(path)
    for place in rng.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            data = load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  it may also have hit nothing
        else:
            assert data.x.shape == (50, 8)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match="not a complete"):
        load(path)


def test_names_are_those_of_the_losses_of_the_network() -> None:
    from vegrad import _core

    assert set(datasets.LOSSES) == set(_core.LOSSES)


def packed(path: Path, **members: bytes) -> Path:
    """Write a compressed file with members of any content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return path


def header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """Make the beginning of an array's member, without its numbers."""
    stream = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content", [b"plain bytes", b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00", b"\0" * 10**7]
)
def test_members_that_are_no_arrays(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for name in ("x", "x_npy"):
        packed(path, **{name: content, "y_npy": header((3,)) + bytes(24)})
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged"):
            load(path)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2**40,), "<f8"), ((10**200, 2), "|u1"), ((5,), "<U500000000"), ((2**31, 2**31), "<f4")],
)
def test_a_bomb(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    """The shapes in the headers are looked at before anything is read."""
    path = packed(tmp_path / "data.npz", x_npy=header(shape, dtype), y_npy=header((3,)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x of shape .* the most is 8 \(VEGRAD_MAX_DATA=GB"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_limit_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, x=np.arange(3000.0), y=np.arange(3000) % 2)
    monkeypatch.setenv("VEGRAD_MAX_DATA", "0.00004")
    with pytest.raises(ValueError, match=r"y of shape .* brings the arrays to 4\.8e-05 GB"):
        load(path)
    monkeypatch.setenv("VEGRAD_MAX_DATA", "0.0001")
    assert len(load(path).x) == 3000
    for bad in ("x", "-1", "nan", "inf"):
        monkeypatch.setenv("VEGRAD_MAX_DATA", bad)
        with pytest.raises(
            ValueError, match=f"VEGRAD_MAX_DATA must be a number of GB, not '{bad}'"
        ):
            load(path)


@pytest.mark.parametrize("shape", [(-1,), (3, -2), (2.5,), "x"])
def test_shapes_that_are_none(shape: Any, tmp_path: Path) -> None:
    path = packed(tmp_path / "data.npz", x_npy=header(shape), y_npy=header((3,)) + bytes(24))
    with pytest.raises(ValueError, match="is damaged"):
        load(path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("f.cvs", ", which does not exist (did you mean f.csv?)"),
        ("other.dat", ", which does not exist"),
        ("there.cvs", ""),
        ("digts", ""),
    ],
)
def test_a_slip_in_the_ending_is_told(tmp_path: Path, name: str, hint: str) -> None:
    for there in ("f.csv", "there.cvs"):
        (tmp_path / there).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"ends in \.npz") as error:
        load(tmp_path / name)
    assert str(error.value).endswith(f"'{hint}")


def workbook(path: Path, cells: dict[str, str]) -> Path:
    """Write the parts of a workbook that say where its cells are."""
    rows = "".join(
        f'<row r="{place.lstrip(string.ascii_uppercase)}"><c r="{place}"><v>{value}</v></c></row>'
        for place, value in cells.items()
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", f"<sheetData>{rows}</sheetData>")
    return path


def test_a_workbook_whose_cells_lie_far_apart(tmp_path: Path) -> None:
    """What lies between two cells, readers make: of five kilobytes, hundreds of gigabytes."""
    path = workbook(tmp_path / "far.xlsx", {"A1": "1", "XFD1048576": "2"})
    said = r"far.xlsx: 1048576 rows of 16384 columns take 1\.72e\+03 GB, and the most is 8 "
    with pytest.raises(ValueError, match=said):
        load(path, "y")


def test_the_extent_of_a_workbook(tmp_path: Path) -> None:
    found = extent(workbook(tmp_path / "a.xlsx", {"A1": "1", "AB7": "2", "C30": "3"}))
    assert found == (30, 28)
    many = {f"B{n}": "1" for n in range(1, 50_000)}  # places cut where a piece that is read ends
    assert extent(workbook(tmp_path / "b.xlsx", many)) == (49_999, 2)
    (tmp_path / "c.xlsx").write_bytes(b"PK\x03\x04")
    assert extent(tmp_path / "c.xlsx") == (0, 0)


def test_a_workbook_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "long.xlsx", {"A1": "1" * 10**6})
    assert path.stat().st_size < 10**4
    monkeypatch.setenv("VEGRAD_MAX_DATA", "0.001")
    with pytest.raises(ValueError, match=r"long.xlsx unfolds to 0\.001 GB, and the most is 0\.001"):
        load(path, "y")


def test_a_parquet_file_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    path, zeros = tmp_path / "long.parquet", np.zeros(10**6)
    pandas.DataFrame({"a": zeros, "y": zeros}).to_parquet(path)
    assert path.stat().st_size < 10**5
    monkeypatch.setenv("VEGRAD_MAX_DATA", "0.01")
    said = r"long.parquet: 1000000 rows of 2 columns take 0\.016 GB, and the most is 0\.01 "
    with pytest.raises(ValueError, match=said):
        load(path, "y")
