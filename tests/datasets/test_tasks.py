"""The tasks that need memory: drawn as their sources say."""

from collections.abc import Callable
from math import log

import numpy as np
import pytest
from vegrad import datasets
from vegrad.datasets import Sequences, adding, copy, temporal_order


@pytest.mark.parametrize("steps", [10, 20, 50, 57])
def test_temporal_order(steps: int) -> None:
    data = temporal_order(3000, steps, seed=0)
    assert data.x.shape == (3000, steps, 6)
    assert (data.x.sum(axis=2) == 1).all()
    symbols = data.x.argmax(axis=2)
    rows, places = np.nonzero(symbols < 2)
    assert (rows == np.repeat(np.arange(3000), 2)).all()  # two in each row
    first, second = places.reshape(-1, 2).T
    tenth = steps // 10
    assert set(first) == set(range(tenth, 2 * tenth))
    assert set(second) == set(range(steps // 2, steps // 2 + tenth))
    every = np.arange(3000)
    assert (data.y == symbols[every, first] + 2 * symbols[every, second]).all()
    assert data.labels == ("AA", "BA", "AB", "BB")
    assert np.bincount(symbols[symbols > 1])[2:] / (3000 * (steps - 2)) == pytest.approx(
        np.full(4, 0.25), abs=0.02
    )
    assert np.bincount(data.y) / 3000 == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert (data.loss, data.targets, data.lengths) == ("cross_entropy", "last", None)


@pytest.mark.parametrize("steps", [10, 30, 101])
def test_adding(steps: int) -> None:
    data = adding(4000, steps, seed=1)
    assert data.x.shape == (4000, steps, 2)
    values, marks = data.x[..., 0], data.x[..., 1]
    assert ((values >= 0) & (values < 1)).all()
    rows, places = np.nonzero(marks)
    assert (rows == np.repeat(np.arange(4000), 2)).all()
    first, second = places.reshape(-1, 2).T
    assert set(first) == set(range(steps // 2))
    assert set(second) == set(range(steps // 2, steps))
    np.testing.assert_allclose(data.y[:, 0], (values * marks).sum(axis=1))
    assert np.mean((data.y - 1) ** 2) == pytest.approx(1 / 6, rel=0.06)
    assert (data.loss, data.targets, data.lengths, data.outputs("mse")) == ("mse", "last", None, 1)


@pytest.mark.parametrize("steps", [10, 20, 100])
def test_adding_of_2013(steps: int) -> None:
    data = adding(4000, steps, form="2013", seed=2)
    assert data.lengths is not None
    assert set(data.lengths) == set(range(steps, steps + steps // 10))
    marks, values = data.x[..., 0], data.x[..., 1]
    assert data.x.shape[1] == data.lengths.max()
    behind = np.arange(data.x.shape[1]) >= data.lengths[:, None]
    assert not data.x[behind].any()
    assert ((marks == 0) | (marks == 1)).all()
    rows, places = np.nonzero(marks)
    assert (rows == np.repeat(np.arange(4000), 2)).all()
    first, second = places.reshape(-1, 2).T
    tenth, half = data.lengths // 10, data.lengths // 2
    assert (first < tenth).all()
    assert ((second >= tenth) & (second < half)).all()
    assert ((second == half - 1).any(), (second == tenth).any()) == (True, True)
    np.testing.assert_allclose(data.y[:, 0], (values * marks).sum(axis=1) / 2)
    assert np.mean((data.y - 0.5) ** 2) == pytest.approx(1 / 24, rel=0.06)


def test_copy() -> None:
    data = copy(500, 7, seed=3)
    assert data.x.shape == (500, 27, 10)
    assert (data.x.sum(axis=2) == 1).all()
    symbols = data.x.argmax(axis=2)
    assert set(symbols[:, :10].ravel()) == set(range(1, 9))
    assert not symbols[:, 10:16].any()
    assert (symbols[:, 16] == 9).all()
    assert not symbols[:, 17:].any()
    assert not data.y[:, :17].any()
    assert (data.y[:, 17:] == symbols[:, :10]).all()
    assert (data.targets, data.outputs("cross_entropy"), data.y.dtype) == ("all", 9, np.int64)
    # Without memory: certain of the blanks, one of 8 for the rest.
    chances = np.where(np.arange(27) < 17, 1.0, 1 / 8)
    assert -np.log(chances).mean() == pytest.approx(10 * log(8) / (7 + 20))


@pytest.mark.parametrize("task", datasets.TASKS.values(), ids=list(datasets.TASKS))
def test_a_seed_gives_the_same_data(task: Callable[..., Sequences]) -> None:
    one, same, other = task(5, 12, seed=4), task(5, 12, seed=4), task(5, 12, seed=5)
    assert (one.x == same.x).all()
    assert (one.y == same.y).all()
    assert (one.x != other.x).any()
    assert (task(5, 12).x != task(5, 12).x).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temporal_order(0, 20), "rows must be at least 1, not 0"),
        (lambda: temporal_order(5, 9), "steps must be at least 10, not 9"),
        (lambda: adding(5, 9), "steps must be at least 10, not 9"),
        (lambda: adding(5, 10, form="2014"), "form must be one of 2015, 2013, not '2014'"),
        (lambda: copy(5, 0), "steps must be at least 1, not 0"),
    ],
)
def test_wrong_arguments(call: Callable[[], Sequences], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
