"""The flow through time where states, outputs and gradients leave the range of the dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vegrad

from tests import reference_recurrent as reference
from tests.core.test_network import both_dtypes
from tests.core.test_recurrent import CELLS, FLOWS, linear
from tests.reference import as_dtype

SIZES = (2, 6, 2)
# So many steps of a gain of a quarter or of 5 go far beyond the range.
STEPS = {"float32": 100, "float64": 600}


def fading(cell: str, dtype: str, *, layers: int, gain: float, **options: Any) -> vegrad.RNN:
    """Return a network whose states shrink or grow by a gain where no input comes.

    Of its biases only those of the forget or the update gate are not 0.
    """
    net = vegrad.RNN(*SIZES, cell=cell, layers=layers, dtype=dtype, seed=0, **options)
    for name, parameter in net.parameters.items():
        if "bias" in name:
            parameter[...] = 0
        elif cell == "relu":  # that all stay positive
            np.abs(parameter, out=parameter)
        if "weight_hh" in name:
            if cell in ("tanh", "relu"):
                parameter[...] = gain * np.roll(np.eye(SIZES[1]), 1, axis=0)
            else:
                parameter *= gain
        if "bias_hh" in name and cell in ("lstm", "gru"):
            parameter[SIZES[1] : 2 * SIZES[1]] = -2
    return net


def impulse(dtype: str, rows: int = 5) -> np.ndarray:
    """Return sequences with an input at their first two steps alone."""
    x = np.zeros((rows, STEPS[dtype], SIZES[0]), dtype)
    x[:, :2] = np.random.default_rng(0).uniform(0.5, 1, (rows, 2, SIZES[0]))
    return x


EXPECTED: dict[int, reference.Pass] = {}


def expected_of(net: vegrad.RNN, *data: np.ndarray, **options: Any) -> reference.Pass:
    """Return what the reference has for a case, which is the same on every instruction set."""
    arrays = (*net.parameters.values(), *data, *options.values())
    key = hash((repr(net), *(np.asarray(array).tobytes() for array in arrays)))
    if key not in EXPECTED:
        EXPECTED[key] = reference.run(net.parameters, *data, **options, **net.config)
    return EXPECTED[key]


def assert_flow(net: vegrad.RNN, x: np.ndarray, target: np.ndarray, **options: Any) -> None:
    """Check the flow, and gradients as far as the dtype has them, against the reference."""
    loss = net.backward(x, target, **options)
    expected = expected_of(net, x, target, **options)
    near = {"float32": 1e-4, "float64": 1e-11}[net.config["dtype"]]
    for name in FLOWS:
        np.testing.assert_allclose(
            getattr(net.flow, name), expected.flow[name], rtol=0, atol=near, err_msg=name
        )
    assert loss == pytest.approx(expected.loss, rel=1e-4)
    for name, gradient in expected.gradients.items():
        want, got = as_dtype(gradient, net.config["dtype"]), net.gradients[name]
        if gradient.exponent < 60:  # else states, of which it is made, may be infinite
            end = 1e4 * float(np.finfo(want.dtype).tiny)  # where products are lost
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max() + end)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(
    ("cell", "gain", "dtype"),
    [
        ("tanh", 0.25, "float32"),
        ("tanh", 0.25, "float64"),
        ("relu", 0.25, "float32"),
        ("relu", 0.25, "float64"),
        ("relu", 5.0, "float32"),
        ("relu", 5.0, "float64"),
        ("lstm", 0.25, "float32"),  # of float64 the reference has one exponent for all gates
        ("gru", 0.25, "float32"),
    ],
)
def test_states_out_of_range(isa: str, cell: str, gain: float, layers: int, dtype: str) -> None:
    net = fading(cell, dtype, layers=layers, gain=gain)
    assert_flow(net, impulse(dtype), np.ones((5, 2), dtype))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("targets", ["last", "all"])
def test_rows_of_unequal_length_leave_the_range_at_steps_of_their_own(
    isa: str, cell: str, targets: str
) -> None:
    """Of float32 alone: the reference has float64 with one exponent for all rows."""
    dtype = "float32"
    net = fading(cell, dtype, layers=2, gain=0.25, targets=targets)
    x = impulse(dtype)
    lengths = np.array([1, 1.0, 0.4, 0.7, 0.02]) * x.shape[1]
    x[1, -30:] = 0.5  # and comes back
    target = np.zeros((5, 2) if targets == "last" else (*x.shape[:2], 2), dtype)
    assert_flow(net, x, target, lengths=lengths.astype(int))


@both_dtypes
def test_units_that_are_off_stay_off(isa: str, dtype: str) -> None:
    """Half of relu's units, also where all of them are too small, or too large, for the dtype."""
    for gain in (0.25, 5.0):
        net = fading("relu", dtype, layers=1, gain=gain)
        net.parameters["rnn.weight_ih_l0"][::2] *= -1
        U = net.parameters["rnn.weight_hh_l0"]
        U[...] = gain * np.eye(6)
        U[0, 1] = -gain  # and stays off by what unit 1 gives it
        assert_flow(net, impulse(dtype), np.zeros((5, 2), dtype))


