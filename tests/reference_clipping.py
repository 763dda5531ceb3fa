"""Norms, clipping and measurements in plain float64 NumPy, written to be read beside the formulas.

Gradients are lists of float64 arrays, each with the name of the dtype it came from. Results are
not rounded to that dtype: `assert_rounded` of reference_buffers compares them with what the core
stored.

    global norm   N = (Σ|g|^p)^(1/p) over all buffers,   g ← g·min(1, M/N)
    norm          the same, with N of one buffer
    block RMS     N is the RMS of one buffer
    adaptive      N_i of one unit, M_i = λ·max(‖W_i‖, ε),   G_i ← G_i·M_i/max(N_i, 1e-6)
    value         g ← min(max(g, -limit), limit)

A norm is a mantissa and a power of two, so that it can neither overflow nor underflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.reference import scaled, shift
from tests.reference_buffers import FORMATS, Arrays, rounded

# ---------------------------------------------------------------------------------------- norms


class Norm(NamedTuple):
    """mantissa · 2^exponent."""

    mantissa: float
    exponent: int

    def __float__(self) -> float:
        return float(shift(self.mantissa, self.exponent))

    def log2(self) -> float:
        return -math.inf if self.mantissa == 0 else math.log2(self.mantissa) + self.exponent

    def over(self, divisor: float) -> Norm:
        return Norm(self.mantissa / divisor, self.exponent)


def joined(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(a) for a in arrays)])


def norm(arrays: Arrays, p: float = 2) -> Norm:
    """Return (Σ|x|^p)^(1/p) over all the arrays; the largest |x| for p = inf."""
    x = np.abs(joined(arrays))
    if np.isnan(x).any():
        return Norm(math.nan, 0)
    if np.isinf(x).any():
        return Norm(math.inf, 0)
    if not x.any():
        return Norm(0.0, 0)
    mantissa, exponent = scaled(x)
    if math.isinf(p):
        return Norm(float(np.max(mantissa)), exponent)
    with np.errstate(under="ignore"):  # beside a term of at least 2^-p
        return Norm(math.fsum(mantissa**p) ** (1.0 / p), exponent)


# ------------------------------------------------------------------------------------- formulas
# Each formula maps gradients to clipped gradients and the factors that were applied. A buffer to
# which none was applied is returned itself, not a copy.

Formula = Callable[[Arrays], tuple[list[np.ndarray], list[float]]]


def exceeds(n: Norm, limit: float, count: int, p: float, dtypes: Sequence[str]) -> bool:
    """Return True if N > M by more than the rounding of `count` elements explains, or M = 0 < N.

    Each element has a relative error of u, or an error of η if it is subnormal (or became 0).
    """
    if limit == 0:
        return not n.mantissa <= 0
    with np.errstate(over="ignore"):
        m = np.float64(limit) * (1 + max(FORMATS[d].u for d in dtypes))
    eta = max(2.0**-1074, *(math.ldexp(0.5, FORMATS[d].smallest) for d in dtypes))
    with np.errstate(over="ignore"):
        if p < 1:  # (x + η)^p ≤ x^p + (2^p - 1) η^p
            most = (m**p + count * (2**p - 1) * eta**p) ** (1 / p)
        else:  # ‖x + η‖ ≤ ‖x‖ + ‖η‖
            most = m + eta * float(count) ** (1 / p)
    # On the edge itself (p = ½, one element: twice η) the power's rounding must not decide.
    edge = 1 + (2.0**-45 if p < 1 else 0)
    return not n.mantissa <= shift(most, -n.exponent) * edge


def factor(limit: float, n: Norm) -> Norm:
    mantissa, exponent = math.frexp(limit)
    return Norm(mantissa / n.mantissa, exponent - n.exponent)


def times(g: np.ndarray, c: Norm) -> np.ndarray:
    """Return g·c, even if c alone is too small for float64."""
    mantissa, exponent = np.frexp(g)
    with np.errstate(all="ignore"):
        return np.ldexp(mantissa * c.mantissa, exponent + max(-4000, c.exponent))


def global_norm(max_norm: float | None, p: float = 2, *, dtypes: Sequence[str]) -> Formula:
    def formula(grads: Arrays) -> tuple[list[np.ndarray], list[float]]:
        n, count = norm(grads, p), sum(g.size for g in grads)
        if max_norm is None or not exceeds(n, max_norm, count, p, dtypes):
            return list(grads), []
        c = factor(max_norm, n)
        return [times(g, c) for g in grads], [float(c)]

    return formula


def by_norm(max_norm: float, p: float = 2, *, dtypes: Sequence[str]) -> Formula:
    return each([max_norm] * len(dtypes), p, dtypes)


def each(limits: Sequence[float], p: float, dtypes: Sequence[str]) -> Formula:
    """Clip every buffer by its own norm and limit."""

    def formula(grads: Arrays) -> tuple[list[np.ndarray], list[float]]:
        parts = [
            global_norm(limit, p, dtypes=[dtype])([g])
            for g, limit, dtype in zip(grads, limits, dtypes, strict=True)
        ]
        return [part[0][0] for part in parts], [c for part in parts for c in part[1]]

    return formula


def block_rms(max_rms: float, *, dtypes: Sequence[str]) -> Formula:
    def formula(grads: Arrays) -> tuple[list[np.ndarray], list[float]]:
        out, factors = list(grads), []
        for k, (g, dtype) in enumerate(zip(grads, dtypes, strict=True)):
            rms = norm([g]).over(math.sqrt(max(g.size, 1)))
            if exceeds(rms, max_rms, 1, 2, [dtype]):  # the RMS of one element
                c = factor(max_rms, rms)
                out[k] = times(g, c)
                factors.append(float(c))
        return out, factors

    return formula


def adaptive(
    params: Arrays, clipping: float = 0.01, eps: float = 1e-3, *, dtypes: Sequence[str]
) -> Formula:
    """Clip by units: a unit is a row of the first axis, or a whole buffer of at most one axis."""

    def formula(grads: Arrays) -> tuple[list[np.ndarray], list[float]]:
        out, factors = list(grads), []
        for k, (G, W, dtype) in enumerate(zip(grads, params, dtypes, strict=True)):
            rows = [...] if G.ndim <= 1 else range(len(G))
            for i in rows:
                M = clipping * max(float(norm([W[i]])), eps)
                n = norm([G[i]])
                if exceeds(n, M, G[i].size, 2, [dtype]):
                    c = factor(M, Norm(1e-6, 0) if float(n) < 1e-6 else n)
                    out[k] = out[k].copy() if out[k] is G else out[k]
                    out[k][i] = times(G[i], c)
                    factors.append(float(c))
        return out, factors

    return formula


def value(limit: float, *, dtypes: Sequence[str]) -> Formula:
    """Clip by value, with the limit rounded to the dtype of the buffer."""

    def formula(grads: Arrays) -> tuple[list[np.ndarray], list[float]]:
        out, factors = list(grads), []
        for k, (g, dtype) in enumerate(zip(grads, dtypes, strict=True)):
            at = rounded(limit, dtype)
            above = np.abs(g) > at
            if above.any():
                out[k] = np.where(above, np.copysign(at, g), g)
                factors.append(at / float(np.max(np.abs(g[above]))))
        return out, factors

    return formula


# ------------------------------------------------------------------------- what is not finite


class Expected(NamedTuple):
    """The fields of vegrad.Clipped, the unrounded gradients, and which of them are written."""

    grads: list[np.ndarray]
    written: list[bool]
    norm: float
    norms: list[float]
    coefficient: float
    clipped: bool
    skipped: bool
    nonfinite: int


def clip(formula: Formula, grads: Arrays, *, nonfinite: str = "skip", p: float = 2) -> Expected:
    """Apply a formula under a policy other than "raise"."""
    count = sum(int(np.sum(~np.isfinite(g))) for g in grads)
    zeroed = [bool(count and nonfinite == "zero" and not np.isfinite(g).all()) for g in grads]
    before = [np.where(np.isfinite(g), g, 0.0) if z else g for g, z in zip(grads, zeroed)]  # noqa: B905
    skipped = bool(count) and nonfinite == "skip"
    after, factors = (list(before), []) if skipped else formula(before)
    return Expected(
        grads=after,
        written=[z or a is not b for z, a, b in zip(zeroed, after, before, strict=True)],
        norm=float(norm(before, p)),
        norms=[float(norm([g], p)) for g in before],
        coefficient=min([1.0, *factors]),
        clipped=bool(factors),
        skipped=skipped,
        nonfinite=count,
    )


# --------------------------------------------------------------------------------- measurements


def first_nonfinite(array: np.ndarray) -> tuple[int, ...] | None:
    bad = np.argwhere(~np.isfinite(array))
    return tuple(int(i) for i in bad[0]) if len(bad) else None


def mean(x: np.ndarray) -> float:
    if not np.isfinite(x).all():
        with np.errstate(invalid="ignore"):
            return float(np.sum(x[~np.isfinite(x)]))
    mantissa, exponent = scaled(x)
    return float(shift(math.fsum(mantissa) / x.size, exponent))


def statistics(arrays: Arrays, dtypes: Sequence[str]) -> dict[str, Any]:
    """Compute the fields of vegrad.Statistics for all arrays together."""
    x = joined(arrays)
    n = norm(arrays)
    sizes = np.abs(x[np.isfinite(x) & (x != 0)])
    exponents, counts = np.unique(np.frexp(sizes)[1] - 1, return_counts=True)
    subnormals = 0
    for array, dtype in zip(arrays, dtypes, strict=True):
        tiny = 2.0 ** (FORMATS[dtype].smallest + FORMATS[dtype].precision - 1)
        subnormals += int(np.sum((array != 0) & (np.abs(array) < tiny)))
    return {
        "count": x.size,
        "norm": float(n),
        "norm_log2": n.log2(),
        "rms": float(n.over(math.sqrt(x.size))),
        "mean": mean(x),
        "largest": float(np.max(np.abs(x[np.isfinite(x)]))) if np.isfinite(x).any() else math.nan,
        "smallest": float(np.min(sizes)) if sizes.size else math.nan,
        "zeros": int(np.sum(x == 0)),
        "subnormals": subnormals,
        "infs": int(np.sum(np.isinf(x))),
        "nans": int(np.sum(np.isnan(x))),
        "dtype": dtypes[0] if len(set(dtypes)) == 1 else "mixed",
        "histogram": dict(zip(exponents.tolist(), counts.tolist(), strict=True)),
    }
