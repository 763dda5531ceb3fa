"""Every activation and its derivative, over the whole range of its argument.

At most 4 ulp (float32) or 8 ulp (float64) from the truth; in the cancelling tails of gelu, silu,
elu and selu an absolute 2^-24 (2^-53) instead. Derivatives: 1e-5 (1e-13) relative, above 2^10
times the smallest normal number. A result whose truth is subnormal, or whose argument is, may
count as 0.
"""

from functools import cache, partial

import mpmath
import numpy as np
import pytest
import vegrad
from vegrad import _core

from tests import reference, reference_activations
from tests.reference_activations import SLOPES_AT_INFINITY, SLOPES_AT_ZERO

ULPS = {"float32": 4.0, "float64": 8.5}  # the half: rounding the truth to float64
TAIL = {"float32": 2.0**-24, "float64": 2.0**-53}
DERIVATIVE = {"float32": 1e-5, "float64": 1e-13}
CURVED = [name for name, at_zero in SLOPES_AT_ZERO.items() if at_zero and at_zero[0]]
# gelu, silu, elu and selu: flat far to the left, but not at 0, and not to the right.
CANCELLING = [n for n in CURVED if SLOPES_AT_INFINITY[n][0] == 0 != SLOPES_AT_INFINITY[n][1]]
KINKED_AT_ZERO = [n for n, slopes in SLOPES_AT_ZERO.items() if slopes and slopes[0] != slopes[1]]


def sign_change(name: str) -> float | None:
    """Where the derivative turns positive, to 0.001; None if it is never negative."""
    z = np.linspace(-5.0, 5.0, 10_001)
    negative = np.flatnonzero(reference.phi_prime(name, z) < 0)
    return float(z[negative[-1]]) if negative.size else None


SIGN_CHANGES = {n: z for n in reference.ACTIVATIONS if (z := sign_change(n)) is not None}

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_activation = pytest.mark.parametrize("name", reference.ACTIVATIONS)
# Also by way of the form that a forward pass keeps, where there is one.
both_ways = pytest.mark.parametrize(
    ("name", "kept"),
    [(n, False) for n in reference.ACTIVATIONS] + [(n, True) for n in _core.KEPT],
)


@cache
def arguments(dtype: str) -> np.ndarray:
    """Finite: every exponent with several mantissas, subnormals, zeros, and the busy middle."""
    rng = np.random.default_rng(0)
    unsigned, mantissa_bits, exponents = {
        "float32": (np.uint32, 23, np.arange(0, 255)),
        "float64": (np.uint64, 52, np.r_[0:3, 3:2044:7, 1000:1035, 2044:2047]),
    }[dtype]
    count = 40 if dtype == "float32" else 3
    ends = np.array([0, 1, 2**mantissa_bits - 1])
    mantissas = np.concatenate([ends, rng.integers(0, 2**mantissa_bits, count)])
    bits = (exponents[:, None].astype(unsigned) << unsigned(mantissa_bits)) | mantissas.astype(
        unsigned
    )
    magnitudes = bits.ravel().view(dtype)
    size = 40_000 if dtype == "float32" else 700
    middle = np.concatenate([rng.uniform(-r, r, size) for r in (0.01, 1.5, 12.0, 110.0)])
    edge = 800.0 if dtype == "float64" else 110.0
    far = rng.uniform(-edge, edge, size)
    return np.concatenate([magnitudes, -magnitudes, middle.astype(dtype), far.astype(dtype)])


