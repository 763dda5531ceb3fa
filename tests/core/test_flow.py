"""The flow against the reference: ordinary networks, and those that leave the dtype's range."""

import math
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import reference
from tests.core.flow_checks import (
    clearance,
    data,
    diagonal,
    expected,
    measure,
    network,
    well_conditioned,
)

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


# ------------------------------------------------------------------------- ordinary networks


@both_dtypes
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", reference.NORMS)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_activation(
    isa: str, activation: str, norm: str | None, residual: bool, dtype: str
) -> None:
    for loss, rows in zip(reference.LOSSES, (1, 9, 70), strict=True):
        net = vegrad.MLP([11, 17, 17, 17, 17, 5], activation=activation, loss=loss, norm=norm,
                         residual=residual, dtype=dtype, seed=4)  # fmt: skip
        x, target = data(rows, 11, 5)
        measure(
            net, x, target if loss == "mse" else target.argmax(1) if loss[0] == "c" else target > 0
        )


@both_dtypes
@given(
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=7),
    rows=st.integers(1, 70),
    activation=st.sampled_from([a for a in reference.ACTIVATIONS if a != "hard_tanh"]),
    output=st.sampled_from(["identity", "sigmoid", "tanh"]),
    gain=st.sampled_from([0.01, 0.5, 1.0, 2.0]),
    residual=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_every_shape(
    isa: str, dtype: str, widths: list[int], rows: int, gain: float, seed: int, **options: Any
) -> None:
    net = vegrad.MLP(widths, init="normal", sigma_w=gain, sigma_b=0.5 * gain, dtype=dtype,
                     seed=seed, **options)  # fmt: skip
    x, target = data(rows, widths[0], widths[-1], seed)
    assume(clearance(net, x, target) > 1e-5)  # or rounding may change a sign
    assume(well_conditioned(net, x, target))
    measure(net, x, target)


@both_dtypes
@pytest.mark.parametrize(("sizes", "rows"), [([64, 512, 512, 10], 300), ([64] * 31, 257)])
def test_more_than_one_block(isa: str, sizes: list[int], rows: int, dtype: str) -> None:
    net = vegrad.MLP(sizes, activation="tanh", norm="layer", residual=True, dtype=dtype, seed=1)
    measure(net, *data(rows, sizes[0], sizes[-1]))


@both_dtypes
def test_gains_add_up(isa: str, dtype: str) -> None:
    net = vegrad.MLP([8] * 12, activation="silu", residual=True, norm="rms", dtype=dtype, seed=2)
    net.backward(*data(20, 8, 8))
    flow = net.flow
    together = flow.weight_gain_log2 + flow.activation_gain_log2
    np.testing.assert_allclose(flow.gain_log2, together, atol=1e-9)
    np.testing.assert_allclose(
        flow.gain_log2, flow.delta_log2[:-1] - flow.delta_log2[1:], atol=1e-9
    )
    assert flow.chain_log10 == pytest.approx(flow.gain_log2.sum() * math.log10(2), abs=1e-9)
    assert len(flow.gain_log2) == len(flow.delta_log2) - 1 == 10

    flow, _ = measure(vegrad.MLP([4, 3], dtype=dtype, seed=0), *data(5, 4, 3))
    assert flow.gain_log2.shape == flow.weight_gain_log2.shape == (0,)
    assert flow.chain_log10 == 0


def test_a_flow_stays_as_it_was_measured() -> None:
    net = vegrad.MLP([4, 5, 3], seed=0)
    x, target = data(6, 4, 3)
    net.backward(x, target)
    first = net.flow
    before = first.to_dict()
    net.backward(10 * x, target)
    assert first.to_dict() == before
    assert net.flow.to_dict() != before


