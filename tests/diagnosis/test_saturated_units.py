"""Flat units are a fault where they keep the gradient up, and not where weights make up for it."""

import numpy as np
import pytest
import vegrad

from tests.spiral import spiral

X, LABEL = spiral()


def network(depth: int, activation: str, init: str, seed: int, **more: float) -> vegrad.MLP:
    sizes = [2, *[32] * (depth - 1), 3]
    return vegrad.MLP(
        sizes, activation=activation, init=init, loss="cross_entropy", seed=seed, **more
    )


@pytest.mark.parametrize(("depth", "seed"), [(3, 1), (6, 0), (6, 1), (16, 0), (16, 1)])
def test_critical_weights_make_up_for_flat_sigmoids(depth: int, seed: int) -> None:
    net = network(depth, "sigmoid", "critical", seed)
    found = vegrad.diagnose(net, X, LABEL)
    assert found.healthy, str(found)
    assert found.flow.saturated[:-1].max() > 0.5  # which is what others go by
    before = found.flow.delta_log2
    adam = vegrad.Adam(3e-3)
    more = {"batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    net.fit(X, LABEL, optimizer=adam, epochs=40, gauge_every=None, **more)
    assert np.ptp(before) < 2.7
    assert np.mean(net.forward(X).argmax(1) == LABEL) > 0.95


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_one_layer_that_is_flat_is_a_fault(activation: str) -> None:
    net = network(4, activation, "lecun_normal", 0)
    net.parameters["layers.1.weight"][...] *= 40
    found = vegrad.diagnose(net, X, LABEL)
    assert any(one.kind == "saturated" and one.layers == (1,) for one in found.findings)


def test_the_advice_for_deep_sigmoids_does_not_let_the_gradient_vanish() -> None:
    net = network(30, "sigmoid", "critical", 0)
    before = {name: one.copy() for name, one in net.parameters.items()}
    found = vegrad.diagnose(net, X, LABEL)
    assert found.verdict == "saturated"
    assert found.findings[0].advice.startswith('use activation="relu" with init="he_normal": ')
    assert found.apply(net) is None
    assert all((before[name] == one).all() for name, one in net.parameters.items())


def test_flat_layers_whose_gradients_grow_are_a_fault() -> None:
    found = vegrad.diagnose(network(12, "tanh", "normal", 0, sigma_w=6.0), X, LABEL)
    assert not found.healthy


def test_flat_units_that_take_raw_inputs_are_a_fault() -> None:
    net = network(4, "sigmoid", "critical", 0)
    assert vegrad.diagnose(net, X * 100, LABEL).verdict == "saturated"
