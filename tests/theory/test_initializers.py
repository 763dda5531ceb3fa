"""Initial weights: seeds, moments, orthogonality."""

import math
from typing import Any

import numpy as np
import pytest
import vegrad

from tests import reference


@pytest.mark.parametrize("init", reference.INITIALIZERS)
def test_seeds(init: str) -> None:
    options: dict[str, Any] = {"init": init}
    if init == "normal":
        options |= {"sigma_w": 1.5, "sigma_b": 0.5}

    def weights(**more: Any) -> list[np.ndarray]:
        return list(vegrad.MLP([7, 20, 20, 3], **options, **more).parameters.values())

    pairs = zip(weights(seed=3), weights(seed=3), weights(seed=3, dtype="float64"), strict=True)
    for one, same, wide in pairs:
        np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(one, wide.astype("float32"))
    assert np.any(weights(seed=3)[0] != weights(seed=4)[0])
    assert np.any(weights()[0] != weights()[0])  # no seed: a fresh one
    one, two = weights(seed=3)[2], vegrad.MLP([20, 20], **options, seed=3).parameters
    assert np.any(one != two["layers.0.weight"])  # no layer repeats another's draw


@pytest.mark.parametrize("init", reference.INITIALIZERS)
def test_moments(init: str) -> None:
    sigma_w, sigma_b = (1.7, 0.6) if init == "normal" else (None, None)
    net = vegrad.MLP(
        [300, 200, 250], init=init, sigma_w=sigma_w, sigma_b=sigma_b, seed=11, dtype="float64"
    )
    for layer, (inputs, outputs) in enumerate([(300, 200), (200, 250)]):
        weight = net.parameters[f"layers.{layer}.weight"]
        std = reference.initial_weight_std(init, inputs, outputs, sigma_w)
        error = 1 / math.sqrt(weight.size)  # of a mean of that many draws
        assert abs(weight.mean()) < 5 * std * error
        assert weight.std() == pytest.approx(std, rel=5 * error)
        fourth = np.mean((weight / std) ** 4)
        if init.endswith("uniform"):
            bound = math.sqrt(3) * std
            assert 0.999 * bound < np.abs(weight).max() <= bound
            assert fourth == pytest.approx(1.8, rel=0.05)
        elif init != "orthogonal":
            assert 3.8 * std < np.abs(weight).max() < 6.5 * std  # not truncated
            assert fourth == pytest.approx(3.0, rel=0.05)
        bias = net.parameters[f"layers.{layer}.bias"]
        if init == "normal":
            assert abs(bias.mean()) < 5 * 0.6 / math.sqrt(bias.size)
            assert bias.std() == pytest.approx(0.6, rel=5 / math.sqrt(2 * bias.size))
        else:
            assert not bias.any()


@pytest.mark.parametrize("sizes", [[64, 64], [30, 70], [70, 30], [1, 5], [5, 1], [1, 1]])
def test_orthogonal(sizes: list[int]) -> None:
    weight = vegrad.MLP(sizes, init="orthogonal", dtype="float64", seed=0).parameters[
        "layers.0.weight"
    ]
    gram = weight @ weight.T if sizes[1] <= sizes[0] else weight.T @ weight
    np.testing.assert_allclose(gram, np.eye(min(sizes)), atol=1e-13)


def test_sigma_b_is_zero_by_default() -> None:
    net = vegrad.MLP([8, 8, 8], init="normal", sigma_w=1.0, seed=0)
    assert not any(net.parameters[f"layers.{i}.bias"].any() for i in range(2))
