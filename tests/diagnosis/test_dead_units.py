"""Advise what brings dead units back: no scale of their weights does."""

import numpy as np
import pytest
import vegrad
from vegrad.flow.edits import Redraw, Scale, parts

X = np.random.default_rng(0).standard_normal((200, 16))
TARGET = np.random.default_rng(1).integers(0, 3, 200)


def made(activation: str = "relu") -> vegrad.MLP:
    scheme = "he_normal" if activation == "relu" else "lecun_normal"
    sizes = [16, 32, 32, 32, 3]
    return vegrad.MLP(sizes, activation=activation, loss="cross_entropy", init=scheme, seed=0)


@pytest.mark.parametrize("factor", [1.0, 30.0, 3e4])
def test_dead_units_are_alive_after_the_first_advice(factor: float) -> None:
    net = made()
    # Every unit has weights below 0 for inputs that are never below 0, by as much as it likes.
    weights = -abs(net.parameters["layers.1.weight"])
    weights[:, ::4] *= 10
    net.parameters["layers.1.weight"][...] = factor * weights
    net.parameters["layers.1.bias"][...] = -0.01
    found = vegrad.diagnose(net, X, TARGET)
    first = found.findings[0]
    assert first.kind == "dead"
    assert 1 in first.layers
    assert first.edit is not None
    assert not any(isinstance(one, Scale) for one in parts(first.edit))
    assert found.apply(net)
    assert "dead" not in {one.kind for one in vegrad.diagnose(net, X, TARGET).findings}


def test_weights_too_large_for_a_relu_are_drawn_again_and_those_of_tanh_scaled() -> None:
    net = made()
    net.parameters["layers.1.weight"][...] = -abs(net.parameters["layers.1.weight"])
    net.parameters["layers.1.weight"][::8] *= 1e3  # so that they spread further than their mean
    first = vegrad.diagnose(net, X, TARGET).findings[0]
    assert first.kind == "dead"
    assert first.evidence["std"] > abs(first.evidence["mean"])
    assert first.edit == Redraw(("layers.1.weight", "layers.1.bias"))
    bounded = made("tanh")
    bounded.parameters["layers.1.weight"][...] *= 30
    first = vegrad.diagnose(bounded, X, TARGET).findings[0]
    assert first.kind == "saturated"
    assert isinstance(first.edit, Scale)


def test_no_weights_bring_units_back_that_are_given_nothing() -> None:
    """Constant columns are 0 once they are standardized: whatever is drawn, units are dead."""
    first = vegrad.diagnose(made(), np.zeros_like(X), TARGET).findings[0]
    assert (first.kind, first.edit) == ("dead", None)
    assert 0 in first.layers
    assert "x is made: it is 0 in every row" in first.advice
    net = made()
    net.parameters["layers.0.bias"][...] = -1.0
    alike = vegrad.diagnose(net, np.zeros_like(X) + 1e-3, TARGET).findings[0]
    assert alike.edit is not None  # a bias can mend that