@both_dtypes
@pytest.mark.parametrize("gain", [0.25, 5.0])
def test_the_gradient_does_not_depend_on_whether_the_flow_is_measured(
    isa: str, keep_threads: None, gain: float, dtype: str
) -> None:
    net = fading("relu", dtype, layers=2, gain=gain)
    x, target = impulse(dtype), np.ones((5, 2), dtype)
    found = []
    for threads, flow in ((1, True), (1, False), (3, True), (3, False)):
        vegrad.set_num_threads(threads)
        loss = net.backward(x, target, flow=flow)
        assert net.loss(x, target) == pytest.approx(loss, rel=1e-5)
        found.append([gradient.tobytes() for gradient in net.gradients.values()])
    assert found[0] == found[1] == found[2] == found[3]
    net.backward(x, target, truncation=(3, x.shape[1]))
    assert [gradient.tobytes() for gradient in net.gradients.values()] == found[0]


@both_dtypes
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [10_000, 100_000])
def test_halves_over_many_steps(isa: str, cell: str, steps: int, dtype: str) -> None:
    """Forward and back, h, δ and what carries them shrink by a half at each step."""
    net = linear(0.5 * np.eye(4), dtype) if cell in ("tanh", "relu") else None
    if net is None or cell == "tanh":
        net = vegrad.RNN(1, 4, 1, cell=cell, dtype=dtype, seed=0)
        for name, parameter in net.parameters.items():
            parameter[...] = 1 if name == "head.weight" else 0
    if cell == "tanh":
        net.parameters["rnn.weight_hh_l0"][...] = 0.5 * np.eye(4)
    state = np.full((1, 2, 4), 2.0**-20, dtype)  # where tanh is straight
    x, target = np.zeros((2, steps, 1), dtype), np.ones((2, 1), dtype)
    net.backward(x, target, state=(state,) * reference.STATES[cell])
    flow, t = net.flow, np.arange(steps)
    first = -22.0 if cell == "lstm" else -21.0  # o = 1/2
    np.testing.assert_allclose(flow.hidden_log2[0] - first, -t, rtol=0, atol=1e-3)
    if cell == "lstm":  # nothing goes through U: κ is carried, and no δ but the last is there
        np.testing.assert_allclose(flow.carry_log2, -1.0, rtol=0, atol=1e-3)
        return
    np.testing.assert_allclose(flow.gain_log2, -1.0, rtol=0, atol=1e-3)
    size = flow.delta_log2[0] - flow.delta_log2[0, -1]
    np.testing.assert_allclose(size, t - steps + 1.0, rtol=0, atol=1e-3)


@both_dtypes
@pytest.mark.parametrize("cell", ["tanh", "lstm"])
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy"])
def test_gradients_of_a_loss_out_of_range(
    isa: str, loss: str, targets: str, cell: str, dtype: str
) -> None:
    """A network that is sure of its class; one whose output is right but for a tiny rest."""
    net = vegrad.RNN(*SIZES, cell=cell, targets=targets, loss=loss, dtype=dtype, seed=0)
    B, T = 4, 5
    x = np.random.default_rng(1).standard_normal((B, T, 2)).astype(dtype)
    bias = net.parameters["head.bias"]
    far, small, weights = (300, -30, -100) if dtype == "float32" else (3000, -600, -450)
    shape = (B,) if targets == "last" else (B, T)
    if loss == "mse":
        for name, parameter in net.parameters.items():
            parameter *= 0 if "bias" in name else 1
        head = net.parameters["head.weight"]
        head *= 2.0**weights
        x *= 2.0**small
        target: Any = np.zeros((*shape, 2), dtype)
    elif loss == "cross_entropy":
        bias[...] = [far, -far]
        target = np.zeros(shape, np.int64)
    else:
        bias[...] = [-far, far]
        target = np.zeros((*shape, 2), dtype) + np.array([0, 1], dtype)
    assert_flow(net, x, target)
    assert net.flow.delta_log2[0, -1] < np.log2(np.finfo(dtype).tiny)
