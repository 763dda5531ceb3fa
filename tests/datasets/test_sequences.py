"""Sequences from files: shapes, lengths, standardizing, and the errors."""

from pathlib import Path

import numpy as np
import pytest
from vegrad.datasets import load_sequences

RNG = np.random.default_rng(0)


def write(folder: Path, **arrays: object) -> Path:
    path = folder / "sequences.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub has allow_pickle among them
    return path


@pytest.mark.parametrize(
    ("y", "targets", "shape", "classes"),
    [
        (RNG.integers(3, size=6), "last", (6,), 3),
        (np.array(list("abcabc")), "last", (6,), 3),
        (RNG.normal(size=6), "last", (6, 1), 0),
        (RNG.normal(size=(6, 2)), "last", (6, 2), 0),
        (RNG.integers(3, size=(6, 5)), "all", (6, 5), 3),
        (RNG.integers(3, size=(6, 5, 1)), "all", (6, 5), 3),
        (RNG.normal(size=(6, 5)), "all", (6, 5, 1), 0),
        (RNG.normal(size=(6, 5, 2)), "all", (6, 5, 2), 0),
    ],
)
def test_targets_by_their_shape(
    y: np.ndarray, targets: str, shape: tuple[int, ...], classes: int, tmp_path: Path
) -> None:
    data = load_sequences(write(tmp_path, x=RNG.normal(size=(6, 5, 4)), y=y))
    assert (data.targets, data.y.shape, len(data.labels)) == (targets, shape, classes)
    assert data.x.shape == (6, 5, 4)
    assert data.lengths is None
    if not classes:
        np.testing.assert_allclose(data.y.reshape(-1, shape[-1]).std(axis=0), 1)


def test_one_a_row_although_it_looks_like_one_a_step(tmp_path: Path) -> None:
    path = write(tmp_path, x=RNG.normal(size=(6, 5, 4)), y=RNG.normal(size=(6, 5)))
    data = load_sequences(path, "last")
    assert (data.targets, data.y.shape, data.outputs("mse")) == ("last", (6, 5), 5)


def test_one_input(tmp_path: Path) -> None:
    data = load_sequences(write(tmp_path, x=RNG.normal(size=(6, 5)), y=np.arange(6.0) / 3))
    assert data.x.shape == (6, 5, 1)


def test_steps_behind_the_end_count_nowhere(tmp_path: Path) -> None:
    lengths = np.array([5, 2, 3, 1])
    valid = np.arange(5) < lengths[:, None]
    x = 3 + RNG.normal(size=(4, 5, 2))
    y = RNG.integers(3, size=(4, 5))
    x[~valid], y[~valid] = np.nan, 99
    data = load_sequences(write(tmp_path, x=x, y=y, lengths=lengths.astype(float)))
    assert data.lengths is not None
    assert (data.lengths == lengths).all()
    assert data.lengths.dtype == np.int64
    assert not data.x[~valid].any()
    np.testing.assert_allclose(data.x[valid].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.x[valid].std(axis=0), 1)
    assert data.labels == ("0", "1", "2")
    assert (data.y[valid] == y[valid]).all()
    data = load_sequences(write(tmp_path, x=x, y=y / 8, lengths=lengths))
    assert data.y.shape == (4, 5, 1)
    assert not data.y[~valid].any()
    np.testing.assert_allclose(data.y[valid].std(), 1)


def test_where_a_value_stands(tmp_path: Path) -> None:
    data = load_sequences(write(tmp_path, x=RNG.normal(size=(6, 5, 4)), y=np.arange(6)))
    assert data.place(3, 4, 1) == "row 3, step 4, column 1"


X, Y = np.ones((4, 5, 2)), np.arange(4)


@pytest.mark.parametrize(
    ("arrays", "targets", "message"),
    [
        ({"x": X}, None, "must hold x and y, not x"),
        ({"x": X[0, 0], "y": Y}, None, r"not shapes \(2,\) and \(4,\)"),
        ({"x": X, "y": Y[:3]}, None, r"as many rows, not shapes \(4, 5, 2\) and \(3,\)"),
        ({"x": X[:, :0], "y": Y}, None, r"must not be empty, but have \(4, 0, 2\)"),
        ({"x": X, "y": Y, "lengths": [5, 5, 5]}, None, r"of shape \(4,\), .* of shape \(3,\)"),
        ({"x": X, "y": Y, "lengths": [5, 5, 5, 1.5]}, None, "whole numbers .* not float64"),
        ({"x": X, "y": Y, "lengths": [5, 0, 5, 5]}, None, "from 1 to 5, .* not 0 as in row 1"),
        ({"x": X, "y": Y, "lengths": [5, 5, 6, 5]}, None, "from 1 to 5, .* not 6 as in row 2"),
        ({"x": X, "y": Y}, "all", r"y \(B, 5\) or \(B, 5, O\), not shape \(4,\)"),
        ({"x": X, "y": np.ones((4, 5, 2))}, "last", r"y \(B,\) or \(B, O\), not shape \(4, 5, 2\)"),
        ({"x": X, "y": Y}, "first", "targets must be one of last, all, not 'first'"),
        ({"x": X, "y": np.ones(4)}, None, "is 1.0 everywhere: nothing to learn"),
        ({"x": X, "y": np.full((4, 2), "a")}, None, "is a everywhere"),
        ({"x": X, "y": np.array([["a", "b"]] * 4)}, None, "one column of text"),
        ({"x": np.full((4, 5), "a"), "y": Y}, None, "x must be numbers"),
    ],
)
def test_what_does_not_fit(
    arrays: dict[str, object], targets: str | None, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_sequences(path, targets)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be in a file that ends in \.npz, not 'a\.csv'"):
        load_sequences("a.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        load_sequences(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="must be a file"):
        load_sequences(tmp_path / "folder.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="not a complete"):
        load_sequences(tmp_path / "text.npz")
