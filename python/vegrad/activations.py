"""One row an activation, with everything that any other module needs to know of it.

The rules of a diagnosis, mean-field theory, the benchmark's peers and the PyTorch front end all
read this table, so that a new activation takes a kernel in C++, a row here, and its formulas in the
tests' reference. No framework is imported here: their functions are named, and looked up by the
modules that import the framework. The kernels have a table of their own
(cpp/kernels/activation_table.hpp), to which a test holds this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import erf as scalar_erf
from math import pi, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray

Function = Callable[[FloatArray], FloatArray]

LEAKY_SLOPE = 0.01
SELU_SCALE = 1.0507009873554805  # Klambauer et al. 2017
SELU_ALPHA = 1.6732632423543772
ERF_SLOPE = 2.0 / sqrt(pi)  # at 0


@dataclass(frozen=True)
class Counterpart:
    """The same activation in a framework, by name."""

    function: str
    """Path below the framework's package, e.g. "nn.functional.silu" below `torch`."""
    module: str | None = None
    """Name of the class in `torch.nn`; None if there is none, and in JAX."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments that change the function, in its order, with the values that make it vegrad's."""

    @property
    def short(self) -> str:
        """Name of the function without its path, as PyTorch's dispatcher reports it."""
        return self.function.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An activation φ. There are no defaults: a row that lacks a field is an error at import."""

    name: str
    phi: Function
    """φ of a float64 array, element by element."""
    slope: Function
    """φ′ of a float64 array, element by element."""
    at_zero: tuple[float, float] | None
    """φ′ just below and just above 0; None where φ(0) is not 0."""
    at_infinity: tuple[float, float]
    """φ′ towards -∞ and +∞."""
    kinks: tuple[float, ...]
    """Where φ, φ′ or φ″ jumps, apart from 0."""
    largest_slope: float
    """The largest |φ′|."""
    critical_sigma_b: float | None
    """σ_b of init="critical": 0 where the critical point at σ_b = 0 is a good place to start from,
    else the value with which the literature shows the activation (Schoenholz et al. 2017, Hayou et
    al. 2019). None if no weights keep the gradient's size."""
    stable: bool
    """False if no scale of the weights keeps both the signal and the gradient at usual sizes of z:
    what shrinks at one scale grows at the next, as V′ > 1 at the critical point."""
    torch: Counterpart | None
    jax: Counterpart | None

    @property
    def bounded(self) -> bool:
        """True if φ tends to a finite value on both sides."""
        return self.at_infinity == (0.0, 0.0)

    @property
    def rectifier(self) -> bool:
        """True if φ is two half-lines that meet at 0, so that it has no scale of its own."""
        return self.at_zero == self.at_infinity

    @property
    def kinked(self) -> bool:
        """True if φ′ jumps somewhere."""
        return bool(self.kinks) or (self.at_zero is not None and self.at_zero[0] != self.at_zero[1])


# Functions of float64 arrays -------------------------------------------------------------------


def erf(x: FloatArray) -> FloatArray:
    """Return the error function of each element."""
    return np.asarray(np.frompyfunc(scalar_erf, 1, 1)(x), np.float64)


def normal_pdf(x: FloatArray) -> FloatArray:
    """Return the density of a standard normal variable at each element."""
    return np.exp(-0.5 * x * x) / sqrt(2.0 * pi)


def _normal_cdf(x: FloatArray) -> FloatArray:
    return 0.5 + 0.5 * erf(x * sqrt(0.5))


def _sigmoid(x: FloatArray) -> FloatArray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def _tanh_slope(x: FloatArray) -> FloatArray:
    e = np.exp(-2.0 * np.abs(x))
    return 4.0 * e / (1.0 + e) ** 2


def _softplus(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _silu_slope(x: FloatArray) -> FloatArray:
    return _sigmoid(x) * (1.0 + x * _sigmoid(-x))


def _half_lines(below: float) -> tuple[Function, Function]:
    """Return φ and φ′ of the rectifier with these slopes: `below` on the left, 1 on the right."""
    return lambda x: np.where(x > 0, x, below * x), lambda x: np.where(x > 0, 1.0, below)


def _exponential_unit(scale: float, alpha: float) -> tuple[Function, Function]:
    """Return φ and φ′ of scale · (x above 0, alpha · (eˣ - 1) below)."""

    def below(x: FloatArray) -> FloatArray:
        return np.minimum(x, 0.0)

    return (
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(below(x))),
        lambda x: scale * np.where(x > 0, 1.0, alpha * np.exp(below(x))),
    )


def leaky_relu(negative_slope: float = LEAKY_SLOPE) -> Activation:
    """Return the row of leaky ReLU with this slope on the left; the networks have 0.01."""
    phi, slope = _half_lines(negative_slope)
    return Activation(
        name="leaky_relu",
        phi=phi,
        slope=slope,
        at_zero=(negative_slope, 1.0),
        at_infinity=(negative_slope, 1.0),
        kinks=(),
        largest_slope=max(1.0, abs(negative_slope)),
        critical_sigma_b=0.0,
        stable=True,
        torch=Counterpart(
            "nn.functional.leaky_relu", "LeakyReLU", {"negative_slope": negative_slope}
        ),
        jax=Counterpart("nn.leaky_relu", arguments={"negative_slope": negative_slope}),
    )


# The table -------------------------------------------------------------------------------------

_IDENTITY, _RELU = _half_lines(1.0), _half_lines(0.0)
_ELU, _SELU = _exponential_unit(1.0, 1.0), _exponential_unit(SELU_SCALE, SELU_ALPHA)

