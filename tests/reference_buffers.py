"""Buffers of every dtype and layout, and how close results in them must be to float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import vegrad
from vegrad import _core

Arrays = Sequence[np.ndarray]


class Format(NamedTuple):
    """A floating-point format: its precision in bits and powers of two of its range."""

    precision: int
    smallest: int  # the smallest subnormal is 2^smallest
    overflow: int  # 2^overflow is the first power of two it cannot hold
    u: float  # relative excess of a norm over its limit that rounding of elements explains


FORMATS = {
    "float16": Format(11, -24, 16, 2.0**-11),
    "bfloat16": Format(8, -133, 128, 2.0**-8),
    "float32": Format(24, -149, 128, 2.0**-24),
    "float64": Format(53, -1074, 1024, 2.0**-43),  # the error of the norm itself, summed in float64
}


def spacing(x: Any, dtype: str) -> np.ndarray:
    """Return the distance between neighbouring numbers of this dtype at x."""
    form = FORMATS[dtype]
    x = np.asarray(x, np.float64)
    exponent = np.where(x == 0, form.smallest, np.frexp(x)[1] - form.precision)
    return np.ldexp(1.0, np.maximum(exponent, form.smallest))


def rounded(x: float, dtype: str) -> float:
    """Return the nearest number of this dtype."""
    if dtype == "float64" or not math.isfinite(x):
        return x
    near = float(np.rint(x / spacing(x, dtype)) * spacing(x, dtype))
    return math.copysign(math.inf, x) if abs(near) >= 2.0 ** FORMATS[dtype].overflow else near


# ---------------------------------------------------------------------------------- comparisons

NORM_ERROR = 2.0**-44  # below the 2^-43 that a float64 norm may exceed its limit by


def assert_close(got: float, want: float, floor: float = 2.0**-1074, say: str = "") -> None:
    """Check that two numbers are equal within the error of float64 sums."""
    same = got == want or (math.isnan(got) and math.isnan(want))
    near = math.isfinite(want) and abs(got - want) <= max(NORM_ERROR * abs(want), floor)
    assert same or near, f"{say}: {got!r} is not {want!r}, off by {abs(got - want):.3g}"


def assert_rounded(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    """Check that `got` is `want` rounded to the dtype, within half a unit and the norm's error."""
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    got, want = got[finite], want[finite]
    off = np.abs(got - want)
    allowed = 0.5 * spacing(want, dtype) + 2 * NORM_ERROR * np.abs(want)
    if dtype == "float64":  # the product and M/N are rounded as well
        allowed += spacing(want, dtype)
    worst = np.argmax(off - allowed) if off.size else 0
    assert not (off > allowed).any(), f"{got[worst]!r} is not {want[worst]!r} in {dtype}"


# ------------------------------------------------------------------------- data for the tests

KINDS = ("plain", "wide", "huge", "tiny", "sparse")
LAYOUTS = ("contiguous", "transposed", "stepped", "reversed", "offset")


def dtype_of(name: str) -> Any:
    return pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)


def to_float64(arrays: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(a).astype(np.float64) for a in arrays]


def make(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Make finite numbers of a kind, some of them over the whole range of the dtype."""
    form, x = FORMATS[dtype], rng.standard_normal(shape)
    if kind == "wide":
        x = np.copysign(2.0 ** rng.uniform(form.smallest, form.overflow - 1, shape), x)
    elif kind == "huge":
        x = np.ldexp(np.clip(x / 4, -0.99, 0.99), form.overflow)
    elif kind == "tiny":
        x = np.ldexp(np.rint(10 * x), form.smallest)
    elif kind == "sparse":
        x = np.where(rng.uniform(size=shape) < 0.1, x, -0.0)
    return np.asarray(x).astype(dtype_of(dtype))


def laid_out(array: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a view with the same elements in this layout, and the whole array that it views."""
    if layout == "contiguous":
        base = array.copy()
        return base, base
    if layout == "transposed":
        base = np.ascontiguousarray(array.T)
        return base.T.reshape(array.shape), base
    if layout == "offset":  # not aligned to vectors
        base = np.ones(array.size + 2, array.dtype)
        view = base[1:-1].reshape(array.shape)
    else:
        base = np.ones([2 * n + 3 for n in array.shape or (1,)], array.dtype)
        step = slice(1, -2, 2) if layout == "stepped" else slice(-3, 0, -2)
        view = base[(step,) * base.ndim].reshape(array.shape)
    view[...] = array
    return view, base


def everywhere(call: Callable[[], bytes]) -> None:
    """Check that the bytes are the same on all instruction sets and with any number of threads."""
    isa, count, seen = vegrad.isa(), vegrad.num_threads(), {}
    try:
        for name in _core.isas():
            _core.use_isa(name)
            for threads in (1, 2, 3, 7):
                vegrad.set_num_threads(threads)
                seen[name, threads] = call()
    finally:
        _core.use_isa(isa)
        vegrad.set_num_threads(count)
    first = next(iter(seen.values()))
    assert [where for where, bits in seen.items() if bits != first] == []
