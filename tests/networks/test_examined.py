"""The pass that a diagnosis makes: outputs, and δ row by row, beside the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.networks import reading

from tests import reference

ROWS = 24
CASES: list[dict[str, Any]] = [
    {},
    {"activation": "relu", "norm": "layer"},
    {"activation": "silu", "norm": "rms", "residual": True},
    {"activation": "gelu", "loss": "cross_entropy", "dtype": "float64"},
    {"output": "sigmoid", "residual": True},
    {"activation": "sigmoid", "depth": 90},  # δ ends far below float32
]


def case(depth: int = 4, width: int = 9, **options: Any) -> tuple[vegrad.MLP, Any, Any]:
    network = vegrad.MLP([width] * (depth + 1), seed=1, **options)
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, width)).astype(network.config["dtype"])
    if network.config["loss"] == "cross_entropy":
        return network, x, random.integers(0, width, ROWS)
    return network, x, random.standard_normal((ROWS, width)).astype(network.config["dtype"])


@pytest.mark.parametrize("options", CASES, ids=str)
def test_sizes_of_rows_are_those_of_each_row_alone(options: dict[str, Any]) -> None:
    network, x, target = case(**options)
    seen = network.examined(x, target)
    assert seen.loss == network.backward(x, target)
    np.testing.assert_array_equal(seen.outputs, network.forward(x))
    sizes = np.log2(seen.row_squares) / 2 + seen.exponents[:, None]
    np.testing.assert_allclose(
        np.logaddexp2.reduce(2 * sizes, axis=1) / 2, network.flow.delta_log2, atol=1e-5
    )
    given = {**network.config, "parameters": network.parameters}
    for row in range(0, ROWS, 5):
        alone = reference.run(x=x[row : row + 1], target=target[row : row + 1], **given)
        wanted = alone.flow["delta_log2"] - np.log2(ROWS)
        np.testing.assert_allclose(sizes[:, row], wanted, atol=2e-4)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_batches_drawn_again_are_put_together_from_rows(options: dict[str, Any]) -> None:
    network, x, target = case(**options)
    chain = reading.read(network, x, target, resamples=3, seed=5, theory=False).chain
    assert chain is not None
    random = np.random.default_rng(5)
    ran = []
    for _ in range(3):
        rows = random.integers(0, ROWS, ROWS)
        network.backward(x[rows], target[rows])
        ran.append(network.flow.gain_log2)
    np.testing.assert_allclose(chain.batches, ran, atol=1e-4)


def test_a_row_of_zeros_and_one_that_is_not_finite() -> None:
    network, x, target = case(activation="relu")
    outputs = network.forward(x)
    target[3] = outputs[3]  # nothing is wrong there
    seen = network.examined(x, target)
    assert (seen.row_squares[:, 3] == 0).all()
    x[2, 1] = np.nan
    assert np.isnan(network.examined(x, target).row_squares[:, 2]).all()