_ROWS = (
    Activation(
        name="identity",
        phi=_IDENTITY[0],
        slope=_IDENTITY[1],
        at_zero=(1.0, 1.0),
        at_infinity=(1.0, 1.0),
        kinks=(),
        largest_slope=1.0,
        critical_sigma_b=0.0,
        stable=True,
        torch=None,  # to PyTorch and JAX no activation at all
        jax=None,
    ),
    Activation(
        name="sigmoid",
        phi=_sigmoid,
        slope=lambda x: _sigmoid(x) * _sigmoid(-x),
        at_zero=None,
        at_infinity=(0.0, 0.0),
        kinks=(),
        largest_slope=0.25,
        critical_sigma_b=0.0,
        stable=True,
        torch=Counterpart("sigmoid", "Sigmoid"),
        jax=Counterpart("nn.sigmoid"),
    ),
    Activation(
        name="tanh",
        phi=np.tanh,
        slope=_tanh_slope,
        at_zero=(1.0, 1.0),
        at_infinity=(0.0, 0.0),
        kinks=(),
        largest_slope=1.0,
        critical_sigma_b=sqrt(0.05),
        stable=True,
        torch=Counterpart("tanh", "Tanh"),
        jax=Counterpart("numpy.tanh"),
    ),
    Activation(
        name="relu",
        phi=_RELU[0],
        slope=_RELU[1],
        at_zero=(0.0, 1.0),
        at_infinity=(0.0, 1.0),
        kinks=(),
        largest_slope=1.0,
        critical_sigma_b=0.0,
        stable=True,
        torch=Counterpart("relu", "ReLU"),
        jax=Counterpart("nn.relu"),
    ),
    leaky_relu(),
    Activation(
        name="elu",
        phi=_ELU[0],
        slope=_ELU[1],
        at_zero=(1.0, 1.0),
        at_infinity=(0.0, 1.0),
        kinks=(),
        largest_slope=1.0,
        critical_sigma_b=0.2,
        stable=True,
        torch=Counterpart(
            "nn.functional.elu", "ELU", {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}
        ),
        jax=Counterpart("nn.elu"),
    ),
    Activation(
        name="selu",
        phi=_SELU[0],
        slope=_SELU[1],
        at_zero=(SELU_SCALE * SELU_ALPHA, SELU_SCALE),
        at_infinity=(0.0, SELU_SCALE),
        kinks=(),
        largest_slope=SELU_SCALE * SELU_ALPHA,
        critical_sigma_b=0.2,
        stable=True,
        torch=Counterpart("selu", "SELU"),
        jax=Counterpart("nn.selu"),
    ),
    Activation(
        name="gelu",
        phi=lambda x: x * _normal_cdf(x),
        slope=lambda x: _normal_cdf(x) + x * normal_pdf(x),
        at_zero=(0.5, 0.5),
        at_infinity=(0.0, 1.0),
        kinks=(),
        largest_slope=1.1289041440,  # at √2
        critical_sigma_b=sqrt(0.3),
        stable=False,
        torch=Counterpart("nn.functional.gelu", "GELU", {"approximate": "none"}),
        jax=Counterpart("nn.gelu", arguments={"approximate": False}),
    ),
    Activation(
        name="silu",
        phi=lambda x: x * _sigmoid(x),
        slope=_silu_slope,
        at_zero=(0.5, 0.5),
        at_infinity=(0.0, 1.0),
        kinks=(),
        largest_slope=1.0998393194,  # at 2.3994
        critical_sigma_b=sqrt(0.8),
        stable=False,
        torch=Counterpart("nn.functional.silu", "SiLU"),
        jax=Counterpart("nn.silu"),
    ),
    Activation(
        name="softplus",
        phi=_softplus,
        slope=_sigmoid,
        at_zero=None,
        at_infinity=(0.0, 1.0),
        kinks=(),
        largest_slope=1.0,
        critical_sigma_b=None,
        stable=False,
        torch=Counterpart("nn.functional.softplus", "Softplus", {"beta": 1.0, "threshold": 20.0}),
        jax=Counterpart("nn.softplus"),
    ),
    Activation(
        name="hard_tanh",
        phi=lambda x: np.clip(x, -1.0, 1.0),
        slope=lambda x: np.where(np.abs(x) < 1.0, 1.0, 0.0),
        at_zero=(1.0, 1.0),
        at_infinity=(0.0, 0.0),
        kinks=(-1.0, 1.0),
        largest_slope=1.0,
        critical_sigma_b=sqrt(0.05),
        stable=True,
        torch=Counterpart("nn.functional.hardtanh", "Hardtanh", {"min_val": -1.0, "max_val": 1.0}),
        jax=Counterpart("nn.hard_tanh"),
    ),
    Activation(
        name="erf",
        phi=erf,
        slope=lambda x: ERF_SLOPE * np.exp(-x * x),
        at_zero=(ERF_SLOPE, ERF_SLOPE),
        at_infinity=(0.0, 0.0),
        kinks=(),
        largest_slope=ERF_SLOPE,
        critical_sigma_b=sqrt(0.05),
        stable=True,
        torch=Counterpart("erf"),
        jax=Counterpart("scipy.special.erf"),
    ),
)

ACTIVATIONS: Mapping[str, Activation] = {row.name: row for row in _ROWS}
"""The activations of `vegrad.MLP` by name, as `_core.ACTIVATIONS`."""

BOUNDED = {row.name: row.largest_slope for row in ACTIVATIONS.values() if row.bounded}
"""The activations that saturate on both sides, with their largest |φ′|."""
UNSTABLE = {row.name for row in ACTIVATIONS.values() if not row.stable}
