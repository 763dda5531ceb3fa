"""`measure` against the float64 reference: all statistics, the printed table and the marks."""

import json
import math
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import example, given
from hypothesis import strategies as st

from tests import reference_clipping as reference
from tests.reference_buffers import (
    FORMATS,
    KINDS,
    LAYOUTS,
    assert_close,
    dtype_of,
    everywhere,
    laid_out,
    make,
    to_float64,
)

every_dtype = pytest.mark.parametrize("dtype", list(FORMATS))
EXACT = ("count", "largest", "smallest", "zeros", "subnormals", "infs", "nans", "dtype")

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 70)),
    st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    st.sampled_from([(64, 64), (3, 4097), (300, 17)]),
)
buffers = st.lists(
    st.tuples(shapes, st.sampled_from(KINDS), st.sampled_from(LAYOUTS)),
    min_size=1,
    max_size=4,
)


def assert_statistics(got: Any, arrays: list[np.ndarray], dtypes: list[str], binned: bool) -> None:
    want = reference.statistics(arrays, dtypes)
    for name in EXACT:
        mine = getattr(got, name)
        assert type(mine) is type(want[name]), name
        same = mine == want[name] or (mine != mine and want[name] != want[name])
        assert same, f"{name}: {mine!r} is not {want[name]!r}"
    for name in ("norm", "rms"):
        assert_close(getattr(got, name), want[name], say=name)
    # The logarithm of a norm that is right to 2^-44, and the rounding of a number up to 1100.
    assert_close(got.norm_log2, want["norm_log2"], floor=2.0**-43, say="norm_log2")
    # Positive and negative elements may cancel in the mean, but their roundings do not.
    x = np.abs(reference.joined(arrays))
    about = reference.mean(x) if np.isfinite(x).all() else 0.0
    assert_close(got.mean, want["mean"], floor=max(2.0**-44 * about, 2.0**-1074), say="mean")
    assert got.histogram == (want["histogram"] if binned else None)


def assert_measures(
    arrays: list[Any], dtypes: list[str], *, binned: bool, passed: Any = None
) -> Any:
    exact = to_float64(arrays)
    got = vegrad.measure(arrays if passed is None else passed, histogram=binned)
    assert len(got.names) == len(got.buffers) == len(arrays)
    firsts = []
    for name, one, array, dtype in zip(got.names, got.buffers, exact, dtypes, strict=True):
        assert_statistics(one, [array], [dtype], binned)
        assert one.first_nonfinite == reference.first_nonfinite(array)
        firsts += [(name, one.first_nonfinite)] if one.first_nonfinite is not None else []
    assert_statistics(got.total, exact, dtypes, binned)
    assert got.total.first_nonfinite == (firsts[0] if firsts else None)
    return got


# ------------------------------------------------------------------------ against the reference


@every_dtype
@given(cases=buffers, binned=st.booleans(), seed=st.integers(0, 2**20))
@example(cases=[((), "plain", "stepped")], binned=True, seed=0)
@example(cases=[((9, 8), "wide", "reversed")] * 4, binned=True, seed=1)
@example(cases=[((64, 64), "huge", "transposed")] * 2, binned=True, seed=2)
def test_every_kind_of_buffer(
    isa: str, dtype: str, cases: list[Any], binned: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays = [laid_out(make(rng, dtype, shape, kind), layout)[0] for shape, kind, layout in cases]
    assert_measures(arrays, [dtype] * len(arrays), binned=binned)


@every_dtype
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 6e-8, 6e4, 1e-40]),
        min_size=3,
        max_size=80,
    ),
    parts=st.integers(1, 3),
)
def test_special_values(isa: str, dtype: str, values: list[float], parts: int) -> None:
    arrays = np.array_split(np.array(values).astype(dtype_of(dtype)), parts)
    assert_measures(arrays, [dtype] * parts, binned=True)


