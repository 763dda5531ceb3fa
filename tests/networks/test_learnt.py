"""A network that has learnt its task is healthy, though its units are sure of themselves."""

import numpy as np
import pytest
import vegrad

from tests.networks.test_raw_inputs import LABEL, X


def trained(activation: str, epochs: int) -> vegrad.MLP:
    net = vegrad.MLP([2, 32, 32, 3], activation=activation, loss="cross_entropy", seed=0)
    adam = vegrad.Adam(1e-2)
    more = {"optimizer": adam, "batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    net.fit(X, LABEL, epochs=epochs, **more)
    return net


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_what_has_learnt_is_left_as_it_is(activation: str) -> None:
    net = trained(activation, 150)
    assert np.mean(net.forward(X).argmax(1) == LABEL) > 0.98
    found = vegrad.diagnose(net, X, LABEL)
    assert found.healthy, str(found)
    assert "it has learnt: its loss is" in found.summary
    assert found.apply(net) is None


def test_what_is_saturated_and_has_not_learnt_is_called_so() -> None:
    net = trained("tanh", 2)
    for layer in (0, 1):
        net.parameters[f"layers.{layer}.weight"][:] *= 20
    found = vegrad.diagnose(net, X, LABEL)
    assert found.verdict == "saturated"
    assert "has learnt" not in found.looked_at


def test_a_nan_is_found_in_any_network() -> None:
    net = trained("tanh", 150)
    net.parameters["layers.1.weight"][0, 0] = np.nan
    assert vegrad.diagnose(net, X, LABEL).verdict == "nonfinite"
