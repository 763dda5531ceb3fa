"""Rules that learn, at norms beyond float64 and at gradients that are not finite."""

import math
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

from tests import reference_rules

USUAL = [1.0 + 0.1 * math.sin(7.0 * step) for step in range(40)]
BEYOND = np.full(4, 1.7e308)  # finite, of a norm that is not
RULES: dict[str, tuple[Any, Any]] = {
    "AutoClip(0)": (clipping.AutoClip(0), reference_rules.AutoClip(0)),
    "AutoClip(50)": (clipping.AutoClip(50), reference_rules.AutoClip(50)),
    "ZClip": (clipping.ZClip(max_grad_norm=None), reference_rules.ZClip(max_grad_norm=None)),
    "ZClip(0.5)": (clipping.ZClip(max_grad_norm=0.5), reference_rules.ZClip(max_grad_norm=0.5)),
    "percentile": (
        clipping.ZClip(max_grad_norm=None, mode="percentile"),
        reference_rules.ZClip(max_grad_norm=None, mode="percentile"),
    ),
}


def gradient(norm: float) -> np.ndarray:
    return np.full(4, norm / 2)


@pytest.mark.parametrize("name", RULES)
def test_a_norm_beyond_float64_is_clipped(name: str) -> None:
    rule, reference = RULES[name]
    for norm in USUAL:
        rule.apply_(gradient(norm))
        reference.limit(norm)
    before, grads = rule.state_dict(), BEYOND.copy()
    clipped = rule.apply_(grads)
    assert clipped.clipped
    assert clipped.nonfinite == 0
    assert vegrad.norm(grads) == pytest.approx(reference.limit(math.inf), rel=1e-12)
    assert rule.state_dict() == before


@pytest.mark.parametrize("seen", [1, 10_000])
def test_the_largest_of_all_norms_is_no_limit(seen: int) -> None:
    rule = clipping.AutoClip(100)
    for step in range(seen):
        rule._seen.add(1.0 + step % 7)
    grads = BEYOND.copy()
    assert not rule.apply_(grads).clipped
    assert (grads == BEYOND).all()


@pytest.mark.parametrize("bad", [BEYOND, np.array([1.0, math.inf]), np.array([math.nan, 1.0])])
def test_a_step_without_a_finite_norm_is_left_out(bad: np.ndarray) -> None:
    rule = clipping.SkipSpike(3, 20, 5, nonfinite="propagate")
    reference = reference_rules.SkipSpike(3, 20, 5)
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(bad))
    weights = np.ones(len(bad))
    optimizer = vegrad.SGD(0.1, clip=rule)
    for place, usual in enumerate(USUAL):
        assert not rule.apply_(gradient(usual), loss=usual).skipped
        assert not reference.skips(usual, usual)
        if place == 2:  # too early to leave out anything
            early = bad.copy()
            assert not rule.apply_(early).skipped
            np.testing.assert_array_equal(early, bad)
    before = rule.state_dict()
    assert reference.skips(norm, 1.0)
    assert optimizer.step(weights, bad).skipped
    assert (weights == 1).all()
    assert optimizer.steps == 0
    assert rule.state_dict() == before


def test_what_propagates_is_not_learnt() -> None:
    for rule in (clipping.AutoClip(50), clipping.ZClip(max_grad_norm=None)):
        for norm in USUAL:
            rule.apply_(gradient(norm))
        rule.nonfinite, before = "propagate", rule.state_dict()
        for bad in (math.inf, math.nan):
            rule.apply_(np.array([1.0, bad]))
        after = rule.state_dict() | {"nonfinite": "propagate"}
        assert after == before | {"nonfinite": "propagate"}
