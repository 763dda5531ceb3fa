"""Diagnoses of what is wrong at the loss of own networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vegrad

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 10))
NUMBERS = RNG.standard_normal((64, 1))
SIGNS = (NUMBERS > 0) * 1.0
LABELS = RNG.integers(0, 4, 64)


def cause(outputs: int, target: Any, **options: Any) -> str:
    network = vegrad.MLP([10, 32, 32, outputs], seed=0, **options)
    found = vegrad.diagnose(network, X, target, resamples=0).findings
    return found[0].cause if found else ""


@pytest.mark.parametrize(
    ("outputs", "target", "options", "wanted"),
    [
        (1, 0 * LABELS, {"loss": "cross_entropy"}, "constant-output"),
        (4, LABELS, {"loss": "cross_entropy"}, ""),
        (4, LABELS, {"loss": "cross_entropy", "output": "sigmoid"}, "double-softmax"),
        (1, SIGNS, {"loss": "binary_cross_entropy"}, ""),
        (
            1,
            SIGNS,
            {"loss": "binary_cross_entropy", "output": "relu"},
            "output-range",
        ),
        (1, NUMBERS, {"output": "sigmoid"}, "output-range"),
        (1, SIGNS, {"output": "sigmoid"}, ""),
        (1, NUMBERS[:, 0], {"norm": "layer", "residual": True}, ""),
        (1, NUMBERS, {"output": "tanh", "norm": "rms", "residual": True}, "output-range"),
        (1, 1e5 * NUMBERS, {}, "target-scale"),
        (1, 10 + 3 * NUMBERS, {}, ""),
        (1, 100 + NUMBERS, {"activation": "relu"}, "target-scale"),
        (1, -100 + NUMBERS, {}, "target-scale"),
        (1, 5 + NUMBERS, {}, ""),
        (1, np.exp(3 + NUMBERS / 2), {}, ""),  # prices
    ],
)
def test_an_output_beside_its_target(
    outputs: int, target: Any, options: dict[str, Any], wanted: str
) -> None:
    assert cause(outputs, target, **options) == wanted


def test_an_output_that_begins_at_the_mean_of_its_target() -> None:
    network = vegrad.MLP([10, 32, 1], seed=0)
    network.parameters["layers.1.bias"][:] = 100
    assert vegrad.diagnose(network, X, 100 + NUMBERS, resamples=0).healthy


def test_a_target_at_0_is_not_to_blame_for_outputs_far_away() -> None:
    network = vegrad.MLP([10, 32, 1], seed=0)
    network.parameters["layers.1.bias"][:] = 100
    found = vegrad.diagnose(network, X, NUMBERS, resamples=0).findings
    assert "target-scale" not in [one.cause for one in found]


def test_a_training_whose_target_is_far_off_is_told_so_first() -> None:
    network = vegrad.MLP([10, 32, 1], activation="tanh", seed=0)
    more = {"optimizer": vegrad.Adam(1e-3), "epochs": 5, "batch_size": 16, "seed": 0}
    with pytest.warns(vegrad.FindingWarning, match="the targets are 100 ± 0.996"):
        history = network.fit(X, 100 + NUMBERS, progress=False, **more)
    assert history.findings[0].cause == "target-scale"
    cured = vegrad.cure(vegrad.MLP([10, 32, 1], seed=0), X, 100 + NUMBERS, seed=0)
    assert "its |mean| was 100, its standard deviation 0.9" in str(cured)


def test_units_that_are_copies() -> None:
    network = vegrad.MLP([10, 32, 32, 4], loss="cross_entropy", seed=0)
    for name in ("layers.0.weight", "layers.1.weight"):
        network.parameters[name][...] = 0.1
    diagnosis = vegrad.diagnose(network, X, LABELS)
    assert diagnosis.findings[0].cause == "symmetry"
    diagnosis.apply(network)
    assert vegrad.diagnose(network, X, LABELS).healthy


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_units_of_a_cell_that_are_copies(cell: str, value: float) -> None:
    network = vegrad.RNN(2, 8, 4, cell=cell, loss="cross_entropy", seed=0)
    x = X.reshape(64, 5, 2)
    assert vegrad.diagnose(network, x, LABELS).healthy
    for parameter in network.parameters.values():
        parameter[...] = value
    network.parameters["rnn.bias_hh_l0"][:2] = value + 1  # units differ by it
    assert "symmetry" not in [f.cause for f in vegrad.diagnose(network, x, LABELS).findings]
    network.parameters["rnn.bias_hh_l0"][:] = value
    more = {"optimizer": vegrad.SGD(0.1), "epochs": 1, "batch_size": 32, "seed": 0}
    with pytest.warns(vegrad.FindingWarning, match="are copies of each other"):
        network.fit(x, LABELS, progress=False, **more)
    diagnosis = vegrad.diagnose(network, x, LABELS)
    assert diagnosis.findings[0].cause == "symmetry"
    diagnosis.apply(network)
    assert vegrad.diagnose(network, x, LABELS).healthy