@cache
def truth(name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """φ and φ′ at `arguments`, in float64: by the reference, or for float64 by mpmath."""
    z = arguments(dtype)
    with np.errstate(all="ignore"):
        if dtype == "float32":
            wide = z.astype(np.float64)
            return reference.phi(name, wide), reference.phi_prime(name, wide)
        with mpmath.workdps(40):
            pairs = [reference_activations.precisely(name)(mpmath.mpf(float(v))) for v in z]
            return np.array([to_float(p) for p, _ in pairs]), np.array(
                [to_float(d) for _, d in pairs]
            )


def to_float(v: mpmath.mpf) -> float:
    return float(v) if abs(v) > mpmath.ldexp(1, -1080) else 0.0


def check(ok: np.ndarray, what: str, z: np.ndarray, got: np.ndarray, want: np.ndarray) -> None:
    bad = np.flatnonzero(~ok)
    worst = bad[:5]
    assert bad.size == 0, f"{what}: {bad.size} of {z.size}, first " + "; ".join(
        f"z={z[i]!r}: {got[i]!r}, not {want[i]!r}" for i in worst
    )


def value_is_right(name: str, z: np.ndarray, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    info = np.finfo(z.dtype)
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(np.float64) - want)
        exponent = np.frexp(np.maximum(np.abs(want), float(info.tiny)))[1] - 1
        ok = error <= ULPS[z.dtype.name] * np.ldexp(float(info.eps), exponent)
    ok |= (np.abs(want) > float(info.max)) & (got == np.copysign(np.inf, want))
    ok |= (got == 0) & (
        (np.abs(want) <= info.tiny) | (np.abs(z) < info.tiny) & (np.abs(want) < 0.1)
    )
    if name in CANCELLING:
        ok |= (z < 0) & (error <= TAIL[z.dtype.name])
    return ok


def derivative_is_right(name: str, z: np.ndarray, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    info = np.finfo(z.dtype)
    relative = DERIVATIVE[z.dtype.name]
    error = np.abs(got.astype(np.float64) - want)
    ok = error <= relative * np.abs(want)
    # Factors of a derivative this close to the end of the range are flushed one by one; there the
    # flow takes the derivative's logarithm instead (test_flow.py).
    ok |= (np.abs(want) < 2.0**10 * float(info.tiny)) & (error <= 2.0**10 * float(info.tiny))
    if name in SIGN_CHANGES:
        ok |= (np.abs(z - SIGN_CHANGES[name]) < 0.3) & (error <= relative * 0.1)
    if name in KINKED_AT_ZERO:  # a subnormal argument may count as 0
        ok |= np.abs(z) < info.tiny
    return ok


@both_dtypes
@both_ways
def test_values_over_the_whole_range(isa: str, name: str, kept: bool, dtype: str) -> None:
    z = arguments(dtype)
    got, _ = _core.activate(name, z, kept)
    want, _ = truth(name, dtype)
    assert got.dtype == z.dtype
    assert got.shape == z.shape
    check(value_is_right(name, z, got, want), name, z, got, want)


@both_dtypes
@both_ways
def test_derivatives_over_the_whole_range(isa: str, name: str, kept: bool, dtype: str) -> None:
    z = arguments(dtype)
    _, got = _core.activate(name, z, kept)
    _, want = truth(name, dtype)
    assert got.dtype == z.dtype
    assert got.shape == z.shape
    check(derivative_is_right(name, z, got, want), f"{name}'", z, got, want)


@both_dtypes
@both_ways
def test_every_length_around_the_lanes(isa: str, name: str, kept: bool, dtype: str) -> None:
    """In a tail shorter than a register an element is what it is inside a long array."""
    z = np.random.default_rng(1).uniform(-3, 3, 70).astype(dtype)
    with np.errstate(all="ignore"):
        want, slope = (
            reference.phi(name, z.astype(float)),
            reference.phi_prime(name, z.astype(float)),
        )
    for length in range(1, 71):
        got, got_slope = _core.activate(name, z[:length].copy(), kept)
        assert got.shape == got_slope.shape == (length,)
        check(value_is_right(name, z[:length], got, want[:length]), name, z, got, want)
        ok = derivative_is_right(name, z[:length], got_slope, slope[:length])
        check(ok, f"{name}' at length {length}", z, got_slope, slope)


@both_dtypes
@every_activation
def test_the_argument_is_left_alone(isa: str, name: str, dtype: str) -> None:
    z = np.random.default_rng(2).uniform(-3, 3, 37).astype(dtype)
    before = z.copy()
    _core.activate(name, z)
    np.testing.assert_array_equal(z, before)


def at_infinity(name: str) -> list[float]:
    """φ(-∞), φ(∞), φ′(-∞), φ′(∞)."""
    z = np.array([-(2.0**400), 2.0**400])
    with np.errstate(all="ignore"):
        values = reference.phi(name, z)
        ends = np.where(np.abs(values) > 1e100, np.copysign(np.inf, values), values)
        return [*ends.tolist(), *reference.phi_prime(name, z).tolist()]


@both_dtypes
@both_ways
def test_infinities_and_nan(isa: str, name: str, kept: bool, dtype: str) -> None:
    for length in (1, 17, 64):  # in a tail and in whole registers
        ends = np.resize(np.array([-np.inf, np.inf, np.nan], dtype), 3 * length)
        got, slope = _core.activate(name, ends, kept)
        want = np.array(at_infinity(name))
        eps, least = np.finfo(dtype).eps, 2 * np.finfo(dtype).tiny if _core.is_plain() else 0
        np.testing.assert_allclose(got[0::3], want[0], rtol=4 * eps, err_msg=f"{name}(-inf)")
        np.testing.assert_allclose(got[1::3], want[1], rtol=4 * eps, err_msg=f"{name}(inf)")
        assert np.isnan(got[2::3]).all(), f"{name}(nan) is {got[2]}"
        close = partial(np.testing.assert_allclose, rtol=4 * eps, atol=least)
        close(slope[0::3], want[2], err_msg=f"{name}'(-inf)")
        close(slope[1::3], want[3], err_msg=f"{name}'(inf)")


@both_dtypes
@pytest.mark.parametrize(
    ("name", "at", "slope"),
    [
        ("relu", 0.0, 0.0),
        ("leaky_relu", 0.0, reference.LEAKY_SLOPE),
        ("elu", 0.0, 1.0),
        ("selu", 0.0, reference.SELU_LAMBDA * reference.SELU_ALPHA),
        ("hard_tanh", 1.0, 0.0),
        ("hard_tanh", -1.0, 0.0),
        ("hard_tanh", 0.0, 1.0),
    ],
)
def test_derivatives_at_the_kinks(isa: str, name: str, at: float, slope: float, dtype: str) -> None:
    for z in (at, -0.0) if at == 0 else (at,):
        _, got = _core.activate(name, np.full(19, z, dtype))
        np.testing.assert_allclose(got, slope, rtol=2 * np.finfo(dtype).eps)


@both_dtypes
@every_activation
def test_a_unit_beside_a_huge_one(isa: str, name: str, dtype: str) -> None:
    """In a network: φ of one unit is what it is, however large its neighbours are."""
    for size in (2.0**30, 2.0**45, 2.0**100):
        net = vegrad.MLP([1, 3, 1], activation=name, dtype=dtype)
        net.parameters["layers.0.weight"][:, 0] = [size, -size, -1.0]
        for unit in (1, 2):
            net.parameters["layers.1.weight"][...] = np.arange(3) == unit
            z = net.parameters["layers.0.weight"][unit].astype(np.float64)
            want = reference.phi(name, z)
            got = net.forward(np.ones((1, 1), dtype))[0]
            np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=f"{name}({z[0]})")


def test_the_table_of_names() -> None:
    """A new activation needs its reference here, and nothing else to be swept."""
    assert set(_core.ACTIVATIONS) == set(reference.ACTIVATIONS)
    assert set(_core.LOSSES) == set(reference.LOSSES)
    assert set(_core.NORMS) == set(reference.NORMS) - {None}
