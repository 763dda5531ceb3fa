"""init="critical" and LSUV: what they promise, measured."""

import math
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import theory
from vegrad.theory.meanfield import CRITICAL_SIGMA_B

from tests import reference

CRITICAL = [name for name in reference.ACTIVATIONS if name != "softplus"]


def rows(inputs: int = 40, count: int = 200) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, inputs)) * 1.7


# --------------------------------------------------------------------------------- init="critical"


@pytest.mark.parametrize("activation", CRITICAL)
def test_critical_weights(activation: str) -> None:
    """N(0, σ_w²/fan_in) and N(0, σ_b²) at a stable point of theory; the same for a seed."""
    net = vegrad.MLP([300, 250, 200], activation=activation, init="critical", seed=4)
    b = CRITICAL_SIGMA_B[activation]
    point = theory.critical_point(activation, b)
    assert point is not None
    assert point.stable
    for layer, (inputs, outputs) in enumerate([(300, 250), (250, 200)]):
        weight = net.parameters[f"layers.{layer}.weight"]
        error = 5 / math.sqrt(2 * weight.size)
        assert weight.std() * math.sqrt(inputs) == pytest.approx(point.sigma_w, rel=error)
        bias = net.parameters[f"layers.{layer}.bias"]
        assert bias.std() == pytest.approx(b, rel=5 / math.sqrt(2 * outputs))
    normal = vegrad.MLP([300, 250, 200], activation=activation, init="normal",
                        sigma_w=point.sigma_w, sigma_b=b, seed=4)  # fmt: skip
    for one, other in zip(net.parameters.values(), normal.parameters.values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "selu", "sigmoid", "hard_tanh"])
def test_critical_gradients_keep_their_size(activation: str) -> None:
    """Once the variance has come to q*, ‖δ‖² changes by a few percent a layer at most."""
    gains = []
    for seed in range(4):
        net = vegrad.MLP(
            [40] + [200] * 30 + [10], activation=activation, init="critical", seed=seed
        )
        net.backward(rows(), np.random.default_rng(seed).standard_normal((200, 10)))
        gains.append(net.flow.gain_log2[8:-1])
    assert abs(np.mean(gains)) < 0.04


def test_critical_with_a_sigma_b_of_ones_own() -> None:
    net = vegrad.MLP([400, 400], activation="tanh", init="critical", sigma_b=0.0, seed=0)
    assert net.parameters["layers.0.weight"].std() * 20 == pytest.approx(1.0, rel=0.02)
    assert not net.parameters["layers.0.bias"].any()
    net = vegrad.MLP([400, 400], activation="tanh", init="critical", sigma_b=0.5, seed=0)
    assert net.parameters["layers.0.bias"].std() == pytest.approx(0.5, rel=0.2)


def test_critical_is_saved_and_loaded(tmp_path: Any) -> None:
    net = vegrad.MLP([7, 6, 5], activation="gelu", init="critical", sigma_b=0.7, seed=0)
    net.save(tmp_path / "net.safetensors")
    assert vegrad.MLP.load(tmp_path / "net.safetensors").config == net.config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation": "softplus"}, 'critical point, not \'softplus\'.*use activation="relu"'),
        ({"activation": "relu", "sigma_b": 0.1}, "relu has no critical point at sigma_b 0.1.*only"),
        ({"activation": "tanh", "sigma_w": 1.0}, 'sigma_w goes with init="normal"'),
        ({"activation": "tanh", "sigma_b": -1.0}, "sigma_b must be finite and not negative"),
    ],
)  # fmt: skip
def test_no_critical_network(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        vegrad.MLP([4, 4], init="critical", **options)


# ------------------------------------------------------------------------------------------- LSUV


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize(
    "more", [{}, {"residual": True}, {"norm": "layer", "residual": True}, {"norm": "rms"}]
)
def test_lsuv_gives_every_layer_its_deviation(activation: str, more: dict[str, Any]) -> None:
    net = vegrad.MLP([40, 30, 30, 50, 10], activation=activation, init="lsuv", seed=1, **more)
    before = [weight.copy() for weight in net.parameters.values()]
    factors = vegrad.lsuv_(net, rows(), target_std=1.3)
    net.backward(rows(), np.zeros((200, 10)))
    np.testing.assert_allclose(net.flow.preactivation_std, 1.3, rtol=1e-4)
    for layer in range(4):
        weight = net.parameters[f"layers.{layer}.weight"]
        np.testing.assert_allclose(weight, factors[layer] * before[2 * layer], rtol=1e-6)
    again = vegrad.lsuv_(net, rows(), target_std=1.3)
    np.testing.assert_allclose(again, 1, rtol=1e-4)


def test_lsuv_with_biases() -> None:
    """Biases stay, so that it takes several scalings."""
    net = vegrad.MLP([40, 30, 30, 10], init="normal", sigma_w=3.0, sigma_b=0.8, seed=1)
    bias = net.parameters["layers.1.bias"].copy()
    vegrad.lsuv_(net, rows(), tolerance=0.01, max_iterations=60)
    net.backward(rows(), np.zeros((200, 10)))
    np.testing.assert_allclose(net.flow.preactivation_std, 1.0, rtol=0.01)
    np.testing.assert_array_equal(net.parameters["layers.1.bias"], bias)


def test_lsuv_saves_a_deep_network() -> None:
    """At 30 layers: the gradient of theory's A(1)/B(1), Mishkin & Matas 2016."""
    for activation in ("relu", "tanh", "sigmoid"):
        net = vegrad.MLP([40] + [150] * 29 + [10], activation=activation, init="lsuv", seed=0)
        vegrad.lsuv_(net, rows())
        net.backward(rows(), np.random.default_rng(0).standard_normal((200, 10)))
        want = 0.5 * math.log2(theory.normalized_chi(activation))
        # relu and sigmoid are not centred: a standard deviation of 1 is less than q = 1.
        assert np.mean(net.flow.gain_log2[2:-1]) == pytest.approx(want, abs=0.35)


def test_lsuv_changes_nothing_where_it_fails() -> None:
    def refused(net: Any, x: Any, said: str, error: type[Exception] = ValueError, **o: Any) -> None:
        before = [weight.copy() for weight in net.parameters.values()]
        with pytest.raises(error, match=said):
            vegrad.lsuv_(net, x, **o)
        for one, other in zip(net.parameters.values(), before, strict=True):
            np.testing.assert_array_equal(one, other)

    net = vegrad.MLP([40, 30, 10], activation="relu", init="lsuv", seed=1)
    refused(net, rows()[:, :7], "x")
    refused(net, np.zeros((5, 40)), "layer 0 cannot be scaled.* is 0.0 on these 5 rows")
    refused(net, np.full((5, 40), np.nan), "layer 0 cannot be scaled.* is nan")
    refused(net, rows(), "target_std must be finite and positive, not 0", target_std=0)
    refused(net, rows(), "tolerance must be a number, not str", TypeError, tolerance="1")
    refused(net, rows(), "max_iterations must be at least 1, not 0", max_iterations=0)
    refused(net, rows(), "max_iterations must be an integer", TypeError, max_iterations=1.5)
    wide = vegrad.MLP([40, 30, 10], init="normal", sigma_w=1.0, sigma_b=3.0, seed=1)
    refused(wide, rows(), "layer 0 cannot be scaled: its .* after 10 scalings, not 1")
    dead = vegrad.MLP([40, 30, 10], activation="relu", init="lsuv", seed=1)
    dead.parameters["layers.0.bias"][...] = -100
    refused(dead, rows(), "layer 1 cannot be scaled.* is 0.0")
