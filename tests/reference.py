"""What vegrad computes, in plain float64 NumPy, written to be read beside the equations.

Layer l of L, on a batch of B rows, h_0 = x:

    z_l = h_{l-1} W_lᵀ + b_l          pre-activations, (B, O)
    y_l = norm(z_l)                   hidden layers only, when there is a norm; else z_l
    h_l = φ_l(y_l)  [+ h_{l-1}]       the skip connection where the widths agree

    δ_l = ∂loss/∂z_l,   ∂loss/∂W_l = δ_lᵀ h_{l-1},   ∂loss/∂b_l = Σ_rows δ_l,
    ∂loss/∂h_{l-1} = δ_l W_l  [+ ∂loss/∂h_l]

Every layer's values are `Scaled`: a float64 array times a power of two whose exponent is a Python
integer. That holds a chain of any depth.

What is exact, up to float64's rounding: everything while |z| stays within 2^±500. Beyond that an
activation is its tangent at 0 or its asymptote, wrong by less than 2^-500 of the layer's largest
value. An element smaller than 2^-1022 times its layer's largest counts as 0. Derivatives below
2^-860 (sigmoid at -2000) go through their logarithm, with a relative error under 1e-10. Data and
parameters are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tests.reference_activations import ACTIVATIONS as ACTIVATIONS
from tests.reference_activations import LEAKY_SLOPE as LEAKY_SLOPE
from tests.reference_activations import SELU_ALPHA as SELU_ALPHA
from tests.reference_activations import SELU_LAMBDA as SELU_LAMBDA
from tests.reference_activations import (
    SLOPES_AT_INFINITY,
    SLOPES_AT_ZERO,
    log_phi,
    log_phi_prime,
    phi,
    phi_prime,
    sigmoid,
)

LN2 = math.log(2.0)
NORM_EPS = 1e-5
LOSSES = ("mse", "cross_entropy", "binary_cross_entropy")
NORMS = (None, "layer", "rms")
INITIALIZERS = ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_normal",
                "orthogonal", "normal")  # fmt: skip


# ------------------------------------------------------------------ numbers with a far exponent


class Scaled(NamedTuple):
    """mantissa · 2^exponent; the largest |mantissa| lies in [1/2, 1)."""

    mantissa: np.ndarray
    exponent: int


ZERO_EXPONENT = -(10**12)  # of an array of zeros: smaller than any other


def scaled(array: Any, exponent: int = 0) -> Scaled:
    array = np.asarray(array, np.float64)
    largest = np.max(np.abs(array), initial=0.0)
    if largest == 0:
        return Scaled(array, ZERO_EXPONENT)
    if not np.isfinite(largest):
        return Scaled(array, exponent)
    shift = math.frexp(largest)[1]
    return Scaled(np.ldexp(array, -shift), exponent + shift)


def shift(array: Any, exponent: int) -> np.ndarray:
    """array · 2^exponent in float64: 0 or inf where that is too small or too large."""
    with np.errstate(all="ignore"):
        return np.ldexp(array, max(-4000, min(4000, exponent)))


def value(s: Scaled) -> np.ndarray:
    return shift(s.mantissa, s.exponent)


def add(a: Scaled, b: Scaled) -> Scaled:
    e = max(a.exponent, b.exponent)
    return scaled(shift(a.mantissa, a.exponent - e) + shift(b.mantissa, b.exponent - e), e)


def matmul(a: Scaled, b: Scaled) -> Scaled:
    return scaled(a.mantissa @ b.mantissa, a.exponent + b.exponent)


def transpose(a: Scaled) -> Scaled:
    return Scaled(a.mantissa.T, a.exponent)


def from_log(sign: np.ndarray, log: np.ndarray) -> Scaled:
    """sign · e^log; below e^(-10^9) it counts as 0."""
    top = np.max(log)
    if top < -1e9 or np.isnan(top):
        return scaled(np.full_like(log, 0.0 if top < 0 else np.nan))
    k = math.floor(top / LN2)
    return scaled(sign * np.exp(log - k * LN2), k)


def log2_norm(s: Scaled) -> float:
    """log2 of the Frobenius norm."""
    norm = float(np.sqrt(np.sum(s.mantissa**2)))
    return -math.inf if norm == 0 else s.exponent + float(np.log2(norm))


def as_dtype(s: Scaled, dtype: str) -> np.ndarray:
    """What an array of this dtype can hold: 0 below its normal range, inf above it."""
    with np.errstate(all="ignore"):
        array = value(s).astype(dtype)
    return np.where(np.abs(array) < np.finfo(dtype).tiny, 0, array).astype(dtype)


# ---------------------------------------------------------------------------------- activations

FAR = 500


def near_value(y: Scaled) -> np.ndarray:
    """y in float64: at most 2^FAR, and at least 2^-1020 (but for a true 0), so its sign remains."""
    size = np.clip(np.abs(value(y)), 2.0**-1020, 2.0**FAR)
    return np.where(y.mantissa == 0, 0.0, np.copysign(size, y.mantissa))


def activate(name: str, y: Scaled) -> Scaled:
    """φ(y) for y of any size."""
    z = near_value(y)
    with np.errstate(all="ignore"):
        plain = phi(name, z)
        if np.max(np.abs(plain)) < 2.0**-950 and np.max(z) < -30.0:  # it has underflowed
            return from_log(np.sign(phi(name, -np.ones_like(z))), log_phi(name, z))
    slopes = (SLOPES_AT_ZERO if y.exponent < 0 else SLOPES_AT_INFINITY)[name]
    if abs(y.exponent) <= FAR or slopes is None:
        return scaled(plain)
    slope = np.where(y.mantissa < 0, slopes[0], slopes[1])
    return add(scaled(slope * y.mantissa, y.exponent), scaled(np.where(slope == 0, plain, 0.0)))


def through_activation(name: str, y: Scaled, dh: Scaled) -> Scaled:
    """dh ∘ φ′(y), however small φ′ is."""
    z = near_value(y)
    with np.errstate(all="ignore"):
        slope, log = phi_prime(name, z), log_phi_prime(name, z)
        if not np.any((log < -600) & (log > -np.inf)):
            return scaled(dh.mantissa * slope, dh.exponent)
        tail = -1.0 if name in ("gelu", "silu") else 1.0  # the sign where slope has underflowed
        sign = np.sign(dh.mantissa) * np.where(slope == 0, tail, np.sign(slope))
        product = from_log(sign, np.log(np.abs(dh.mantissa)) + log)
    return scaled(product.mantissa, product.exponent + dh.exponent)


@cache
def largest_slope(name: str) -> float:
    """The largest |φ′|."""
    return float(np.max(np.abs(phi_prime(name, np.linspace(-40.0, 40.0, 80_001)))))


# --------------------------------------------------------------------------- norms and losses


def normalize(kind: str, z: Scaled) -> tuple[Scaled, Scaled]:
    """y = c/s and 1/s by row: c = z - mean(z) for "layer", z for "rms"; s = √(mean(c²) + ε)."""
    mean = np.mean(z.mantissa, axis=1, keepdims=True) if kind == "layer" else 0.0
    c = scaled(z.mantissa - mean, z.exponent)
    k = max(c.exponent, 0)  # in units of 2^k neither c² nor ε overflows
    variance = np.mean(shift(c.mantissa, c.exponent - k) ** 2, axis=1, keepdims=True)
    s = np.sqrt(variance + max(shift(NORM_EPS, -2 * k), 2.0**-1000))
    return scaled(c.mantissa / s, c.exponent - k), scaled(1.0 / s, -k)


def normalize_backward(
    kind: str, y: Scaled, inverse: Scaled, dy: Scaled, rounding: Callable[[Scaled], Scaled]
) -> Scaled:
    """dz = (dy - y·mean(dy·y) [- mean(dy) for "layer"])/s, means over the units of a row."""
    units = value(y)
    along = np.mean(dy.mantissa * units, axis=1, keepdims=True) * units
    mean = np.mean(dy.mantissa, axis=1, keepdims=True) if kind == "layer" else 0.0
    inner = rounding(dy).mantissa - rounding(Scaled(along, 0)).mantissa - mean
    return scaled(inner * inverse.mantissa, dy.exponent + inverse.exponent)


def loss_and_gradient(name: str, h: Scaled, target: Any) -> tuple[float, Scaled]:
    """The loss of the outputs h (B, O) and ∂loss/∂h."""
    B, O = h.mantissa.shape  # noqa: E741
    target = np.asarray(target)
    with np.errstate(all="ignore"):
        if name == "mse":  # mean (h - t)²
            e = add(h, scaled(-target.astype(np.float64).reshape(B, O)))
            loss = float(shift(np.mean(e.mantissa**2), 2 * e.exponent))
            return loss, scaled(2.0 / (B * O) * e.mantissa, e.exponent)

        if name == "cross_entropy":  # mean_rows -log p[label], p = softmax(h); ∂ = (p - onehot)/B
            own = np.arange(O) == target[:, None]
            top = np.max(h.mantissa, axis=1, keepdims=True)
            log_p = shift(h.mantissa - top, h.exponent)
            log_p = log_p - np.log(np.sum(np.exp(log_p), axis=1, keepdims=True))
            others = np.logaddexp.reduce(np.where(own, -np.inf, log_p), axis=1, keepdims=True)
            log = np.where(own, others, log_p) - math.log(B)  # 1 - p[label] without cancellation
            return float(-np.sum(log_p[own]) / B), from_log(np.where(own, -1.0, 1.0), log)

        # binary_cross_entropy: mean t·softplus(-h) + (1 - t)·softplus(h); ∂ = (σ(h) - t)/(B·O)
        t = target.astype(np.float64).reshape(B, O)
        v = near_value(h)
        loss = float(np.mean(t * phi("softplus", -v) + (1.0 - t) * phi("softplus", v)))
        d = (1.0 - t) * sigmoid(v) - t * sigmoid(-v)
        log = np.where(t == 0, log_phi_prime("softplus", v), np.log(np.abs(d)))
        log = np.where(t == 1, log_phi_prime("softplus", -v), log) - math.log(B * O)
        return loss, from_log(np.where(t == 1, -1.0, np.where(t == 0, 1.0, np.sign(d))), log)


def initial_weight_std(init: str, inputs: int, outputs: int, sigma_w: float | None = None) -> float:
    """Standard deviation of one initial weight; biases are 0, or N(0, sigma_b²) for "normal"."""
    variance = {
        "glorot": 2.0 / (inputs + outputs),  # a uniform draw spans ±√3 times its deviation
        "he": 2.0 / inputs,
        "lecun": 1.0 / inputs,
        "orthogonal": 1.0 / max(inputs, outputs),  # W Wᵀ = 1 or Wᵀ W = 1
        "normal": (sigma_w or 0.0) ** 2 / inputs,
    }
    return math.sqrt(variance[init.split("_")[0]])


# --------------------------------------------------------------------- forward, backward, flow


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    loss: float
    output: Scaled
    gradients: dict[str, Scaled]
    flow: dict[str, Any]
    activation_inputs: list[Scaled]  # y_l


def run(
    parameters: Mapping[str, Any],
    x: Any,
    target: Any,
    *,
    activation: str = "tanh",
    output: str = "identity",
    loss: str = "mse",
    norm: str | None = None,
    residual: bool = False,
    rounding: Callable[[Scaled], Scaled] = lambda s: s,
    **_: Any,
) -> Pass:
    """One pass; `rounding` is applied to every array that a program would hold."""
    L = len(parameters) // 2
    W = [rounding(scaled(parameters[f"layers.{i}.weight"])) for i in range(L)]
    b = [rounding(scaled(parameters[f"layers.{i}.bias"])) for i in range(L)]
    names = [activation] * (L - 1) + [output]
    norms = [norm] * (L - 1) + [None]
    skips = [residual and w.mantissa.shape[0] == w.mantissa.shape[1] for w in W]

    h, z, y, inverse = [rounding(scaled(x))], [], [], []  # h has one entry more: the input
    for i in range(L):
        z.append(rounding(add(matmul(h[i], transpose(W[i])), b[i])))
        normalized, s = normalize(norms[i], z[i]) if norms[i] else (z[i], scaled(1.0))
        y.append(rounding(normalized))
        inverse.append(s)
        a = rounding(activate(names[i], y[i]))
        h.append(rounding(add(a, h[i])) if skips[i] else a)

    loss_value, dloss = loss_and_gradient(loss, h[L], target)
    dh = rounding(dloss)
    gradients: dict[str, Scaled] = {}
    delta, product = [dh] * L, [dh] * L  # product[i] = δ_i W_i
    for i in reversed(range(L)):
        dy = rounding(through_activation(names[i], y[i], dh))
        kind = norms[i]
        delta[i] = normalize_backward(kind, y[i], inverse[i], dy, rounding) if kind else dy
        gradients[f"layers.{i}.weight"] = matmul(transpose(delta[i]), h[i])
        gradients[f"layers.{i}.bias"] = scaled(np.sum(delta[i].mantissa, axis=0), delta[i].exponent)
        product[i] = rounding(matmul(delta[i], W[i]))
        dh = rounding(add(product[i], dh)) if skips[i] else product[i]
    flow = measure_flow(names, h[1:], z, y, delta, product, gradients)
    return Pass(loss_value, h[L], gradients, flow, y)


def measure_flow(
    names: list[str],
    h: list[Scaled],
    z: list[Scaled],
    y: list[Scaled],
    delta: list[Scaled],
    product: list[Scaled],
    gradients: Mapping[str, Scaled],
) -> dict[str, Any]:
    """The fields of `vegrad.Flow`."""
    L = len(names)

    def statistic(of: Callable[[np.ndarray], Any], arrays: list[Scaled]) -> np.ndarray:
        return np.array([float(shift(of(a.mantissa), a.exponent)) for a in arrays])

    with np.errstate(all="ignore"):
        delta_log2 = np.array([log2_norm(d) for d in delta])
        through_weights = np.array([log2_norm(p) for p in product])
        log_slope = [log_phi_prime(name, near_value(v)) for name, v in zip(names, y, strict=True)]
        threshold = [math.log(0.05 * largest_slope(name)) for name in names]
        weights = [gradients[f"layers.{i}.weight"] for i in range(L)]
        gain = delta_log2[:-1] - delta_log2[1:]
        weight_gain = through_weights[1:] - delta_log2[1:]
        return {
            "activation_rms": statistic(lambda a: np.sqrt(np.mean(a**2)), h),
            "preactivation_mean": statistic(np.mean, z),
            "preactivation_std": statistic(np.std, z),
            "saturated": np.array([np.mean(log_slope[i] < threshold[i]) for i in range(L)]),
            "dead": np.array([np.mean(np.all(s == -np.inf, axis=0)) for s in log_slope]),
            "delta_log2": delta_log2,
            "gradient_log2": np.array([log2_norm(weights[i]) for i in range(L)]),
            "gain_log2": gain,
            "weight_gain_log2": weight_gain,
            "activation_gain_log2": gain - weight_gain,
            "chain_log10": float(delta_log2[0] - delta_log2[-1]) * math.log10(2.0),
        }
