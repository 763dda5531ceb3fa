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
    ],
)
def test_an_output_beside_its_target(
    outputs: int, target: Any, options: dict[str, Any], wanted: str
) -> None:
    assert cause(outputs, target, **options) == wanted


def test_units_that_are_copies() -> None:
    network = vegrad.MLP([10, 32, 32, 4], loss="cross_entropy", seed=0)
    for name in ("layers.0.weight", "layers.1.weight"):
        network.parameters[name][...] = 0.1
    diagnosis = vegrad.diagnose(network, X, LABELS)
    assert diagnosis.findings[0].cause == "symmetry"
    diagnosis.apply(network)
    assert vegrad.diagnose(network, X, LABELS).healthy