@both_dtypes
@pytest.mark.parametrize("shift", [100.0, -3e4])
def test_spread_of_preactivations_far_from_zero(isa: str, shift: float, dtype: str) -> None:
    """Not the difference of two large numbers: mean² would swallow the variance."""
    net = vegrad.MLP([16, 40, 3], activation="identity", dtype=dtype, seed=0)
    net.parameters["layers.0.bias"][...] = shift
    x, target = data(100, 16, 3)
    want, x, target = expected(net, x, target)
    net.backward(x, target)
    relative = 4 * abs(shift) * np.finfo(dtype).eps  # z itself is rounded
    np.testing.assert_allclose(
        net.flow.preactivation_std[0], want.flow["preactivation_std"][0], rtol=relative + 1e-6
    )


@both_dtypes
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_the_scale_of_the_loss_moves_sizes_and_not_gains(activation: str, dtype: str) -> None:
    net = vegrad.MLP([6, 9, 9, 9, 4], activation=activation, dtype=dtype, seed=3)
    x, direction = data(30, 6, 4)
    output = net.forward(x)
    flows = []
    for scale in (1.0, 2.0**60):  # δ_L is the distance to the target, and this many times it
        net.backward(x, output + scale * direction.astype(dtype))
        flows.append(net.flow)
    near, far = flows
    np.testing.assert_allclose(near.gain_log2, far.gain_log2, atol=1e-5)
    np.testing.assert_allclose(near.weight_gain_log2, far.weight_gain_log2, atol=1e-5)
    np.testing.assert_allclose(far.delta_log2 - near.delta_log2, 60, atol=1e-5)
    np.testing.assert_allclose(far.gradient_log2 - near.gradient_log2, 60, atol=1e-5)
    np.testing.assert_array_equal(near.activation_rms, far.activation_rms)


# --------------------------------------------------------------------- vanishing and exploding


@both_dtypes
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu"])
@pytest.mark.parametrize("gain", [2.0**-6, 2.0**6])
@pytest.mark.parametrize("bias", ["of the layer's size", "large", "small"])
def test_biases_beside_values_far_from_one(
    isa: str, bias: str, gain: float, activation: str, dtype: str
) -> None:
    """From the eighth layer on all is beside a power of two, which a large bias takes off again."""
    rng = np.random.default_rng(9)
    net = network(
        [16] * 21,
        lambda layer, shape: gain * rng.standard_normal(shape) / 3,
        activation=activation,
        dtype=dtype,
    )
    size = {"of the layer's size": gain**14, "large": 2.0**90, "small": 2.0**-100}[bias]
    net.parameters["layers.14.bias"][...] = size * rng.standard_normal(16)
    x, target = data(40, 16, 16, 3)
    assert well_conditioned(net, x, target)
    measure(net, x, target)


@both_dtypes
@pytest.mark.parametrize("depth", [50, 200, 1000])
@pytest.mark.parametrize(
    ("activation", "sigma_w"),
    [("sigmoid", 1.0), ("tanh", 0.5), ("relu", 0.7), ("identity", 0.3), ("gelu", 0.5),
     ("silu", 0.5), ("elu", 0.5), ("softplus", 0.2), ("erf", 0.4), ("leaky_relu", 0.5),
     ("selu", 0.3)],
)  # fmt: skip
def test_vanishing(isa: str, activation: str, sigma_w: float, depth: int, dtype: str) -> None:
    # A product of 1000 random matrices is so ill-conditioned that rounding alone, in any order of
    # summation, moves float32 by more than 1e-3. Orthogonal ones keep their digits.
    init = {"init": "orthogonal"} if depth == 1000 else {"init": "normal", "sigma_w": sigma_w}
    x, target = data(3, 12, 12)
    for seed in range(20):  # the first whose pre-activations keep off the kink at 0
        net = vegrad.MLP([12] * (depth + 1), activation=activation, dtype=dtype, seed=seed, **init)
        for layer in range(depth if depth == 1000 else 0):
            net.parameters[f"layers.{layer}.weight"][...] *= sigma_w
        if activation not in ("relu", "leaky_relu", "selu") or clearance(net, x, target) > 1e-5:
            break
    flow, want = measure(net, x, target)
    assert np.isfinite(flow.delta_log2).all()
    if want.flow["gradient_log2"][0] < math.log2(np.finfo(dtype).tiny) - 10:
        assert not net.gradients["layers.0.weight"].any()
    if depth == 1000:
        assert flow.chain_log10 < -100


