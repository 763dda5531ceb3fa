"""A clip within a step, where its factor is next to nothing: what exploded is clipped, not lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import vegrad
from vegrad import clipping

RULES: dict[str, Callable[[], object]] = {
    "GlobalNorm": lambda: clipping.GlobalNorm(1.0),
    "Norm": lambda: clipping.Norm(1.0),
    "BlockRMS": lambda: clipping.BlockRMS(0.5),
    "Adaptive": lambda: clipping.Adaptive(0.5),
    "Value": lambda: clipping.Value(0.5),
}
# Dtypes of weights and gradients, and a gradient's size: 1 over it is subnormal, or it is beyond
# what the weights can hold.
SIZES = [
    ("float32", "float32", 5e37),
    ("float32", "float32", 3e38),
    ("float32", "float64", 5e37),
    ("float32", "float64", 1e39),
    ("float32", "float64", 1e300),
    ("float64", "float64", 1e200),
    ("float64", "float64", 3e307),
    ("float64", "float32", 3e38),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("weights", "gradients", "size"), SIZES)
def test_a_step_takes_what_the_clip_leaves(
    rule: str, weights: str, gradients: str, size: float
) -> None:
    g = np.array([1.0, -0.5, 0.25, 0.0], gradients) * np.asarray(size, gradients)
    p, q, clipped = np.ones(4, weights), np.ones(4, weights), g.copy()
    done = vegrad.SGD(0.5, clip=RULES[rule]()).step(p, g)
    RULES[rule]().apply_(clipped, q) if rule == "Adaptive" else RULES[rule]().apply_(clipped)
    vegrad.SGD(0.5).step(q, clipped)
    assert abs(p - 1).max() > 0.01
    np.testing.assert_allclose(p, q, rtol=1e-6)
    assert done.clipped
    assert done.norm_after == pytest.approx(np.linalg.norm(np.float64(clipped)), rel=1e-6)


@pytest.mark.parametrize("optimizer", [vegrad.Adam, vegrad.AdamW, vegrad.Lion])
def test_every_optimizer_steps(optimizer: Callable[..., vegrad.Adam]) -> None:
    p = np.zeros(4, np.float32)
    g = np.full(4, 5e37, np.float32)
    optimizer(0.1, clip=clipping.GlobalNorm(1.0)).step(p, g)
    np.testing.assert_allclose(p, -0.1, rtol=1e-5)


def test_halves_keep_their_digits() -> None:
    """A limit next to nothing: the product is made in the weights' dtype."""
    p, g = np.zeros(4, np.float32), np.full(4, 2.0, np.float16)
    vegrad.SGD(1e30, clip=clipping.GlobalNorm(4e-38)).step(p, g)
    np.testing.assert_allclose(p, -2e-8, rtol=1e-5)
