"""The clipping functions against the float64 reference, and what they must never touch."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import reference_clipping as reference
from tests.clipping_checks import FUNCTIONS, assert_clips, build, some_limit
from tests.reference_buffers import (
    FORMATS,
    KINDS,
    LAYOUTS,
    assert_close,
    assert_rounded,
    dtype_of,
    everywhere,
    make,
    to_float64,
)

every_dtype = pytest.mark.parametrize("dtype", list(FORMATS))


every_function = pytest.mark.parametrize("function", list(FUNCTIONS))
POLICIES = ["raise", "skip", "zero", "propagate"]


# ------------------------------------------------------------------------ against the reference

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 70)),
    st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple),
    st.sampled_from([(40, 40), (3, 1025), (17, 130)]),
)
cases = st.lists(
    st.tuples(shapes, st.sampled_from(KINDS), st.sampled_from(LAYOUTS)),
    min_size=1,
    max_size=4,
)
# Limits of 0, far below and far above the sizes, and close to them.
fractions = st.one_of(
    st.sampled_from([0.0, 1e-30, 1e-300, 2.0, math.inf]), st.floats(1e-3, 0.9), st.floats(1.1, 3.0)
)


@every_function
@every_dtype
@settings(max_examples=20)  # for each of many combinations
@given(cases=cases, fraction=fractions, seed=st.integers(0, 2**20))
@example(cases=[((), "plain", "stepped")], fraction=0.5, seed=0)
@example(cases=[((4, 0), "plain", "transposed"), ((3,), "plain", "offset")], fraction=0.5, seed=0)
@example(cases=[((9, 8), "wide", "reversed")] * 4, fraction=0.5, seed=1)
@example(cases=[((70,), "huge", "contiguous")] * 4, fraction=1e-300, seed=2)
@example(cases=[((40, 40), "tiny", "contiguous")], fraction=0.5, seed=0)
@example(cases=[((), "tiny", "contiguous")], fraction=0.5, seed=213)
@example(cases=[((33,), "tiny", "stepped"), ((2,), "tiny", "offset")], fraction=0.875, seed=3)
def test_every_kind_of_buffer(
    isa: str, function: str, dtype: str, cases: list[Any], fraction: float, seed: int
) -> None:
    dtypes = [dtype] * len(cases)
    grads, params, bases = build(cases, dtypes, seed)
    limit = some_limit(function, grads, params, fraction)
    said = assert_clips(function, grads, params, dtypes, limit, bases=bases)

    # The second time there is nothing left to do.
    before = [base.tobytes() for base in bases]
    again = FUNCTIONS[function].call(grads, params, limit)
    assert [base.tobytes() for base in bases] == before
    assert not again.clipped
    assert again.coefficient == 1.0
    assert again.norm == again.norm_after
    assert_close(again.norm, said.norm_after)  # the order of the sum may differ


@every_function
@given(
    cases=cases,
    dtypes=st.lists(st.sampled_from(list(FORMATS)), min_size=4, max_size=4),
    fraction=fractions,
    seed=st.integers(0, 2**20),
)
def test_buffers_of_several_dtypes(
    function: str, cases: list[Any], dtypes: list[str], fraction: float, seed: int
) -> None:
    dtypes = dtypes[: len(cases)]
    grads, params, bases = build(cases, dtypes, seed)
    limit = some_limit(function, grads, params, fraction)
    assert_clips(function, grads, params, dtypes, limit, bases=bases)


@every_function
@every_dtype
@pytest.mark.parametrize("policy", POLICIES[1:])
@settings(max_examples=12)  # for each of many combinations
@given(cases=cases, fraction=st.floats(0.05, 0.9), seed=st.integers(0, 2**20))
def test_what_is_not_finite(
    function: str, dtype: str, policy: str, cases: list[Any], fraction: float, seed: int
) -> None:
    dtypes = [dtype] * len(cases)
    grads, params, bases = build(cases, dtypes, seed)
    limit = some_limit(function, grads, params, fraction)
    rng = np.random.default_rng(seed)
    for g in grads:
        if g.size and rng.uniform() < 0.5:
            places = tuple(rng.integers(0, n) for n in g.shape)
            g[places] = rng.choice([np.nan, np.inf, -np.inf])
    assert_clips(function, grads, params, dtypes, limit, policy, bases=bases)


@every_function
@every_dtype
def test_around_the_widths_of_vectors(isa: str, function: str, dtype: str) -> None:
    for size in [*range(1, 70), 4095, 4096, 4097, 65537]:
        cases = [((size,), "plain", "contiguous"), ((1, size), "plain", "offset")]
        grads, params, bases = build(cases, [dtype] * 2, size)
        limit = some_limit(function, grads, params, 0.4)
        assert_clips(function, grads, params, [dtype] * 2, limit, bases=bases)


# --------------------------------------------------------------------------- particular numbers


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
@pytest.mark.parametrize("max_norm", [1.0, 0.1, 3e-30, 7e20])
def test_the_norm_after_is_the_limit(isa: str, p: float, max_norm: float) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 5, 1000, 100_003):
        grads = [(1e25 * rng.standard_normal(size)).astype(np.float32) for _ in range(3)]
        said = vegrad.clip_by_global_norm_(grads, max_norm, ord=p)
        exact = float(reference.norm(to_float64(grads), p))
        assert abs(exact - max_norm) <= 2.0**-22 * max_norm
        assert abs(said.norm_after - max_norm) <= 2.0**-22 * max_norm


def test_one_element_far_above_the_others(isa: str) -> None:
    g = np.array([1e20, 1.0, -1.0], np.float32)
    vegrad.clip_by_global_norm_(g, 1.0)
    np.testing.assert_array_equal(g, np.array([1.0, 1e-20, -1e-20], np.float32))


def test_a_subnormal_coefficient_is_not_zero(isa: str) -> None:
    """1e-5/1e38 is subnormal in float32, 1e-10/1e308 in float64."""
    g = np.array([1e38, -1e38], np.float32)
    said = vegrad.clip_by_global_norm_(g, 1e-5)
    assert 0 < said.coefficient < 2.0**-126
    np.testing.assert_allclose(g, [1e-5 / math.sqrt(2), -1e-5 / math.sqrt(2)], rtol=2.0**-23)
    for clip in (vegrad.clip_by_global_norm_, vegrad.clip_by_norm_):
        g64 = np.array([1e308, -3e307, 1e300, 0.0])
        clip(g64, 1e-10)
        want = np.array([1.0, -0.3, 1e-8, 0.0])
        np.testing.assert_allclose(g64, 1e-10 * want / np.linalg.norm(want), rtol=2.0**-44)


@pytest.mark.parametrize("name", ["global", "norm", "rms"])
def test_a_float64_norm_beyond_float64(isa: str, name: str) -> None:
    """All elements are finite, so the result must be right, not zeros."""
    g = np.full(100, 1e308)
    said = FUNCTIONS[name].call([g], None, 1.0)
    np.testing.assert_allclose(g, 1.0 if name == "rms" else 0.1, rtol=2.0**-44)
    assert said.clipped
    assert not said.nonfinite


@pytest.mark.parametrize("p", [1, 2, 3, 0.5])
def test_float64_norms_that_are_too_large_together(isa: str, p: float) -> None:
    for arrays in ([np.full(1, 1.5e308)] * 4, [np.full((70, 70), 1e308)] * 4, [np.full(4, 1e308)]):
        grads, count = [array.copy() for array in arrays], sum(array.size for array in arrays)
        said = vegrad.clip_by_global_norm_(grads, 3.0, ord=p)
        for g in grads:
            np.testing.assert_allclose(g, 3.0 / count ** (1 / p), rtol=2.0**-43)
        assert_close(said.norm, float(np.max(arrays[0])) * count ** (1 / p))
        assert (said.clipped, said.nonfinite) == (True, 0)
        assert_close(said.norm_after, 3.0)


@pytest.mark.parametrize("limit", [2.0**-1060, 2.0**-1000])
def test_a_limit_as_small_as_can_be(isa: str, limit: float) -> None:
    """The ratio of the limit to the gradient is beyond the range of float64."""
    g = np.array([0.75 * 2.0**1023, -0.25 * 2.0**1023, 0.0])
    vegrad.clip_by_norm_(g, limit, ord=math.inf)
    np.testing.assert_allclose(g, [limit, -limit / 3, 0.0], rtol=2.0**-44, atol=2.0**-1074)


def test_subnormal_results_are_rounded_not_flushed(isa: str) -> None:
    for dtype in ("float32", "float16", "float64"):
        smallest = math.ldexp(1.0, FORMATS[dtype].smallest)
        g = np.array([1.0, 0.51, 0.49, -0.25, 3.0]).astype(dtype)
        vegrad.clip_by_norm_(g, 3 * smallest, ord=math.inf)
        np.testing.assert_array_equal(g.astype(np.float64), smallest * np.array([1, 1, 0, 0, 3]))
        g = (np.array([7, -2, 100]) * smallest).astype(dtype)
        vegrad.clip_by_value_(g, 5 * smallest)
        np.testing.assert_array_equal(g.astype(np.float64), smallest * np.array([5, -2, 5]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("count", [1, 40])
def test_results_are_rounded_once(isa: str, dtype: str, count: int) -> None:
    """The result is above the middle of two neighbours by less than float32 can resolve."""
    step = 2.0 ** (1 - FORMATS[dtype].precision)
    g = np.full(count, 2.0).astype(dtype_of(dtype))
    vegrad.clip_by_norm_(g, 1.0 + 0.5 * step + 2.0**-50, ord=math.inf)
    assert set(g.astype(np.float64)) == {1.0 + step}
    smallest = math.ldexp(1.0, FORMATS[dtype].smallest)
    g[:] = 2.0
    vegrad.clip_by_norm_(g, 0.5 * smallest * (1.0 + 2.0**-20), ord=math.inf)
    assert set(g.astype(np.float64)) == {smallest}


@every_function
def test_limits_that_clip_everything_or_nothing(function: str) -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float16", "float32", "float64"):
        g = make(rng, dtype, (5, 3), "plain")
        before = g.tobytes()
        assert not FUNCTIONS[function].call([g], [g * 2], math.inf).clipped
        assert g.tobytes() == before
        said = FUNCTIONS[function].call([g], [np.ones((5, 3))], 0.0)
        assert said.clipped
        assert (said.coefficient, said.norm_after) == (0.0, 0.0)
        assert not g.any()
        assert not FUNCTIONS[function].call([g], [np.ones((5, 3))], 0.0).clipped


@pytest.mark.parametrize(
    ("grads", "count"), [([], 0), ({}, 0), ([None], 0), ([np.zeros((0, 3))], 1), (np.zeros(4), 1)]
)
@every_function
def test_nothing_to_clip(function: str, grads: Any, count: int) -> None:
    said = FUNCTIONS[function].call(grads, copy.deepcopy(grads), 1.0)
    assert (said.norm, said.norm_after, said.coefficient) == (0.0, 0.0, 1.0)
    assert (said.clipped, said.skipped, said.nonfinite) == (False, False, 0)
    assert said.norms.tolist() == [0.0] * count


def test_no_limit_only_measures(isa: str) -> None:
    grads = [np.array([3.0, 0.0], np.float32), np.array([[4.0]])]
    said = vegrad.clip_by_global_norm_(grads, None)
    assert (said.norm, said.norm_after, said.coefficient) == (5.0, 5.0, 1.0)
    assert said.norms.tolist() == [3.0, 4.0]
    assert not said.clipped
    assert [g.tolist() for g in grads] == [[3.0, 0.0], [[4.0]]]
    assert vegrad.clip_by_global_norm_(grads, None, ord=1).norm == 7.0
    grads[1][0, 0] = np.inf
    with pytest.raises(vegrad.NonFiniteGradientError):
        vegrad.clip_by_global_norm_(grads, None)
    assert vegrad.clip_by_global_norm_(grads, None, nonfinite="skip").skipped


def test_adaptive_units_and_eps(isa: str) -> None:
    """A unit is a row of a matrix, a kernel without its first axis, or a whole vector."""
    rng = np.random.default_rng(0)
    for shape in [(), (1,), (9,), (4, 6), (5, 3, 3, 3), (70, 1), (1, 70)]:
        for eps in (1e-3, 0.5, 0.0):
            for clipping in (0.01, 1e-9, 2.0):
                W = make(rng, "float64", shape, "sparse")
                G = make(rng, "float32", shape, "plain")
                formula = reference.adaptive([W], clipping, eps, dtypes=["float32"])
                want = reference.clip(formula, to_float64([G]))
                said = vegrad.adaptive_clip_(G, W, clipping, eps=eps)
                assert_rounded(G.astype(np.float64), want.grads[0], "float32")
                assert_close(said.coefficient, want.coefficient)


# -------------------------------------------------------------------------------- the same bits


def clip_a_list(function: str, dtype: str, limit: float) -> bytes:
    """Clip buffers in several layouts, and return the bits of buffers and results."""
    cases = [
        ((100_003,), "plain", "offset"),
        ((130, 299), "wide", "transposed"),
        ((7,), "plain", "contiguous"),
        ((40, 50), "plain", "stepped"),
        ((70_000,), "sparse", "reversed"),
    ]
    grads, params, bases = build(cases, [dtype] * len(cases), 0)
    said = FUNCTIONS[function].call(grads, params, limit)
    assert said.clipped
    numbers = [said.norm, said.norm_after, said.coefficient, *said.norms]
    return b"".join([np.array(numbers).tobytes(), *(base.tobytes() for base in bases)])


@every_function
@every_dtype
def test_the_same_bits_everywhere(function: str, dtype: str) -> None:
    everywhere(lambda: clip_a_list(function, dtype, 0.03))


@pytest.mark.parametrize("function", ["value", "norm", "global", "rms", "adaptive"])
def test_thousands_of_small_buffers(isa: str, function: str) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 3000)
    grads, params, _ = build(
        [((int(n),), "plain", "contiguous") for n in sizes], ["float32"] * 3000, 0
    )
    limit = some_limit(function, grads, params, 0.7)
    twins = {f"layers.{k}": g.copy() for k, g in enumerate(grads)}
    said = assert_clips(function, grads, params, ["float32"] * 3000, limit)
    named = dict(zip(twins, params, strict=True))
    again = FUNCTIONS[function].call(twins, named, limit)
    assert again.norms.tobytes() == said.norms.tobytes()
    assert [g.tobytes() for g in twins.values()] == [g.tobytes() for g in grads]