@both_dtypes
@pytest.mark.parametrize(
    ("activation", "norm", "residual"),
    [("relu", None, False), ("identity", None, False), ("leaky_relu", None, False),
     ("relu", None, True), ("relu", "layer", False), ("relu", "rms", True)],
)  # fmt: skip
def test_exploding(isa: str, activation: str, norm: str | None, residual: bool, dtype: str) -> None:
    """Activations overflow float32 as well: 4^200 without a norm."""
    net = vegrad.MLP([16] * 201, activation=activation, init="normal", sigma_w=8.0, norm=norm,
                     residual=residual, dtype=dtype, seed=7)  # fmt: skip
    flow, _ = measure(net, *data(10, 16, 16))
    assert np.isfinite(flow.delta_log2).all()
    if norm is None:
        assert flow.activation_rms[-1] > 2.0**300
        assert flow.chain_log10 > 50
        if dtype == "float32":
            assert np.isinf(net.gradients["layers.0.weight"]).any()


@both_dtypes
@pytest.mark.parametrize("loss", reference.LOSSES)
def test_outputs_beyond_the_range_of_each_loss(isa: str, loss: str, dtype: str) -> None:
    for size in (2.0**12, 2.0**-12):
        net = network([3] * 101, diagonal(size), activation="identity", loss=loss, dtype=dtype)
        x = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]])
        target = {"mse": x, "cross_entropy": np.array([2, 2])}.get(loss, x > 0.3)
        flow, want = measure(net, x, target)
        assert np.isfinite(flow.gain_log2).all() == np.isfinite(want.flow["gain_log2"]).all()


@both_dtypes
@pytest.mark.parametrize("size", [2.0**-100, 2.0**50, 2.0**-120, 2.0**100])
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "hard_tanh"])
def test_chains_of_a_hundred_thousand_powers_of_two(
    isa: str, activation: str, size: float, dtype: str
) -> None:
    if activation == "hard_tanh" and size > 1:
        pytest.skip("hard_tanh is constant there")
    net = network([3] * 1002, diagonal(size), activation=activation, dtype=dtype)
    x, target = np.array([[1.0, 2.0, 0.5], [0.25, 3.0, 1.0]]), np.ones((2, 3))
    flow, _ = measure(net, x, target)
    want = math.log2(size) * 1000
    assert flow.delta_log2[0] - flow.delta_log2[-1] == pytest.approx(want, abs=1e-3)
    np.testing.assert_allclose(flow.gain_log2, math.log2(size), atol=1e-3)
    assert flow.chain_log10 == pytest.approx(want * math.log10(2), rel=1e-7)


@both_dtypes
def test_exploding_backward_from_an_input_of_zero(isa: str, dtype: str) -> None:
    """The forward pass is 0 everywhere; only δ leaves the range. ∂loss/∂W = δᵀ·0 is 0."""
    net = network([4] * 1001, diagonal(2.0**60), activation="identity", dtype=dtype)
    flow, _ = measure(net, np.zeros((3, 4)), np.ones((3, 4)))
    assert flow.delta_log2[0] - flow.delta_log2[-1] == pytest.approx(60 * 999, abs=1e-3)
    assert np.all(flow.gradient_log2 == -np.inf)
    assert np.all(flow.activation_rms == 0)
    assert np.isinf(net.gradients["layers.0.bias"]).all()
    assert not net.gradients["layers.0.weight"].any()


@both_dtypes
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("size", [2.0**-30, 2.0**-18, 2.0**-5])
def test_small_values(isa: str, activation: str, size: float, dtype: str) -> None:
    """Each layer 2^-30, 2^-18, 2^-5 times the last: through every size on the way to 0."""
    rng = np.random.default_rng(3)
    net = network(
        [6] * 41,
        lambda layer, shape: size * (np.eye(*shape) + 0.3 * rng.standard_normal(shape)),
        activation=activation,
        dtype=dtype,
    )
    x, target = data(5, 6, 6)
    measure(net, np.abs(x) + 0.1, target)


