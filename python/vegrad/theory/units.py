"""Moments of one unit: what φ makes of a Gaussian y, for one row and for two correlated rows.

`propagation` makes one of each class for every layer. Sizes of rows are exact but for interpolation
between `SIZES` of them; everything else is computed on a grid at the size of a typical row, and is
right to a percent. Both come from tables over ln q, which are filled as networks ask for them.
"""

from __future__ import annotations

from functools import cache
from math import cos, log, pi, sin, sqrt
from typing import NamedTuple

import numpy as np

from vegrad.activations import Activation
from vegrad.arrays.checks import FloatArray
from vegrad.theory.gaussian import (
    activation_of,
    derivative_second_moment,
    mean_square,
    second_moment,
)
from vegrad.theory.tables import Table

NEAREST, FARTHEST = log(1e-100), log(1e100)  # beyond these q an activation is its half-lines
EDGE = 60.0  # of ln q, beyond which it is so to 1e-13, and moments are powers of q
STEP = 0.2  # of ln q, for numerical derivatives
AROUND = STEP * np.array([-1.0, 0.0, 1.0])
SIZES = np.linspace(0.0, 1.0, 17)  # of rows, between which the moments of φ are interpolated
CELL = 0.1
GRID = np.linspace(-5.05, 5.05, 102)  # values of a standard normal; not 0, where rectifiers jump
DENSITY = np.exp(-0.5 * GRID**2) / np.sum(np.exp(-0.5 * GRID**2))
ANGLES = np.linspace(0.0, pi, 33)  # between the pre-activations of two rows
EQUAL = 1.0 - 1e-12  # cosine from which on two rows are the same, but for rounding


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
        least, most = float(log_ys.min()), float(log_ys.max())
        near, usual = log_ys, least >= NEAREST and most <= FARTHEST
        if not usual:
            near = np.minimum(np.maximum(log_ys, NEAREST), FARTHEST)
            least, most = _within(least), _within(most)
        nodes = least + (most - least) * SIZES if least < most else np.array([least])
        around = _within(log_y) + AROUND
        second, slope, per_q = moments(activation, np.concatenate([around, nodes])).T
        self.second_per_q = float(per_q[1])
        self.second_bend = float(per_q[2] - per_q[0]) / (2.0 * STEP)
        low, middle, high = slope[:3].tolist()
        self.slope_per_q = (high - low) / (2.0 * STEP)
        self.slope_bend = (high - 2.0 * middle + low) / STEP**2
        self.log_seconds = np.interp(near, nodes, second[3:])
        self.log_slopes = np.interp(near, nodes, slope[3:])
        if not usual:
            # Beyond FARTHEST the second moment goes on as it does at a typical row.
            far = np.where(np.isfinite(log_ys), log_ys - near, 0.0)
            self.log_seconds = self.log_seconds + self.second_per_q * far


def moments(activation: str, log_qs: FloatArray) -> FloatArray:
    """Return ln E φ², ln E φ′² and the derivative of the first by ln q at each of log_qs: (N, 3).

    They are those of `second_moment` and `derivative_second_moment`, to 1e-12; the last to 1e-10.
    """
    row = activation_of(activation)
    if row.rectifier:
        level = log(mean_square(row.at_infinity))
        return np.stack([log_qs + level, np.full_like(log_qs, level), np.ones_like(log_qs)], axis=1)
    table = _sizes(activation)
    inside = np.minimum(np.maximum(log_qs, -EDGE), EDGE)
    found = table.each(inside)
    beyond = log_qs - inside
    if beyond.any():
        found[:, 0] += np.round(found[:, 2]) * beyond
        if row.bounded:
            found[:, 1] -= 0.5 * np.maximum(beyond, 0.0)
    return found


@cache
def _sizes(activation: str) -> Table:
    """Return the table of ln E φ², ln E φ′² and the derivative of the first by ln q."""

    def functions(log_qs: FloatArray) -> FloatArray:
        q = np.exp(log_qs)
        both = second_moment(activation, q), derivative_second_moment(activation, q)
        return np.log(np.stack(both, axis=1))

    return Table(functions, derived=1)


