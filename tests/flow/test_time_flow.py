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
    return TimeFlow(delta, gain, *[nothing] * 4, np.float64(carry), **more)


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


def cell_gradients(p: dict[str, Any], x: Any, entering: Any) -> list[float]:
    """‖κ_t‖ of an LSTM of one layer whose loss enters at the last step, in plain NumPy."""
    sigmoid, H = (lambda z: 1 / (1 + np.exp(-z))), p["rnn.weight_hh_l0"].shape[1]
    h, c, kept = np.zeros((len(x), H)), np.zeros((len(x), H)), []
    for x_t in x.transpose(1, 0, 2):
        z = x_t @ p["rnn.weight_ih_l0"].T + h @ p["rnn.weight_hh_l0"].T
        i, f, g, o = np.split(z + p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"], 4, axis=1)
        i, f, g, o, before = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o), c
        c = f * c + i * g
        h = o * np.tanh(c)
        kept.append((i, f, g, o, before, np.tanh(c)))
    delta, kappa, sizes = entering, np.zeros_like(c), []
    for i, f, g, o, before, y in reversed(kept):
        kappa = kappa + delta * o * (1 - y * y)
        sizes.append(float(np.linalg.norm(kappa)))
        parts = kappa * g * i * (1 - i), kappa * before * f * (1 - f), kappa * i * (1 - g * g)
        delta = np.hstack([*parts, delta * y * o * (1 - o)]) @ p["rnn.weight_hh_l0"]
        kappa = kappa * f
    return sizes[::-1]


@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_an_lstm_tells_what_is_left_and_not_the_sum_of_its_parts(spread: float) -> None:
    """What is carried and what goes through U may point against each other."""
    rng, T = np.random.default_rng(3), 40
    network = vegrad.RNN(3, 24, 1, seed=0, dtype="float64")
    network.parameters["rnn.weight_hh_l0"][...] = spread * rng.standard_normal((96, 24)) / 5
    x, target = rng.standard_normal((8, T, 3)), rng.standard_normal((8, 1))
    network.backward(x, target)
    error = 2 * (network.forward(x) - target) / target.size
    entering = error @ network.parameters["head.weight"]
    sizes = np.log2(cell_gradients(network.parameters, x, entering))
    flow = network.flow
    np.testing.assert_allclose(flow.left_log2[0], sizes - sizes[-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(flow.passed_log2[0, 1:], sizes[:-1] - sizes[1:], rtol=0, atol=1e-9)
    both = np.logaddexp2(flow.carry_log2[0, 1:], flow.matrix_log2[0, 1:])
    assert (flow.passed_log2[0, 1:] < both + 1e-9).all()
    assert spread < 1 or both.sum() > flow.passed_log2[0, 1:].sum() + 2


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
