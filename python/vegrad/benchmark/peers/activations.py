"""The activations in plain Python and NumPy, as their users would write them.

Most have a derivative that follows from their value, so only the value is kept; the others keep z.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from math import erf, exp, expm1, sqrt
from typing import Any, NamedTuple

import numpy as np

from vegrad.benchmark.peers.problem import Array

LEAK = 0.01
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # of selu (Klambauer et al. 2017)
ROOT, PEAK = sqrt(0.5), 1 / sqrt(2 * math.pi)
KINKED = ("relu", "leaky_relu", "selu", "hard_tanh")  # whose derivative jumps
UNBOUNDED = ("relu", "leaky_relu")  # halve the variance: weights from he_uniform


class Activation(NamedTuple):
    """φ for a float and, in place, for an array; φ′ from what is kept of a layer.

    `apply_(z, scratch)` makes z to φ(z); `slope_(kept, out, scratch)` writes φ′ to `out`.
    """

    keeps_z: bool
    value: Callable[[float], float]
    slope: Callable[[float], float]
    apply_: Callable[[Array, Array], object]
    slope_: Callable[[Array, Array, Array], object]


def _sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z)) if z >= 0 else exp(z) / (1 + exp(z))


def _sigmoid_(z: Array) -> None:
    np.exp(np.negative(z, out=z), out=z)
    np.reciprocal(np.add(z, 1, out=z), out=z)


def _erf_(z: Array) -> None:
    """NumPy has no erf; its users take SciPy's."""
    if importlib.util.find_spec("scipy") is not None:
        special: Any = importlib.import_module("scipy.special")
        special.erf(z, out=z)
    else:
        z[...] = np.vectorize(erf, otypes=[z.dtype])(z)


def _sigmoid_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.multiply(h, h, out=out)
    np.subtract(h, out, out=out)


def _tanh_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.multiply(h, h, out=out)
    np.subtract(1, out, out=out)


def _leaky_relu_(z: Array, scratch: Array) -> None:
    np.maximum(z, np.multiply(z, LEAK, out=scratch), out=z)


def _leaky_relu_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.greater(h, 0, out=out)
    out *= 1 - LEAK
    out += LEAK


def _elu_(z: Array, scratch: Array) -> None:
    np.expm1(np.minimum(z, 0, out=scratch), out=scratch)
    np.add(np.maximum(z, 0, out=z), scratch, out=z)


def _elu_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.add(np.minimum(h, 0, out=out), 1, out=out)


def _selu_(z: Array, scratch: Array) -> None:
    np.expm1(np.minimum(z, 0, out=scratch), out=scratch)
    scratch *= ALPHA
    np.add(np.maximum(z, 0, out=z), scratch, out=z)
    z *= SCALE


def _selu_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.greater(h, 0, out=scratch)
    scratch *= SCALE - SCALE * ALPHA
    np.add(np.minimum(h, 0, out=out), SCALE * ALPHA, out=out)
    out += scratch


def _cdf_(z: Array) -> None:
    """Φ(z) in place."""
    _erf_(np.multiply(z, ROOT, out=z))
    z += 1
    z *= 0.5


def _gelu_(z: Array, scratch: Array) -> None:
    np.copyto(scratch, z)
    _cdf_(scratch)
    z *= scratch


def _gelu_slope_(z: Array, out: Array, scratch: Array) -> None:
    np.multiply(z, z, out=out)
    np.exp(np.multiply(out, -0.5, out=out), out=out)
    out *= PEAK
    out *= z
    np.copyto(scratch, z)
    _cdf_(scratch)
    out += scratch


def _silu_(z: Array, scratch: Array) -> None:
    np.copyto(scratch, z)
    _sigmoid_(scratch)
    z *= scratch


def _silu_slope_(z: Array, out: Array, scratch: Array) -> None:
    np.copyto(scratch, z)
    _sigmoid_(scratch)
    np.subtract(1, scratch, out=out)
    out *= z
    out += 1
    out *= scratch


def _softplus_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.negative(np.expm1(np.negative(h, out=out), out=out), out=out)


def _hard_tanh_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.less(np.abs(h, out=out), 1, out=out)


def _erf_slope_(z: Array, out: Array, scratch: Array) -> None:
    np.negative(np.multiply(z, z, out=out), out=out)
    np.multiply(np.exp(out, out=out), 2 / sqrt(math.pi), out=out)


def _silu_slope(z: float) -> float:
    s = _sigmoid(z)
    return s * (1 + z * (1 - s))


# keeps z, then φ and φ′ of a float, φ and φ′ of an array
ACTIVATIONS = {
    "identity": Activation(
        False, lambda z: z, lambda h: 1.0, lambda z, s: None, lambda h, out, s: out.fill(1)
    ),
    "sigmoid": Activation(
        False, _sigmoid, lambda h: h * (1 - h), lambda z, s: _sigmoid_(z), _sigmoid_slope_
    ),
    "tanh": Activation(
        False, math.tanh, lambda h: 1 - h * h, lambda z, s: np.tanh(z, out=z), _tanh_slope_
    ),
    "relu": Activation(
        False, lambda z: max(z, 0.0), lambda h: float(h > 0),
        lambda z, s: np.maximum(z, 0, out=z), lambda h, out, s: np.greater(h, 0, out=out),
    ),
    "leaky_relu": Activation(
        False, lambda z: max(z, LEAK * z), lambda h: 1.0 if h > 0 else LEAK,
        _leaky_relu_, _leaky_relu_slope_,
    ),
    "elu": Activation(
        False, lambda z: z if z > 0 else expm1(z), lambda h: 1.0 if h > 0 else h + 1,
        _elu_, _elu_slope_,
    ),
    "selu": Activation(
        False, lambda z: SCALE * (z if z > 0 else ALPHA * expm1(z)),
        lambda h: SCALE if h > 0 else h + SCALE * ALPHA, _selu_, _selu_slope_,
    ),
    "gelu": Activation(
        True, lambda z: z * (1 + erf(ROOT * z)) / 2,
        lambda z: (1 + erf(ROOT * z)) / 2 + z * PEAK * exp(-z * z / 2), _gelu_, _gelu_slope_,
    ),
    "silu": Activation(True, lambda z: z * _sigmoid(z), _silu_slope, _silu_, _silu_slope_),
    "softplus": Activation(
        False, lambda z: max(z, 0.0) + math.log1p(exp(-abs(z))), lambda h: -expm1(-h),
        lambda z, s: np.logaddexp(z, 0, out=z), _softplus_slope_,
    ),
    "hard_tanh": Activation(
        False, lambda z: min(max(z, -1.0), 1.0), lambda h: float(abs(h) < 1),
        lambda z, s: np.clip(z, -1, 1, out=z), _hard_tanh_slope_,
    ),
    "erf": Activation(
        True, erf, lambda z: 2 / sqrt(math.pi) * exp(-z * z), lambda z, s: _erf_(z), _erf_slope_
    ),
}  # fmt: skip