class Unit:
    """One unit at a typical row, and at two rows: values φ(y)/√E φ² and slopes φ′(y)/√E φ′².

    Args:
        activation: its name.
        log_y: ln of the variance of a typical row's y.
        alike: correlations of two rows' y, (K,).
    """

    def __init__(self, activation: str, log_y: float, alike: FloatArray) -> None:
        rectifier = activation_of(activation).rectifier  # which has no scale of its own
        found = _units(activation).at(0.0 if rectifier else min(max(log_y, -EDGE), EDGE) / 2.0)
        self.means = Means(*found[: len(Means._fields)].tolist())
        self.mean = self.means.value
        self.value_variance = max(self.means.fourth_value - 1.0, 0.0)
        self.slope_variance = max(self.means.fourth_slope - 1.0, 0.0)
        table = found[len(Means._fields) :].reshape(4, len(ANGLES))
        angles = np.arccos(np.where(alike < EQUAL, np.maximum(alike, -1.0), 1.0))
        self.value_likeness, self.slope_likeness, values, slopes = (
            np.interp(angles, ANGLES, function) for function in table
        )
        self.value_covariances, self.slope_covariances = values, slopes

    def crosswise(self) -> float:
        """Return E φ′² y²/E φ′² at y of variance 1."""
        return self.means.across

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
        of = self.means
        turned, root = straight + mean * (share * of.turn + of.value), sqrt(share)
        own = max(straight + 2.0 * mean * of.value + ratio, 1e-300)
        along = (turned + ratio * share * of.turn_value) ** 2 / own
        all_turned = straight + 2.0 * mean * root * of.turn + ratio * share * of.turn_turn
        favoured = straight + 2.0 * mean * of.value_slopes + ratio * of.values_slopes
        return Alignment(
            along=along,
            across=max(all_turned - along, 0.0),
            straight=(straight + mean * of.value) ** 2 / own,
            bonus=favoured / own - 1.0,
        )


class Means(NamedTuple):
    """Means over a Gaussian y of v = φ(y)/√E φ², s = φ′(y)/√E φ′² and t = φ′(y) y/√E φ²."""

    value: float
    """E v."""
    turn: float
    """E t."""
    turn_value: float
    """E t v."""
    turn_turn: float
    """E t²."""
    value_slopes: float
    """E v s²."""
    values_slopes: float
    """E v² s²."""
    across: float
    """E s² y² at y of variance 1."""
    fourth_value: float
    """E v⁴."""
    fourth_slope: float
    """E s⁴."""


@cache
def _units(activation: str) -> Table:
    """Return the table of `Means`, and of E f(u)f(v) of two rows at ANGLES, over ln √q.

    There f is v and s; then v² and s², of which it is the covariance.
    """
    row = activation_of(activation)

    def functions(log_roots: FloatArray) -> FloatArray:
        roots = np.exp(log_roots)[:, None]
        value, slope = row.phi(roots * GRID), _mean_slopes(row, roots)
        scale = np.sqrt(value**2 @ DENSITY)[:, None]
        turn = slope * GRID * (roots / scale)
        value, slope = value / scale, slope / np.sqrt(slope**2 @ DENSITY)[:, None]
        values, slopes = value**2, slope**2
        products = (value, turn, turn * value, turn**2, value * slopes, values * slopes)
        means = [one @ DENSITY for one in (*products, slopes * GRID**2, values**2, slopes**2)]
        both = np.stack([value, slope, values, slopes], axis=1)  # (N, 4, GRID)
        other = both.reshape(-1, len(GRID)) @ _together()
        pairs = other.reshape(*both.shape[:2], len(ANGLES), -1) @ both[..., None]
        pairs = pairs.reshape(len(roots), 4, -1)
        pairs[:, 2:] -= 1.0
        pairs = pairs.reshape(len(roots), -1)
        return np.concatenate([np.stack(means, axis=1), pairs], axis=1)

    return Table(functions)


def _mean_slopes(row: Activation, roots: FloatArray) -> FloatArray:
    """Return φ′ at roots · GRID: the mean over each cell of the grid, where it may jump."""
    edges = np.append(GRID - CELL / 2, GRID[-1] + CELL / 2)
    edges[np.abs(edges) < CELL / 4] = 0.0
    return np.diff(row.phi(roots * edges), axis=1) / (roots * CELL)


def _within(log_y: float) -> float:
    return min(max(log_y, NEAREST), FARTHEST)


@cache
def _together() -> FloatArray:
    """Return probabilities of two Gaussians with correlations cos ANGLES: (GRID, ANGLES · GRID)."""
    u, v = GRID[:, None], GRID
    inside = [
        np.exp(-(u * u - 2.0 * cos(angle) * u * v + v * v) / (2.0 * sin(angle) ** 2))
        for angle in ANGLES[1:-1]
    ]
    table = np.array([np.diag(DENSITY), *inside, np.diag(DENSITY)[::-1]])
    table /= table.sum(axis=(1, 2), keepdims=True)
    return table.transpose(1, 0, 2).reshape(len(GRID), -1)
