"""The activations in plain Python and NumPy, as their users would write them for speed.

Most have a derivative that follows from their value, so only the value is kept; the others keep z.
An activation that has no row here is taken from vegrad's own table, which is right but slower.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from math import erf, exp, expm1, sqrt
from typing import Any, NamedTuple

import numpy as np

from vegrad import activations
from vegrad.activations import ERF_SLOPE, LEAKY_SLOPE, SELU_ALPHA, SELU_SCALE
from vegrad.benchmark.peers.problem import Array

ROOT, PEAK = sqrt(0.5), 1 / sqrt(2 * math.pi)
KINKED = tuple(row.name for row in activations.ACTIVATIONS.values() if row.kinked)
# These halve the variance of their input, so that they get weights from he_uniform.
UNBOUNDED = tuple(
    row.name for row in activations.ACTIVATIONS.values() if row.rectifier and row.name != "identity"
)


class Activation(NamedTuple):
    """φ and φ′ of an activation, for floats and in place for arrays."""

    keeps_z: bool
    """True if φ′ is computed from z, False if it is computed from h = φ(z)."""
    value: Callable[[float], float]
    """φ(z)."""
    slope: Callable[[float], float]
    """φ′ from z or h, whichever is kept."""
    apply_: Callable[[Array, Array], object]
    """Function of z and a scratch array that turns z into φ(z)."""
    slope_: Callable[[Array, Array, Array], object]
    """Function of z or h, `out` and a scratch array that writes φ′ to `out`."""


def _sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z)) if z >= 0 else exp(z) / (1 + exp(z))


def _sigmoid_(z: Array) -> None:
    np.exp(np.negative(z, out=z), out=z)
    np.reciprocal(np.add(z, 1, out=z), out=z)


def _erf_(z: Array) -> None:
    """Replace z by erf(z); NumPy has no erf, so that its users take SciPy's."""
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
    np.maximum(z, np.multiply(z, LEAKY_SLOPE, out=scratch), out=z)


def _leaky_relu_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.greater(h, 0, out=out)
    out *= 1 - LEAKY_SLOPE
    out += LEAKY_SLOPE


def _elu_(z: Array, scratch: Array) -> None:
    np.expm1(np.minimum(z, 0, out=scratch), out=scratch)
    np.add(np.maximum(z, 0, out=z), scratch, out=z)


def _elu_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.add(np.minimum(h, 0, out=out), 1, out=out)


def _selu_(z: Array, scratch: Array) -> None:
    np.expm1(np.minimum(z, 0, out=scratch), out=scratch)
    scratch *= SELU_ALPHA
    np.add(np.maximum(z, 0, out=z), scratch, out=z)
    z *= SELU_SCALE


def _selu_slope_(h: Array, out: Array, scratch: Array) -> None:
    np.greater(h, 0, out=scratch)
    scratch *= SELU_SCALE - SELU_SCALE * SELU_ALPHA
    np.add(np.minimum(h, 0, out=out), SELU_SCALE * SELU_ALPHA, out=out)
    out += scratch


def _cdf_(z: Array) -> None:
    """Replace z by the normal distribution function at z."""
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
    np.multiply(np.exp(out, out=out), ERF_SLOPE, out=out)


def _silu_slope(z: float) -> float:
    s = _sigmoid(z)
    return s * (1 + z * (1 - s))


ACTIVATIONS = {
    "identity": Activation(
        keeps_z=False,
        value=lambda z: z,
        slope=lambda h: 1.0,
        apply_=lambda z, scratch: None,
        slope_=lambda h, out, scratch: out.fill(1),
    ),
    "sigmoid": Activation(
        keeps_z=False,
        value=_sigmoid,
        slope=lambda h: h * (1 - h),
        apply_=lambda z, scratch: _sigmoid_(z),
        slope_=_sigmoid_slope_,
    ),
    "tanh": Activation(
        keeps_z=False,
        value=math.tanh,
        slope=lambda h: 1 - h * h,
        apply_=lambda z, scratch: np.tanh(z, out=z),
        slope_=_tanh_slope_,
    ),
    "relu": Activation(
        keeps_z=False,
        value=lambda z: max(z, 0.0),
        slope=lambda h: float(h > 0),
        apply_=lambda z, scratch: np.maximum(z, 0, out=z),
        slope_=lambda h, out, scratch: np.greater(h, 0, out=out),
    ),
    "leaky_relu": Activation(
        keeps_z=False,
        value=lambda z: max(z, LEAKY_SLOPE * z),
        slope=lambda h: 1.0 if h > 0 else LEAKY_SLOPE,
        apply_=_leaky_relu_,
        slope_=_leaky_relu_slope_,
    ),
    "elu": Activation(
        keeps_z=False,
        value=lambda z: z if z > 0 else expm1(z),
        slope=lambda h: 1.0 if h > 0 else h + 1,
        apply_=_elu_,
        slope_=_elu_slope_,
    ),
    "selu": Activation(
        keeps_z=False,
        value=lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * expm1(z)),
        slope=lambda h: SELU_SCALE if h > 0 else h + SELU_SCALE * SELU_ALPHA,
        apply_=_selu_,
        slope_=_selu_slope_,
    ),
    "gelu": Activation(
        keeps_z=True,
        value=lambda z: z * (1 + erf(ROOT * z)) / 2,
        slope=lambda z: (1 + erf(ROOT * z)) / 2 + z * PEAK * exp(-z * z / 2),
        apply_=_gelu_,
        slope_=_gelu_slope_,
    ),
    "silu": Activation(
        keeps_z=True,
        value=lambda z: z * _sigmoid(z),
        slope=_silu_slope,
        apply_=_silu_,
        slope_=_silu_slope_,
    ),
    "softplus": Activation(
        keeps_z=False,
        value=lambda z: max(z, 0.0) + math.log1p(exp(-abs(z))),
        slope=lambda h: -expm1(-h),
        apply_=lambda z, scratch: np.logaddexp(z, 0, out=z),
        slope_=_softplus_slope_,
    ),
    "hard_tanh": Activation(
        keeps_z=False,
        value=lambda z: min(max(z, -1.0), 1.0),
        slope=lambda h: float(abs(h) < 1),
        apply_=lambda z, scratch: np.clip(z, -1, 1, out=z),
        slope_=_hard_tanh_slope_,
    ),
    "erf": Activation(
        keeps_z=True,
        value=erf,
        slope=lambda z: ERF_SLOPE * exp(-z * z),
        apply_=lambda z, scratch: _erf_(z),
        slope_=_erf_slope_,
    ),
}


def written(name: str) -> Activation:
    """Return the activation as a user would write it, or for want of that as the table has it."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    row = activations.ACTIVATIONS[name]
    return Activation(
        keeps_z=True,
        value=lambda z: float(row.phi(np.asarray(z))),
        slope=lambda z: float(row.slope(np.asarray(z))),
        apply_=lambda z, scratch: np.copyto(z, row.phi(z)),
        slope_=lambda z, out, scratch: np.copyto(out, row.slope(z)),
    )


def identity(name: str) -> Callable[[Any], Any]:
    """Return the function for an activation that a framework does not have: the identity's.

    Raises:
        ValueError: it is another activation.
    """
    if name != "identity":
        raise ValueError(f"activation must be one that the library has, not {name!r}")
    return lambda z: z