@both_dtypes
@pytest.mark.parametrize("flow", [True, False])
def test_a_gradient_that_fits_though_its_delta_does_not(isa: str, flow: bool, dtype: str) -> None:
    """δ_0 = 2^-100·2^-100 is below float32; times x = 2^120 the gradient is 2^-80."""
    wide = dtype == "float64"
    step, size = (700, 800) if wide else (100, 120)
    net = network([1, 1, 1, 1], diagonal(2.0**-step), activation="identity", dtype=dtype)
    net.parameters["layers.0.weight"][...] = 2.0**-size
    net.backward(np.full((1, 1), 2.0**size, dtype), np.full((1, 1), -0.5, dtype), flow=flow)
    # h_0 = 1, h_3 = 2^-2step, δ_3 = 2 (2^-2step + 1/2) = 1
    got = [float(net.gradients[f"layers.{i}.weight"][0, 0]) for i in range(3)]
    assert got == [2.0 ** (size - 2 * step), 2.0**-step, 2.0**-step]
    tiny = float(np.finfo(dtype).tiny)
    want = 2.0 ** (-2 * step) if wide and 2.0 ** (-2 * step) >= tiny else 0.0
    assert net.gradients["layers.0.bias"][0] == want


# --------------------------------------------------------------------------- saturated and dead


@both_dtypes
@pytest.mark.parametrize(
    ("activation", "at"),
    [("sigmoid", 200.0), ("sigmoid", -200.0), ("sigmoid", -2000.0), ("tanh", 60.0),
     ("tanh", -60.0), ("tanh", 700.0), ("erf", 20.0), ("erf", -20.0), ("erf", 40.0),
     ("elu", -300.0), ("elu", -1500.0), ("selu", -300.0), ("softplus", -250.0), ("gelu", -20.0),
     ("gelu", -45.0), ("silu", -300.0), ("silu", -1500.0),
     # around float32's smallest normal number, where intermediate results are flushed
     ("sigmoid", 82.0), ("sigmoid", 86.0), ("sigmoid", 87.5), ("tanh", 43.0), ("tanh", 44.2),
     ("erf", 9.3), ("elu", -87.8), ("selu", -88.0), ("softplus", -86.0), ("gelu", -13.1),
     ("silu", -89.0)],
)  # fmt: skip
def test_derivatives_below_the_range(isa: str, activation: str, at: float, dtype: str) -> None:
    """One saturated layer among five: φ′ is under 2^-126, or under 2^-1022."""
    net = vegrad.MLP([4, 6, 6, 6, 6, 3], activation=activation, dtype=dtype, seed=1)
    net.parameters["layers.2.weight"][...] = np.eye(6) / 4
    net.parameters["layers.2.bias"][...] = at
    flow, _ = measure(net, *data(8, 4, 3))
    assert flow.saturated[2] == 1
    assert flow.dead[2] == 0  # a little does come through
    assert np.isfinite(flow.delta_log2).all()
    assert flow.gain_log2[2] < -100


@both_dtypes
@pytest.mark.parametrize(
    ("activation", "at"), [("sigmoid", 9.0), ("sigmoid", 30.0), ("tanh", 9.0), ("tanh", -12.0),
                           ("erf", 4.0), ("erf", 6.0), ("gelu", -6.0), ("silu", -30.0)]
)  # fmt: skip
def test_saturated_layers_all_the_way(isa: str, activation: str, at: float, dtype: str) -> None:
    """Where 1 - h² or h (1 - h) have no digits left."""
    net = vegrad.MLP([6] * 41, activation=activation, dtype=dtype, seed=1)
    for layer in range(40):
        net.parameters[f"layers.{layer}.weight"][...] *= 0.3
        net.parameters[f"layers.{layer}.bias"][...] = at
    flow, _ = measure(net, *data(8, 6, 6))
    assert np.all(flow.saturated[:-1] == 1)


