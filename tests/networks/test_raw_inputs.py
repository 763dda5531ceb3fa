"""Inputs that are not scaled are blamed on the data, and scaled ones on nobody."""

import numpy as np
import pytest
import vegrad
from vegrad.arrays.checks import Array
from vegrad.flow.edits import ScaleData

from tests.spiral import spiral

X, LABEL = spiral()
ACTIVATIONS = ("tanh", "sigmoid", "relu")
RAW = {
    "tiny": X * 1e-4,
    "large": X * 1e4,
    "one tiny column": X * [1e-4, 1],
    "one large column": X * [1e4, 1],
    "far offset": X + 1000,
    "offset": X + 10,
}
SCALED = {
    "as they are": X,
    "near offset": X + 1,
    "columns of unlike size": X * [0.05, 1],
    "rather large": X * 10,
    "rare small ones": np.c_[X, 1e-4 * (np.arange(len(X)) % 50 == 0)],
    "a constant": np.c_[X, np.full(len(X), 3.0)],
}


def diagnosed(x: Array, activation: str) -> vegrad.Diagnosis:
    sizes = [x.shape[1], 32, 32, 3]
    net = vegrad.MLP(sizes, activation=activation, loss="cross_entropy", seed=0)
    return vegrad.diagnose(net, x, LABEL)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", RAW)
def test_raw_inputs_are_blamed_on_the_data(name: str, activation: str) -> None:
    first = diagnosed(RAW[name], activation).findings[0]
    assert (first.cause, first.edit) == ("input-scale", ScaleData()), str(first)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", SCALED)
def test_scaled_inputs_are_not(name: str, activation: str) -> None:
    assert diagnosed(SCALED[name], activation).healthy


@pytest.mark.parametrize("factor", [1e-5, 1e-4])
def test_the_inputs_of_sequences_are_looked_at_too(factor: float) -> None:
    x = np.random.default_rng(0).standard_normal((64, 6, 3))
    target = (x[:, -1, 0] > 0).astype(int)
    net = vegrad.RNN(3, 16, 2, cell="gru", loss="cross_entropy", seed=0)
    assert vegrad.diagnose(net, x, target).healthy
    found = vegrad.diagnose(net, x * [factor, 1, 1], target)
    assert found.findings[0].cause == "input-scale", str(found)
    found = vegrad.diagnose(net, x * factor, target)
    assert found.findings[0].cause == "input-scale", str(found)


def test_a_diagnosis_leaves_gradients_and_flow_those_of_the_data() -> None:
    net = vegrad.MLP([2, 32, 3], loss="cross_entropy", seed=0)
    net.backward(RAW["tiny"], LABEL)
    before = {name: one.copy() for name, one in net.gradients.items()}
    vegrad.diagnose(net, RAW["tiny"], LABEL)
    assert all((net.gradients[name] == one).all() for name, one in before.items())


def test_shapes_that_do_not_fit_are_those_that_were_given() -> None:
    net = vegrad.MLP([2, 8, 3], loss="cross_entropy", seed=0)
    with pytest.raises(ValueError, match=r"\(300,\).*\(300, 1\)"):
        vegrad.diagnose(net, X, LABEL[:, None])
    with pytest.raises(ValueError, match=r"\(300, 4\)"):
        vegrad.diagnose(net, np.c_[X, X], LABEL)
    with pytest.raises(ValueError, match=r"\(300,\)"):
        vegrad.diagnose(net, X[:, 0], LABEL)


def test_weights_of_the_usual_size_are_not_blamed_for_pixels() -> None:
    x = np.round(np.random.default_rng(0).uniform(0, 16, (300, 64)))
    label = x[:, :3].argmax(1)

    def first(factor: float, x: Array) -> vegrad.Finding:
        sizes = [64, 32, 32, 3]
        net = vegrad.MLP(
            sizes, activation="tanh", init="lecun_normal", loss="cross_entropy", seed=0
        )
        net.parameters["layers.0.weight"][...] *= factor
        return vegrad.diagnose(net, x, label).findings[0]

    raw = first(1.0, x)
    assert (raw.kind, raw.cause, raw.edit) == ("saturated", "input-scale", ScaleData())
    assert first(10.0, x / 16).cause == "saturated-units"
    assert first(10.0, x).cause == "saturated-units"  # which are to blame as well


@pytest.mark.parametrize("name", [*RAW, *SCALED])
def test_a_training_says_so_at_its_first_batch(name: str) -> None:
    x = (RAW | SCALED)[name]
    net = vegrad.MLP([x.shape[1], 32, 32, 3], loss="cross_entropy", seed=0)
    adam = vegrad.Adam(1e-3)
    more = {"epochs": 1, "batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    history = net.fit(x, LABEL, optimizer=adam, **more)
    raw = any(one.finding.cause == "input-scale" for one in history.noted if one.step == 0)
    assert raw == (name in RAW)
