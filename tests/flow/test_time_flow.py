"""What a flow through time tells: its reach, and the time scales of units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.flow.time_flow import TimeFlow


def flow_of(delta: Any, gain: Any, carry: Any = ((math.nan,),), **more: Any) -> TimeFlow:
    delta, gain = np.atleast_2d(np.float64(delta)), np.atleast_2d(np.float64(gain))
    nothing = np.full_like(delta, math.nan)
    return TimeFlow(delta, gain, nothing, nothing, nothing, np.float64(carry), **more)


def halves(T: int, factor: float = 0.5) -> TimeFlow:
    """A gain of `factor` at each step."""
    steps = np.arange(T - 1, -1, -1)
    return flow_of(steps * math.log2(factor) - 3, np.full(T, math.log2(factor)))


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("T", [2, 5, 20, 400])
def test_the_reach_of_a_constant_gain(factor: float, T: int) -> None:
    """The same whether it lies within the steps or beyond."""
    assert halves(T, factor).reach[0] == pytest.approx(3 * math.log(10) / -math.log(factor))


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_what_does_not_shrink_reaches_any_step(factor: float) -> None:
    assert halves(10, factor).reach[0] == math.inf


def test_one_step_tells_no_reach() -> None:
    assert math.isnan(halves(1).reach[0])


def test_a_gradient_that_vanishes_at_once() -> None:
    flow = flow_of([-math.inf, -math.inf, 0.0], [math.nan, math.nan, -math.inf])
    assert flow.reach[0] == 1.0


def test_what_was_not_measured_ends_the_look() -> None:
    flow = flow_of([math.nan, math.nan, -2.0, -1.0, 0.0], [math.nan, math.nan, math.nan, -1, -1])
    assert flow.reach[0] == pytest.approx(math.log2(1000))


def test_a_loss_at_every_step_does_not_hide_the_decay() -> None:
    """δ stays, as each step adds to it; gains tell."""
    flow = flow_of(np.zeros(30), np.full(30, -1.0), every_step=True)
    assert flow.reach[0] == pytest.approx(math.log2(1000))
    np.testing.assert_array_equal(flow.left_log2[0], np.arange(-29.0, 1.0))


def test_the_reach_of_an_lstm_is_that_of_its_cell() -> None:
    """What the cell state carries is not in δ, which is small already at the step before."""
    x = np.random.default_rng(0).standard_normal((64, 60, 6))
    network = vegrad.RNN(6, 32, 1, seed=0)
    network.backward(x, x[:, 0, :1])
    (cell,) = vegrad.diagnose(network, x, x[:, 0, :1]).reading.cells
    measured = np.flatnonzero(cell.sizes[:, 0] < cell.sizes[0, 0] - math.log2(1000))[0]
    assert network.flow.reach[0] == pytest.approx(measured, abs=2)


def test_time_scales_of_units() -> None:
    carry = [[0.5, math.exp(-1), math.exp(-0.01), 1.0, math.nan]]
    scales = flow_of([0.0], [0.0], carry).time_scales[0]
    np.testing.assert_allclose(scales[:3], [1 / math.log(2), 1.0, 100.0])
    assert scales[3] == math.inf
    assert math.isnan(scales[4])


def test_it_is_plain_lists() -> None:
    plain = halves(4).to_dict()
    assert plain["gain_log2"] == [[-1.0] * 4]
    assert set(plain) > {"delta_log2", "reach", "time_scales", "carry_mean"}