@both_dtypes
@pytest.mark.parametrize("gap", [1.0, 12.0, 40.0, 90.0, 200.0, 800.0])
def test_a_loss_that_is_nearly_nothing(isa: str, gap: float, dtype: str) -> None:
    """1 - p of a sure and right answer has no digits in float32 from a gap of 17 on."""
    options = {"activation": "tanh", "dtype": dtype, "seed": 0}
    for loss, bias, target in (
        ("cross_entropy", [gap, 0.0, -1.0], np.zeros(4, np.int64)),
        ("binary_cross_entropy", [gap, -gap, gap + 1.0], np.tile([1.0, 0.0, 1.0], (4, 1))),
    ):
        net = vegrad.MLP([5, 6, 3], loss=loss, **options)
        net.parameters["layers.1.weight"][...] *= 0.1
        net.parameters["layers.1.bias"][...] = bias
        measure(net, data(4, 5, 3)[0], target)


@both_dtypes
@pytest.mark.parametrize("activation", ["relu", "hard_tanh"])
def test_a_dead_layer(isa: str, activation: str, dtype: str) -> None:
    net = vegrad.MLP([4, 6, 6, 6, 3], activation=activation, dtype=dtype, seed=1)
    net.parameters["layers.1.bias"][...] = -100
    net.parameters["layers.2.bias"][...] = 0.5  # alive although its input is constant
    flow, _ = measure(net, *data(8, 4, 3))
    assert flow.dead[1] == 1
    assert np.all(flow.delta_log2[:2] == -np.inf)
    assert np.all(np.isfinite(flow.delta_log2[2:]))
    assert flow.gain_log2[1] == -np.inf
    assert np.isnan(flow.gain_log2[0])  # 0/0
    assert np.isnan(flow.chain_log10) or flow.chain_log10 == -np.inf
    assert not net.gradients["layers.0.weight"].any()


@both_dtypes
def test_dead_units_are_counted(isa: str, dtype: str) -> None:
    """Dead is dead on the whole batch: one row is enough to be alive."""
    net = vegrad.MLP([2, 20, 1], activation="relu", dtype=dtype, seed=1)
    net.parameters["layers.0.weight"][...] = 0
    net.parameters["layers.0.weight"][5:, 0] = 1
    net.parameters["layers.0.bias"][...] = np.where(np.arange(20) < 15, -1.0, 1.0)
    x = np.zeros((150, 2))
    x[149, 0] = 3  # the row that wakes units 5 to 14
    flow, _ = measure(net, x, np.ones((150, 1)))
    assert flow.dead.tolist() == [0.25, 0]
    assert flow.saturated[0] == pytest.approx((15 * 150 - 10) / (20 * 150))


@both_dtypes
@pytest.mark.parametrize("size", [2.0**-90, 2.0**-20, 0.0])
def test_one_broken_layer(isa: str, size: float, dtype: str) -> None:
    net = vegrad.MLP([8] * 9, activation="tanh", dtype=dtype, seed=1)
    net.parameters["layers.5.weight"][...] *= size
    net.parameters["layers.6.bias"][...] = 0.5
    flow, _ = measure(net, *data(20, 8, 8))
    if size:
        assert flow.weight_gain_log2[4] == pytest.approx(math.log2(size), abs=3)
    else:
        assert flow.gain_log2[4] == flow.weight_gain_log2[4] == -np.inf
        assert np.isnan(flow.gain_log2[:4]).all()


@both_dtypes
def test_layers_far_apart_in_size_with_a_skip(isa: str, dtype: str) -> None:
    """h + φ(z) where one term is 2^±60 times the other, forward and backward."""
    for size in (2.0**-60, 2.0**60):
        net = network([5] * 31, diagonal(size), activation="identity", residual=True, dtype=dtype)
        measure(net, *data(6, 5, 5))
