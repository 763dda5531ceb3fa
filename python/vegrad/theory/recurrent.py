"""Predictions for recurrent networks that need no weights: closed forms and mean-field theory.

A vanilla cell is h_t = φ(W x_t + U h_{t-1} + b). With σ_u² = H·Var U, and q_in the variance that
inputs and biases give a pre-activation, it is mean-field theory's layer with σ_b² = q_in: q* is the
variance of pre-activations, and ‖δ‖ changes by √χ a step. That the same U acts at every step
changes nothing there (Molgedey et al. 1992; Chen, Pennington & Schoenholz 2018, arXiv:1806.05394);
of gated cells it does: see `recurrence`. What a gate's bias means for the memory, and how sensitive
a long memory makes the loss (Zucchet & Orvieto 2024, arXiv:2405.21064), are closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, inf, log, log1p, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import shown
from vegrad.theory.gaussian import NODES, WEIGHTS, check_positive, gaussian_mean
from vegrad.theory.meanfield import chi, critical_point, fixed_point

THOUSANDTH = 3.0 * log(
    10.0
)  # a gradient has reached as far back as this much of it, in ln, is left


# Vanilla cells ---------------------------------------------------------------------------------


def _vanilla(cell: str, input_variance: float) -> float:
    """Return the square root of q_in, which plays the part of σ_b."""
    if cell not in ("tanh", "relu"):
        raise ValueError(f"cell must be tanh or relu, not {shown(cell)}")
    return sqrt(input_variance if input_variance == 0 else check_positive("q_in", input_variance))


def recurrent_fixed_point(cell: str, sigma_u: float, q_in: float) -> float:
    """Return q*, the variance of the pre-activations of a tanh or relu cell.

    Args:
        cell: tanh or relu.
        sigma_u: recurrent weights have variance sigma_u²/H.
        q_in: variance that inputs and biases give a pre-activation.

    Raises:
        TypeError, ValueError: another cell; a number that is negative or not finite.
    """
    return fixed_point(cell, sigma_u, _vanilla(cell, q_in))


def recurrent_gain(cell: str, sigma_u: float, q_in: float) -> float:
    """Return √χ, the factor of ‖δ‖ from a step to the one before it.

    Arguments and errors are those of `recurrent_fixed_point`.
    """
    return sqrt(chi(cell, sigma_u, _vanilla(cell, q_in)))


def critical_sigma_u(cell: str, q_in: float) -> float:
    """Return the σ_u at which ‖δ‖ keeps its size over the steps: χ = 1.

    Of tanh it grows with the inputs, which push units into the flat parts; of relu it is √2, where
    the state grows as √T. Errors are those of `recurrent_fixed_point`.
    """
    b = _vanilla(cell, q_in)
    point = critical_point(cell, b if cell == "tanh" else 0.0)
    assert point is not None
    return point.sigma_w


def expected_lyapunov(sigma_u: float, q_in: float) -> tuple[float, float]:
    """Return the largest and the mean Lyapunov exponent of a driven tanh cell with Gaussian U.

    They are ½ ln χ and ln σ_u - ½ + E ln φ′(√q* Z), in nats a step; the mean is over all H, and
    their distance is how much faster most directions are forgotten than the one that lasts.
    """
    q = recurrent_fixed_point("tanh", sigma_u, q_in)

    def log_slope(x: FloatArray) -> FloatArray:
        return 2.0 * (log(2.0) - np.abs(x) - np.log1p(np.exp(-2.0 * np.abs(x))))

    mean = float(gaussian_mean(log_slope, np.array(q)))
    return log(recurrent_gain("tanh", sigma_u, q_in)), log(sigma_u) - 0.5 + mean


def reach(gain: float) -> float:
    """Return the number of steps back to where a thousandth of the gradient is left.

    inf if the gain is 1 or more, 0 if it is 0.
    """
    if gain >= 1.0:
        return inf
    return THOUSANDTH / -log(gain) if gain > 0 else 0.0


# Gates -----------------------------------------------------------------------------------------


def gate_time_scale(bias: float) -> float:
    """Return -1/ln σ(bias): the steps in which a gate with this bias forgets all but 1/e."""
    log_gate = -log1p(exp(-bias)) if bias > -700 else bias
    return -1.0 / log_gate if log_gate else inf


def gate_bias(time_scale: float) -> float:
    """Return the bias that gives a gate this time scale in steps.

    Raises:
        TypeError, ValueError: the time scale is not a finite number above 0.
    """
    rate = 1.0 / check_positive("time_scale", time_scale)
    return -log(expm1(rate)) if rate < 700 else -rate


def chrono_memory(time_scale: float, steps: float) -> float:
    """Return the rms over units of f^steps at chrono initialization: what is carried that far.

    1/(1 - f) is uniform on 2…time_scale (Tallec & Ollivier 2018, arXiv:1804.11188).

    Raises:
        TypeError, ValueError: time_scale is below 2.
    """
    if check_positive("time_scale", time_scale) < 2.0:
        raise ValueError(f"time_scale must be at least 2 steps, not {time_scale}")
    ends = np.geomspace(2.0, max(time_scale, 2.0 + 1e-9), 25)  # panels, for any number of steps
    half, middle = np.diff(ends)[:, None] / 2.0, (ends[1:] + ends[:-1])[:, None] / 2.0
    kept = np.exp(2.0 * steps * np.log1p(-1.0 / (middle + half * NODES)))
    return sqrt(float(np.sum(half * WEIGHTS * kept)) / (ends[-1] - ends[0]))


# Memory without exploding ----------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """Mean squares for h_t = λ h_{t-1} + x_t with white x of variance 1, in its steady state."""

    state: float
    """E h² = 1/(1 - λ²)."""
    unnormalized: float
    """E(∂h/∂λ)² = (1 + λ²)/(1 - λ²)³."""
    follows: float
    """The same if inputs are multiplied by γ = √(1 - λ²), and γ follows λ."""
    follows_nu: float
    """E(∂h/∂ν)² of λ = exp(-exp ν), γ following: never above ¼."""
    held_nu: float
    """The same with γ held."""


def sensitivity(decay: float) -> Sensitivity:
    """Return how sensitive a linear unit's output is to its own decay λ.

    A gradient that neither vanishes nor explodes does not make a loss that is easy: without a
    factor at the inputs, the derivative by λ grows as the time scale to the power of three.

    Raises:
        TypeError, ValueError: decay is not between 0 and 1.
    """
    if check_positive("decay", decay) >= 1.0:
        raise ValueError(f"decay must be below 1, not {decay}")
    rest, by_nu = (1.0 - decay) * (1.0 + decay), (decay * log(decay)) ** 2
    return Sensitivity(
        state=1.0 / rest,
        unnormalized=(1.0 + decay**2) / rest**3,
        follows=1.0 / rest**2,
        follows_nu=by_nu / rest**2,
        held_nu=by_nu * (1.0 + decay**2) / rest**2,
    )
