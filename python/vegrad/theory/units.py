"""Moments of one unit: what φ makes of a Gaussian y, for one row and for two correlated rows.

`propagation` makes one of each class for every layer. Sizes of rows are exact but for interpolation
between `SIZES` of them; everything else is computed on a grid at the size of a typical row, and is
right to a percent.
"""

from __future__ import annotations

from functools import cache
from math import cos, exp, log, pi, sin, sqrt
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.theory.gaussian import (
    activation_of,
    derivative_second_moment,
    second_moment,
    slope_of_second_moment,
)

NEAREST, FARTHEST = log(1e-100), log(1e100)  # beyond these q an activation is its half-lines
STEP = 0.2  # of ln q, for numerical derivatives
SIZES = 17  # sizes of rows between which the moments of φ are interpolated
GRID = np.linspace(-5.05, 5.05, 102)  # values of a standard normal; not 0, where rectifiers jump
DENSITY = np.exp(-0.5 * GRID**2) / np.sum(np.exp(-0.5 * GRID**2))
ANGLES = np.linspace(0.0, pi, 33)  # between the pre-activations of two rows


class Alignment(NamedTuple):
    """Factors, on the way down, for the part of ‖D‖² that lies along the signal h."""

    along: float
    """Its growth."""
    across: float
    """n times what is added to it from the rest of ‖D‖²."""
    straight: float
    """Part of `along` that is due to the skip connection alone."""
    bonus: float
    """Relative excess of that part's E φ′² over that of the rest: E h²φ′²/(E h² E φ′²) - 1."""


class Sizes:
    """ln E φ² and ln E φ′² of each row, and their derivatives by ln q at a typical row.

    Args:
        activation: its name.
        log_ys: ln of the variance of each row's y, (R,).
        log_y: that of a typical row.
    """

    def __init__(self, activation: str, log_ys: FloatArray, log_y: float) -> None:
        near = np.clip(log_ys, NEAREST, FARTHEST)
        least, most = float(near.min()), float(near.max())
        nodes = np.linspace(least, most, SIZES if least < most else 1)
        around = np.exp(_within(log_y) + STEP * np.array([-1.0, 0.0, 1.0]))
        variances = np.concatenate([around, np.exp(nodes)])
        second = second_moment(activation, variances)
        log_slope = np.log(derivative_second_moment(activation, variances))
        per_q = slope_of_second_moment(activation_of(activation), around) * around / second[:3]
        self.second_per_q = float(per_q[1])
        self.second_bend = float(per_q[2] - per_q[0]) / (2.0 * STEP)
        low, middle, high = log_slope[:3].tolist()
        self.slope_per_q = (high - low) / (2.0 * STEP)
        self.slope_bend = (high - 2.0 * middle + low) / STEP**2
        # Beyond FARTHEST the second moment goes on as it does at a typical row.
        far = np.where(np.isfinite(log_ys), log_ys - near, 0.0)
        self.log_seconds = np.interp(near, nodes, np.log(second[3:])) + self.second_per_q * far
        self.log_slopes = np.interp(near, nodes, log_slope[3:])


class Unit:
    """One unit at a typical row, and at two rows: values φ(y)/√E φ² and slopes φ′(y)/√E φ′².

    Args:
        activation: its name.
        log_y: ln of the variance of a typical row's y.
        alike: correlations of two rows' y, (K,).
    """

    def __init__(self, activation: str, log_y: float, alike: FloatArray) -> None:
        row = activation_of(activation)
        self.y = exp(_within(log_y) / 2.0) * GRID
        both = np.array([row.phi(self.y), row.slope(self.y)])
        self.scales = 1.0 / np.sqrt(np.maximum(both**2 @ DENSITY, 1e-300))
        self.value, self.slope = both = both * self.scales[:, None]
        self.mean = float(DENSITY @ self.value)
        # E f(u)f(v) of two rows for f the value, the slope and their squares: (4, ANGLES).
        functions = np.concatenate([both, both**2])
        table = np.einsum("fi,aif->fa", functions, _together() @ functions.T)
        angles = np.arccos(alike)
        self.value_likeness, self.slope_likeness, values, slopes = (
            np.interp(angles, ANGLES, moments) for moments in table
        )
        # Variances of the squares and their covariances between rows, relative to squared means.
        means, own = functions[2:] @ DENSITY, functions[2:] ** 2 @ DENSITY
        means = np.where(means > 1e-100, means, 1.0)  # whose squares would underflow
        self.value_variance, self.slope_variance = np.maximum(own / means**2 - 1.0, 0.0).tolist()
        self.value_covariances = values / means[0] ** 2 - 1.0
        self.slope_covariances = slopes / means[1] ** 2 - 1.0

    def crosswise(self) -> float:
        """Return E φ′² y²/E φ′² at y of variance 1."""
        return float(DENSITY @ ((self.slope * GRID) ** 2))

    def alignment(self, ratio: float, mean: float, skip: bool, share: float) -> Alignment:
        """Return the `Alignment` of a layer whose input has mean square 1.

        Scaling the input by 1 + ε moves the output h by ε g, where g is φ′(y) y times the weights'
        share of y (0 if y is normalized), plus the input if the layer skips. So D·g is the part of
        D that ends up along the input.

        Args:
            ratio: E φ² relative to the input's mean square.
            mean: the input's mean over the units.
            skip: True if the input is added to φ(y).
            share: the weights' share in the variance of y, 0 if y is normalized.
        """
        straight, mean = (1.0, mean * sqrt(ratio)) if skip else (0.0, 0.0)
        value, slope = self.value, self.slope
        turn = slope * self.y * (self.scales[0] / self.scales[1])

        def product(a: FloatArray, b: FloatArray) -> float:
            return straight + mean * float(DENSITY @ (a + b)) + ratio * float(DENSITY @ (a * b))

        own = max(product(value, value), 1e-300)
        along = product(share * turn, value) ** 2 / own
        across = max(product(sqrt(share) * turn, sqrt(share) * turn) - along, 0.0)
        favoured = straight + 2.0 * mean * float(DENSITY @ (value * slope**2))
        favoured += ratio * float(DENSITY @ ((value * slope) ** 2))
        return Alignment(
            along=along,
            across=across,
            straight=product(0.0 * value, value) ** 2 / own,
            bonus=favoured / own - 1.0,
        )


def _within(log_y: float) -> float:
    return min(max(log_y, NEAREST), FARTHEST)


@cache
def _together() -> FloatArray:
    """Return probabilities (ANGLES, GRID, GRID) of two Gaussians with correlations cos ANGLES."""
    u, v = GRID[:, None], GRID
    inside = [
        np.exp(-(u * u - 2.0 * cos(angle) * u * v + v * v) / (2.0 * sin(angle) ** 2))
        for angle in ANGLES[1:-1]
    ]
    table = np.array([np.diag(DENSITY), *inside, np.diag(DENSITY)[::-1]])
    return np.asarray(table / table.sum(axis=(1, 2), keepdims=True))
