"""`norm` and `norms` against the float64 reference: dtypes, layouts, sizes, special values."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
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
ORDS = [1, 2, 3, 0.5, math.inf]

# Sizes near the widths of vectors, the lengths of runs and the pieces that threads take.
STEPS = (128, 256, 512, 1024, 4096, 16384, 65536)
SIZES = [*range(1, 71), *(n + d for n in STEPS for d in (-1, 0, 1)), 300_000]

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 70)),
    st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple),
    st.sampled_from([(64, 64), (3, 4097), (1, 1, 1, 1, 1, 1, 2), (300, 17)]),
)
buffers = st.fixed_dictionaries(
    {
        "shape": shapes,
        "kind": st.sampled_from(KINDS),
        "layout": st.sampled_from(LAYOUTS),
    }
)
ords = st.one_of(st.sampled_from(ORDS), st.floats(0.25, 20.0))


def assert_norms(arrays: list[Any], p: float = 2, passed: Any = None) -> None:
    passed = arrays if passed is None else passed
    exact = to_float64(arrays)
    got = vegrad.norm(passed, ord=p)
    assert type(got) is float
    assert_close(got, float(reference.norm(exact, p)), say=f"ord {p}")
    one_each = vegrad.norms(passed, ord=p)
    assert one_each.dtype == np.float64
    assert one_each.shape == (len(arrays),)
    for k, (one, array) in enumerate(zip(one_each, exact, strict=True)):
        assert_close(float(one), float(reference.norm([array], p)), say=f"ord {p}, buffer {k}")


# ------------------------------------------------------------------------ against the reference


@every_dtype
@given(cases=st.lists(buffers, min_size=1, max_size=4), p=ords, seed=st.integers(0, 2**20))
@example(cases=[{"shape": (), "kind": "plain", "layout": "stepped"}], p=2, seed=0)
@example(cases=[{"shape": (0, 3), "kind": "plain", "layout": "transposed"}] * 2, p=2, seed=0)
@example(cases=[{"shape": (9, 8), "kind": "wide", "layout": "reversed"}] * 4, p=0.5, seed=1)
def test_every_kind_of_buffer(
    isa: str, dtype: str, cases: list[dict[str, Any]], p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays = [
        laid_out(make(rng, dtype, case["shape"], case["kind"]), case["layout"])[0] for case in cases
    ]
    assert_norms(arrays, p)


def test_buffers_of_several_dtypes(isa: str) -> None:
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    arrays = [make(rng, dtype, (50, 3), kind) for dtype in FORMATS for kind in ("plain", "tiny")]
    for p in ORDS:
        assert_norms(arrays, p)


@every_dtype
def test_every_size(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for size in SIZES:
        for p in [2, math.inf] if size > 5000 else ORDS:
            assert_norms([make(rng, dtype, (size,), "plain")], p)


@every_dtype
def test_no_element_is_forgotten(isa: str, dtype: str) -> None:
    """If only one element is not zero, the norm is exactly that element, wherever it is."""
    for size in range(1, 71):
        array = np.zeros(size, dtype_of(dtype))
        for place in range(size):
            array[place] = -3.0
            assert vegrad.norm(array) == 3.0
            assert vegrad.norm(array, ord=math.inf) == 3.0
            assert vegrad.norm(array, ord=1) == 3.0
            array[place] = np.nan
            assert math.isnan(vegrad.norm(array))
            assert math.isnan(vegrad.norm(array, ord=math.inf))
            array[place] = 0.0
    for size in (4097, 65537, 300_000):
        for place in {0, size // 2, 4095, 4096, size - 1}:
            array = np.zeros(size, dtype_of(dtype))
            array[place] = -3.0
            assert vegrad.norm(array) == 3.0
            array[place] = np.inf
            assert vegrad.norm(array) == math.inf


@pytest.mark.parametrize("size", [1e200, 1e308, 5e-324, 1e-310, 1e-200, 1.0])
@pytest.mark.parametrize("p", ORDS)
def test_no_float64_overflows_or_underflows(isa: str, size: float, p: float) -> None:
    for count in (1, 3, 17, 1000, 5000):
        assert_norms([np.full(count, -size)], p)
        assert_norms([np.full(count, size), np.full(count, 1e-5), np.array(0.0)], p)
        one_large = np.full(count, 1e-200)
        one_large[-1] = size
        assert_norms([one_large], p)


@every_dtype
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 6e-8, 60000.0]),
        max_size=40,
    ),
    parts=st.integers(1, 3),
    p=st.sampled_from(ORDS),
)
def test_special_values(isa: str, dtype: str, values: list[float], parts: int, p: float) -> None:
    """The norm is nan if any element is NaN, else inf if any is infinite."""
    array = np.array(values, np.float64).astype(dtype_of(dtype))
    assert_norms(np.array_split(array, parts), p)


@every_dtype
def test_smallest_and_largest(isa: str, dtype: str) -> None:
    form = FORMATS[dtype]
    smallest = math.ldexp(1.0, form.smallest)
    largest = math.ldexp(2.0 - 2.0 ** (1 - form.precision), form.overflow - 1)
    for size in (smallest, largest):
        for count in (1, 4, 16, 64, 1024):
            array = np.full(count, size).astype(dtype_of(dtype))
            assert float(array.astype(np.float64)[0]) == size
            assert_close(vegrad.norm(array), size * math.sqrt(count))
            assert vegrad.norm(array, ord=math.inf) == size


# ------------------------------------------------------------------------------------ many


def test_ones() -> None:
    """The norm would be 4096 if the sums were float32."""
    assert vegrad.norm(np.broadcast_to(np.float32(1.0), (10**8,))) == 10_000.0
    assert vegrad.norm(np.ones(10**8, np.float32)) == 10_000.0


def test_more_elements_than_an_int_holds() -> None:
    row = np.full(2**18, 0.5, np.float16)
    array = np.broadcast_to(row, (2**13 + 1, row.size))
    assert array.size > 2**31
    assert_close(vegrad.norm(array), 0.5 * math.sqrt(array.size))
    row[-1] = np.inf
    assert vegrad.norm(array) == math.inf


def test_thousands_of_small_buffers(isa: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [make(rng, "float32", (int(n),), "plain") for n in rng.integers(0, 40, 3000)]
    assert_norms(arrays)
    assert_norms(arrays, 1, {f"layers.{k}": array for k, array in enumerate(arrays)})


# -------------------------------------------------------------------------------- the same bits


@every_dtype
def test_the_same_bits_everywhere(dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        laid_out(make(rng, dtype, shape, kind), layout)[0]
        for shape, kind in [
            ((), "plain"),
            ((7,), "wide"),
            ((1000,), "wide"),
            ((65537,), "plain"),
            ((130, 171), "wide"),
        ]
        for layout in LAYOUTS
    ]

    def norms() -> bytes:
        each = [vegrad.norms(arrays, p) for p in (*ORDS, 2.7)]
        return np.array([vegrad.norm(arrays, p) for p in (*ORDS, 2.7)]).tobytes() + b"".join(
            e.tobytes() for e in each
        )

    everywhere(norms)


# ------------------------------------------------------------------------------ how it is passed

A, B = np.array([3.0, 0.0], np.float32), np.array([[0.0], [4.0]])


def none_too() -> Iterator[Any]:
    yield from (A, None, B)


@pytest.mark.parametrize(
    "passed",
    [
        [A, B],
        (A, B),
        {"a": A, "b": B},
        MappingProxyType({"a": A, "b": B}),
        {"a": A, "b": B}.values(),
        [None, A, None, B, None],
        {"a": A, "nothing": None, "b": B},
    ],
    ids=str,
)
def test_containers(passed: Any) -> None:
    assert vegrad.norm(passed) == 5.0
    np.testing.assert_array_equal(vegrad.norms(passed), [3.0, 4.0])


def test_a_generator_is_consumed_once() -> None:
    for call in (vegrad.norm, vegrad.norms):
        items = none_too()
        np.testing.assert_array_equal(call(items), 5.0 if call is vegrad.norm else [3.0, 4.0])
        assert next(items, "exhausted") == "exhausted"


@pytest.mark.parametrize("passed", [[], (), {}, [None], {"a": None}])
def test_nothing_has_no_norm(passed: Any) -> None:
    for p in ORDS:
        assert vegrad.norm(passed, p) == 0.0
        assert vegrad.norms(passed, p).shape == (0,)
        assert vegrad.norms(passed, p).dtype == np.float64


def test_one_buffer_is_a_list_of_one(isa: str) -> None:
    for array in (A, B, np.array(-2.0), np.zeros((0, 3), np.float16)):
        assert vegrad.norm(array) == vegrad.norm([array])
        np.testing.assert_array_equal(vegrad.norms(array), [vegrad.norm(array)])


def test_read_only_arrays_and_the_same_memory_twice(isa: str) -> None:
    array = np.frombuffer(np.arange(6.0).tobytes(), np.float64)
    assert not array.flags.writeable
    assert_norms([array, array, array[::2], array[1:]])
    assert_norms([np.broadcast_to(np.float32(0.1), (1000, 3)), np.broadcast_to(A, (5, 2))])


# ------------------------------------------------------------------------------ PyTorch and JAX


def torch_tensors(torch: Any, kind: str) -> list[tuple[Any, np.ndarray]]:
    """Make tensors of one dtype in many layouts, each with its values in float64."""
    dtype = getattr(torch, kind)
    whole = torch.randn((6, 10, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    views = [
        whole,
        whole.permute(2, 0, 1),
        whole[1::2, ::3],
        whole[0, 0, 0],
        whole[:0],
        whole.T.mT,
        whole[2:3].expand(4, 10, 7),
        whole.clone().requires_grad_(),
        torch.nn.Parameter(whole),
        whole.clone().requires_grad_()[1:],
        whole.real,
        whole.detach().as_strided((3, 3), (1, 1)),
        whole.to(memory_format=torch.contiguous_format).unfold(1, 4, 2),
    ]
    return [(view, view.detach().double().numpy()) for view in views]


@pytest.mark.filterwarnings("ignore:The use of `x.T`:UserWarning")
@every_dtype
def test_torch_tensors(isa: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    pairs = torch_tensors(torch, dtype)
    for p in (2, 1, math.inf):
        for tensor, array in pairs:
            assert_norms([array], p, tensor)
        assert_norms([array for _, array in pairs], p, [tensor for tensor, _ in pairs])


def test_gradients_of_a_module() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    model(torch.ones(3, 5)).square().sum().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    assert [g is None for g in grads] == [False, False, False, True]
    arrays = [g.numpy() for g in grads if g is not None]
    assert_norms(arrays, 2, grads)
    assert_norms(arrays, 2, {name: p.grad for name, p in model.named_parameters()})
    with torch.inference_mode():
        want = float(torch.nn.utils.get_total_norm(grads[:3]))
        assert vegrad.norm([g.clone() for g in grads[:3]]) == pytest.approx(want, rel=1e-6)
    assert_norms([p.detach().numpy() for p in model.parameters()], 2, list(model.parameters()))


@every_dtype
def test_jax_arrays(dtype: str) -> None:
    jax = pytest.importorskip("jax")
    if dtype == "float64":
        pytest.skip("JAX has none unless asked")
    array = jax.numpy.asarray(np.arange(-5.0, 7.0).reshape(3, 4)).astype(dtype)
    assert_norms([array], 2, array)
    assert_norms([array, array[1]], 3, {"a": array, "b": array[1]})


# ---------------------------------------------------------------------------- all at one time


def test_from_several_python_threads() -> None:
    """The GIL is released, so several threads may measure the same buffers at once."""
    arrays = [make(np.random.default_rng(k), "float32", (50_000,), "plain") for k in range(8)]
    want = [vegrad.norm(array) for array in arrays]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(vegrad.norm, arrays)) == want
