"""Backward passes that end below the topmost layers."""

from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from tests.core.test_network import make, run_reference

CASES = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.sampled_from([1, 3, 16, 17, 40, 64]), min_size=3, max_size=9),
        "rows": st.sampled_from([1, 3, 4, 5, 33, 70]),
        "activation": st.sampled_from(reference.ACTIVATIONS),
        "loss": st.sampled_from(reference.LOSSES),
        "norm": st.sampled_from(reference.NORMS),
        "residual": st.booleans(),
        "dtype": st.sampled_from(["float32", "float64"]),
        "seed": st.integers(0, 1000),
    }
)


def gradients(net: vegrad.MLP) -> dict[str, np.ndarray]:
    return {name: gradient.copy() for name, gradient in net.gradients.items()}


def assert_truncated(net: vegrad.MLP, x: np.ndarray, target: np.ndarray) -> None:
    """Check every K against the full pass: the same loss and bits above the cut, zeros below."""
    loss = net.backward(x, target)
    full = gradients(net)
    for depth in range(1, net.depth + 1):
        assert net.backward(x, target, truncation=depth) == loss
        for name, gradient in net.gradients.items():
            kept = int(name.split(".")[1]) >= net.depth - depth
            want = full[name] if kept else np.zeros_like(gradient)
            np.testing.assert_array_equal(gradient, want, err_msg=f"{name}, K = {depth}")
    net.backward(x, target)
    assert all(np.array_equal(full[name], gradient) for name, gradient in net.gradients.items())


@given(case=CASES)
def test_every_depth_has_the_bits_of_the_full_pass(isa: str, threads: int, case: Any) -> None:
    net, x, target = make(**case)
    assert_truncated(net, x, target)


def test_chains_end_at_the_cut(threads: int) -> None:
    """The third pass over a narrow network goes back many layers in one loop."""
    net, x, target = make([64] * 31, rows=70, activation="sigmoid", norm=None)
    for depth in (5, 5, 5, 30, 30, 12, 12, 29):
        net.backward(x, target, truncation=depth)
    assert_truncated(net, x, target)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sigma", [1e-9, 1e9])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_beyond_the_fast_path(isa: str, activation: str, sigma: float, dtype: str) -> None:
    net, x, target = make(
        [8] * 12, rows=6, activation=activation, init="normal", sigma_w=sigma, dtype=dtype
    )
    for layer in range(net.depth):
        net.parameters[f"layers.{layer}.bias"][...] = 0
    assert_truncated(net, x, target)


@given(case=CASES)
def test_against_the_reference(case: Any) -> None:
    net, x, target = make(**case | {"dtype": "float64"})
    depth = 1 + case["seed"] % net.depth
    net.backward(x, target, truncation=depth)
    for name, want in run_reference(net, x, target).gradients.items():
        if int(name.split(".")[1]) < net.depth - depth:
            assert not net.gradients[name].any()
        else:
            size = 1e-8 * float(np.abs(reference.value(want)).max()) + 1e-300
            np.testing.assert_allclose(net.gradients[name], reference.value(want), atol=size)


def test_a_truncated_pass_has_no_flow() -> None:
    net, x, target = make([3, 4, 2], rows=5)
    net.backward(x, target, truncation=1)
    with pytest.raises(RuntimeError, match="no truncation"):
        _ = net.flow
    net.backward(x, target, truncation=2)
    assert np.isfinite(net.flow.delta_log2).all()


@pytest.mark.parametrize(("truncation", "error"), [(0, ValueError), (1.0, TypeError)])
def test_bad_depths(truncation: Any, error: type[Exception]) -> None:
    net, x, target = make([3, 4, 2], rows=5)
    with pytest.raises(error, match="truncation must be"):
        net.backward(x, target, truncation=truncation)
