"""The learning rate and the limit of a clip that a history asks for, or why none."""

from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.treatment.rates import wanted_limit, wanted_rate

from tests.diagnosis.test_steps import changed, quadratic


def norms_of(history: vegrad.History, norms: Any) -> vegrad.History:
    return changed(history, gradient_norm=np.resize(norms, history.steps).tolist())


def test_without_a_training_nothing_is_asked_for() -> None:
    for history in (None, vegrad.History()):
        assert wanted_rate(history) == "no training has been looked at"
        assert wanted_limit(history) == "no training has been looked at"


def test_steps_that_land_need_no_clip() -> None:
    assert wanted_limit(quadratic(1.0)) == "no step went too far"


def test_a_limit_is_the_lowest_quarter_of_norms_that_vary() -> None:
    history = norms_of(quadratic(1.9, start=1.0), [1.0, 2.0, 8.0, 50.0])
    assert "overshooting" in {finding.kind for finding in history.findings}
    assert wanted_limit(history) == pytest.approx(
        np.quantile([1.0, 2.0, 8.0, 50.0] * 20, 0.25), 0.1
    )


def test_no_limit_where_norms_hardly_vary() -> None:
    said = wanted_limit(norms_of(quadratic(1.9, start=1.0), [1.0, 1.2]))
    assert isinstance(said, str)
    assert said.startswith("the gradient's norm hardly varies")


def test_no_limit_where_the_loss_rises_from_the_first_steps_on() -> None:
    said = wanted_limit(quadratic(2.5, start=1.0))
    assert isinstance(said, str)
    assert said.startswith("the loss rose from the first steps on")


def test_no_limit_without_a_finite_norm() -> None:
    history = norms_of(quadratic(1.9, start=1.0), [float("nan")])
    assert wanted_limit(history) == "no norm was finite"


def test_a_rate_of_zero_and_a_gradient_of_zero() -> None:
    history = quadratic(0.3)
    still = changed(history, learning_rate=[0.0] * history.steps)
    assert wanted_rate(still) == (1e-3, "a rate of 0 takes no steps")
    said = wanted_rate(norms_of(history, [0.0]))
    assert said == "no gradient has come back: no learning rate makes a step of it"


@pytest.mark.parametrize(
    "optimizer", [vegrad.Adam(1e-3, weight_decay=5.0), vegrad.SGD(0.05, weight_decay=2.0)]
)
def test_a_weight_decay_that_outweighs_the_gradient_is_lowered(optimizer) -> None:
    x = np.random.default_rng(0).standard_normal((500, 10))
    network = vegrad.MLP([10, 32, 32, 2], activation="relu", loss="cross_entropy", seed=0)
    cure = vegrad.cure(network, x, (x[:, 0] > 0).astype(int), optimizer=optimizer)
    assert cure.cured, cure
    assert 0 < cure.optimizer.weight_decay < 0.01
    assert "weight_decay=0.00" in cure.patch
