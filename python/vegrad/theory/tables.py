"""Smooth functions of ln q, kept once they have been computed.

A diagnosis asks for the moments of an activation at every layer of a network, and for the same ones
again at the next network. Each is an integral, and each is smooth in ln q: so the integrals are
taken at a few nodes of a panel of ln q when it is first asked for, and the polynomial through them
is kept.

It must guarantee that nobody can tell the difference: 1e-12, as the functions have no singularity
within π/2 of the real line, by which a polynomial of degree 15 on a panel of 1 is right to 1e-13
(Trefethen 2013, Approximation Theory and Approximation Practice, theorem 8.2).
"""

from __future__ import annotations

from collections.abc import Callable
from math import acos, floor, pi

import numpy as np
from numpy.polynomial.chebyshev import chebder

from vegrad.arrays.checks import FloatArray

DEGREES = np.arange(16.0)
_ANGLES = pi * (DEGREES + 0.5) / len(DEGREES)
NODES = 0.5 * np.cos(_ANGLES) + 0.5  # of a panel from 0 to 1
_FITTED = np.where(DEGREES[:, None] > 0, 2.0, 1.0) * np.cos(np.outer(DEGREES, _ANGLES)) / len(NODES)


class Table:
    """Functions of one variable, as polynomials on panels from one whole number to the next.

    Args:
        functions: of an array (N,); it returns their values (N, M).
        derived: how many of them, from the first on, are followed by their derivatives, to 1e-10.
    """

    def __init__(self, functions: Callable[[FloatArray], FloatArray], derived: int = 0) -> None:
        self.functions, self.derived = functions, derived
        self.panels: dict[int, FloatArray] = {}

    def at(self, s: float) -> FloatArray:
        """Return the M functions at s: (M,)."""
        panel = floor(s)
        values: FloatArray = np.cos(DEGREES * acos(2.0 * (s - panel) - 1.0)) @ self._panel(panel)
        return values

    def each(self, s: FloatArray) -> FloatArray:
        """Return the M functions at every element of s (N,): (N, M)."""
        panels = np.floor(s)
        basis = np.cos(np.arccos(2.0 * (s - panels) - 1.0)[:, None] * DEGREES)
        own = sorted(set(panels.tolist()))
        if len(own) == 1:
            return np.asarray(basis @ self._panel(int(own[0])))
        fitted = np.array([self._panel(int(panel)) for panel in own])
        return np.asarray((basis @ fitted)[np.searchsorted(own, panels), np.arange(len(s))])

    def _panel(self, panel: int) -> FloatArray:
        """Return the coefficients of the polynomials on a panel: (degrees, M)."""
        if panel not in self.panels:
            fitted = _FITTED @ self.functions(panel + NODES)
            slopes = np.zeros((len(NODES), self.derived))
            slopes[:-1] = chebder(fitted[:, : self.derived], scl=2.0)  # of x, from -1 to 1
            self.panels[panel] = np.concatenate([fitted, slopes], axis=1)
        return self.panels[panel]
