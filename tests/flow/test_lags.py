"""Tell from data alone that targets depend on early steps."""

import numpy as np
import pytest
from vegrad.flow.lags import Lags

RANDOM = np.random.default_rng


def test_numbers_shown_early() -> None:
    x = RANDOM(0).standard_normal((400, 40, 2))
    lags = Lags.of(x, x[:, 0, 0] + x[:, 1, 1])
    assert lags is not None
    assert np.isnan(lags.told(0)).all()
    assert np.isnan(lags.told(40)).all()
    near, far = Lags.of(np.repeat(x[:, :4], 10, axis=1), x[:, 0, 0]).told(10)
    assert near < 0.05
    assert far > 0.8


def test_what_later_steps_tell_too() -> None:
    x = RANDOM(0).standard_normal((400, 40, 2))
    x[:, 30] = x[:, 1]
    near, far = Lags.of(x, x[:, 0, 0] + x[:, 1, 1]).told(12)
    assert near > 0.05
    assert far == pytest.approx(0.5, abs=0.1)  # x[:, 0, 0], which none of them tells
    assert Lags.of(x, x[:, 1, 1]).told(12)[1] == pytest.approx(0.0, abs=0.05)


def test_one_step_among_many() -> None:
    x = RANDOM(5).standard_normal((2000, 100, 2))
    near, far = Lags.of(x, (x[:, 3, 0] > 0).astype(int)).told(43)
    assert near < 0.05
    assert far == pytest.approx(2 / np.pi, abs=0.1)
    near, far = Lags.of(x, x[:, 90, 1]).told(43)
    assert near > 0.9
    assert far < 0.05


def test_where_a_gradient_enters_by_itself() -> None:
    x = RANDOM(0).standard_normal((40, 10, 2))
    assert Lags.of(x, x[:, 0, 0]).beside(3) == 0
    assert Lags.of(x, x[:, 0, 0], np.full(10, 2.0)).beside(4) == pytest.approx(0.6**0.5)


def test_products_as_in_the_adding_problem() -> None:
    random = RANDOM(0)
    x = np.zeros((1000, 40, 2))
    x[..., 0] = random.random((1000, 40))
    places = random.integers(0, 10, 1000), random.integers(10, 20, 1000)
    for place in places:
        x[np.arange(1000), place, 1] = 1.0
    target = sum(x[np.arange(1000), place, 0] for place in places)
    assert Lags.of(x, target).told(15)[1] > 0.5


@pytest.mark.parametrize("seed", range(20))
def test_chance_makes_nothing_up(seed: int) -> None:
    random = RANDOM(seed)
    x = random.standard_normal((200, 40, 3))
    assert not max(Lags.of(x, random.integers(0, 3, 200)).told(10)) >= 0.05
    # What all steps show is told by the last ones too.
    target = random.standard_normal(200)
    x[..., 0] += target[:, None]
    assert not Lags.of(x, target).told(10)[1] >= 0.2


def test_what_it_cannot_know() -> None:
    x = RANDOM(0).standard_normal((20, 40, 3))
    assert np.isnan(Lags.of(x, x[:, 0, 0]).told(10)).all()  # few rows
    assert Lags.of(x, np.zeros((20, 40, 1))) is None  # a target at each step
    assert Lags.of(x[:, 0], np.zeros(20)) is None
    assert Lags.of(np.full((20, 4, 1), np.nan), np.zeros(20)) is None