@every_dtype
def test_no_element_is_forgotten(isa: str, dtype: str) -> None:
    for size in [*range(1, 70), 4095, 4096, 4097, 65537]:
        array = make(np.random.default_rng(size), dtype, (size,), "wide")
        array[size // 2] = np.inf
        array[-1] = np.nan
        assert_measures([array], [dtype], binned=True)
        for place in {0, size // 2, size - 1}:
            zeros = np.zeros(size, array.dtype)
            zeros[place] = np.nan
            got = vegrad.measure(zeros).total
            assert (got.zeros, got.nans, got.first_nonfinite[1]) == (size - 1, 1, (place,))


def test_buffers_of_several_dtypes(isa: str) -> None:
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    arrays = [make(rng, dtype, (50, 3), "wide") for dtype in FORMATS]
    assert assert_measures(arrays, list(FORMATS), binned=True).total.dtype == "mixed"


def test_a_mean_beyond_the_sum(isa: str) -> None:
    for size in (1e308, -1e308, 5e-324):
        assert vegrad.measure(np.full(1000, size)).total.mean == pytest.approx(size, rel=2.0**-44)
        each = [np.full(3, size)] * 5
        assert vegrad.measure(each).total.mean == pytest.approx(size, rel=2.0**-44)


def test_more_elements_than_an_int_holds() -> None:
    row = np.full(2**18, 0.5, np.float16)
    row[-1] = 0.0
    array = np.broadcast_to(row, (2**13 + 1, row.size))
    got = vegrad.measure(array).total
    assert (got.count, got.zeros) == (array.size, 2**13 + 1)
    assert_close(got.norm, 0.5 * math.sqrt(array.size - 2**13 - 1))


# -------------------------------------------------------------------------------- the same bits


@every_dtype
def test_the_same_bits_everywhere(dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        laid_out(make(rng, dtype, shape, kind), layout)[0]
        for shape in [(7,), (1000,), (65537,), (150, 171)]
        for kind in ("plain", "wide")
        for layout in LAYOUTS
    ]
    arrays[3].reshape(-1)[-3:] = np.nan
    everywhere(lambda: repr(vegrad.measure(arrays, histogram=True).to_dict()).encode())


# ------------------------------------------------------------------------------ how it is passed


def test_names(isa: str) -> None:
    a, b = np.ones(3), np.ones((2, 2), np.float32)
    for passed, names in [
        ([a, b], ["0", "1"]),
        ([None, a, None, b], ["1", "3"]),
        (
            {"layers.0.weight": a, "nothing": None, "layers.0.bias": b},
            ["layers.0.weight", "layers.0.bias"],
        ),
        (iter([a, b]), ["0", "1"]),
    ]:
        got = assert_measures([a, b], ["float64", "float32"], binned=False, passed=passed)
        assert got.names == names
    assert len(vegrad.measure(a).buffers) == 1


def test_nothing() -> None:
    for passed in ([], {}, [None]):
        got = vegrad.measure(passed, histogram=True)
        assert got.names == []
        assert (got.total.count, got.total.norm, got.total.norm_log2) == (0, 0.0, -math.inf)
        assert got.total.histogram == {}
        assert str(got)
        json.dumps(got.to_dict())


def test_torch_and_jax(isa: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(-4.0, 8.0).reshape(3, 4)
    for kind in FORMATS:
        for view in (tensor.to(getattr(torch, kind)), tensor.to(getattr(torch, kind)).T):
            array = view.double().numpy()
            assert_measures([array], [kind], binned=True, passed=view.clone().requires_grad_())
            assert_measures([array], [kind], binned=True, passed=[view])
    jax = pytest.importorskip("jax")
    for kind in ("float16", "bfloat16", "float32"):
        array = jax.numpy.asarray(tensor.numpy()).astype(kind)
        assert_measures([np.asarray(array)], [kind], binned=True, passed={"a": array})


# ------------------------------------------------------------------------- marks and printing

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((20, 30)).astype(np.float32)


def with_one(value: float) -> np.ndarray:
    array = NORMAL.copy()
    array[4, 7] = value
    return array


MARKED = {
    "nothing": (NORMAL, set()),
    "small but well": (NORMAL * np.float32(1e-6), set()),
    "nan": (with_one(np.nan), {"nan"}),
    "inf": (with_one(-np.inf), {"inf"}),
    "all zero": (np.zeros((3, 4)), {"all zero"}),
    "one subnormal": (with_one(1e-40), set()),
    "subnormal": (np.where(NORMAL < -1.5, np.float32(1e-40), NORMAL), {"subnormal"}),
    "vanishing": (NORMAL * np.float32(1e-30), {"vanishing"}),
    "exploding": (NORMAL * np.float32(1e30), {"exploding"}),
    "smaller than float64": (np.array([5e-324] + [0.0] * 9), {"vanishing", "subnormal"}),
}


@pytest.mark.parametrize("name", list(MARKED))
def test_marks(isa: str, name: str) -> None:
    array, marks = MARKED[name]
    got = vegrad.measure({"layers.3.weight": array, "layers.3.bias": np.ones(3)})
    assert set(got.buffers[0].marks) == marks
    assert isinstance(got.buffers[0].marks, list)
    assert got.buffers[1].marks == []
    line = next(line for line in str(got).splitlines() if "layers.3.weight" in line)
    assert all(mark in line for mark in marks)


def test_it_prints_as_a_table() -> None:
    got = vegrad.measure({f"layers.{k}.weight": NORMAL * 10.0**-k for k in range(5)})
    lines = str(got).splitlines()
    rows = [line for line in lines if "layers." in line]
    assert len(rows) == 5
    for k, row in enumerate(rows):
        assert f"layers.{k}.weight" in row
        assert "600" in row
    assert "3000" in lines[-1]  # the line for all buffers together
    heading = " ".join(lines[: lines.index(rows[0])])
    for column in ("norm", "mean", "largest", "smallest"):
        assert column in heading
    assert max(len(line) for line in lines) <= 200


def test_to_dict_is_plain(isa: str) -> None:
    arrays = {"a": with_one(np.nan), "b": np.zeros(3), "c": NORMAL.astype(np.float16)}
    got = vegrad.measure(arrays, histogram=True)

    def plain(value: Any) -> bool:
        if type(value) is dict:
            return all(type(k) is str for k in value) and all(map(plain, value.values()))
        return (
            all(map(plain, value))
            if type(value) is list
            else (value is None or type(value) in (str, int, float, bool))
        )

    told = got.to_dict()
    assert plain(told)
    assert json.loads(json.dumps(told)).keys() == told.keys()
    text = json.dumps(told)
    for part in ('"norm"', '"norm_log2"', '"zeros"', '"marks"', '"histogram"', '"first_nonfinite"'):
        assert part in text


def test_the_table_leaves_out_counts_that_are_all_zero() -> None:
    clean = str(vegrad.measure({"a": np.ones(3), "b": np.ones(2)}))
    assert not any(name in clean for name in ("zeros", "subnormals", "infs", "nans"))
    heads = str(vegrad.measure({"a": np.array([0.0, 1.0]), "b": np.ones(2)})).splitlines()[0]
    assert heads.split()[-1] == "zeros"


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, np.nan]])
def test_there_is_no_largest_element_without_a_finite_one(values: list[float]) -> None:
    measured = vegrad.measure(np.array(values, np.float64))
    assert np.isnan([measured.total.largest, measured.buffers[0].smallest]).all()
    assert np.isnan(measured.buffers[0].largest)
    assert vegrad.measure(np.zeros(2)).total.largest == 0


def test_measuring_with_the_clipping_functions_takes_arrays_that_are_read_only() -> None:
    frozen = np.array([3.0, 4.0])
    frozen.flags.writeable = False
    assert vegrad.clip_by_global_norm_(frozen, None).norm == 5.0
    assert vegrad.clip_by_norm_([frozen], None, nonfinite="skip").norms.tolist() == [5.0]
    for limit, policy in ((1.0, "raise"), (None, "zero")):
        with pytest.raises(ValueError, match="must be writable"):
            vegrad.clip_by_global_norm_(frozen, limit, nonfinite=policy)
