"""One step of each recurrent cell in float64, forward and back, beside its equations.

W, U and the two biases have the rows of the gates in PyTorch's order. δ is the gradient of the loss
for h and κ that for c, all that comes later included. Every array is `Scaled`: values of any size.

Gates are float64: one below 2^-1022 (σ at -709) counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.reference import (
    Scaled,
    activate,
    add,
    matmul,
    near_value,
    scaled,
    shift,
    through_activation,
    transpose,
)
from tests.reference_activations import sigmoid

GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
Rounding = Callable[[Scaled], Scaled]
STATES = {"tanh": 1, "relu": 1, "lstm": 2, "gru": 1}  # h, or h and c


class Weights(NamedTuple):
    """W (G·H, I), U (G·H, H), b_ih and b_hh (G·H,) of a layer."""

    W: Scaled
    U: Scaled
    b_ih: Scaled
    b_hh: Scaled


class Step(NamedTuple):
    """A step forward: what it made, and what the way back needs."""

    h: Scaled
    c: Scaled | None
    z: tuple[Scaled, ...]
    """Pre-activations, gate by gate; of a GRU's third gate both parts, that of m last."""
    carry: np.ndarray | None
    """f of an LSTM, z of a GRU."""


class Back(NamedTuple):
    """A step back: gradients for what came into the step."""

    input: Scaled
    """For W x + b_ih (B, G·H)."""
    state: Scaled
    """For U h + b_hh (B, G·H)."""
    carried: Scaled
    """What the carry passes on: κ f of an LSTM (into c), δ z of a GRU (into h), 0 of others."""
    kappa: Scaled | None


def times(a: Scaled | np.ndarray, b: Scaled) -> Scaled:
    """a ∘ b."""
    if isinstance(a, Scaled):
        return scaled(a.mantissa * b.mantissa, a.exponent + b.exponent)
    return scaled(a * b.mantissa, b.exponent)


def beside(*parts: Scaled) -> Scaled:
    """The parts side by side, (B, H) each."""
    top = max(part.exponent for part in parts)
    return scaled(np.hstack([shift(p.mantissa, p.exponent - top) for p in parts]), top)


def blocks(a: Scaled, count: int) -> list[Scaled]:
    """The parts of (B, count·H)."""
    return [scaled(part, a.exponent) for part in np.hsplit(a.mantissa, count)]


def gate(z: Scaled) -> tuple[np.ndarray, np.ndarray]:
    """σ(z) and σ′(z), the second without the cancellation of 1 - σ."""
    v = near_value(z)
    return sigmoid(v), sigmoid(v) * sigmoid(-v)


def held(z: Scaled, kind: str, rounding: Rounding) -> Scaled:
    """z, but for the rounding of σ(z), or of tanh z, which is what a program holds.

    Next to 1 that is a large error of 1 - σ, and of what passes there. It counts as 1 at most.
    """
    v = near_value(z)
    value, slope = (
        gate(z) if kind == "sigmoid" else (np.tanh(v), np.cosh(np.minimum(abs(v), 300.0)) ** -2)
    )
    off = near_value(rounding(scaled(value))) - value
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(off == 0, 0.0, np.clip(off / slope, -1.0, 1.0))
    return add(z, scaled(moved)) if moved.any() else z


def forward(
    cell: str, w: Weights, x: Scaled, h: Scaled, c: Scaled | None, rounding: Rounding
) -> Step:
    """h_t and c_t from x_t (B, I), h_{t-1} and c_{t-1} (B, H)."""
    of_input = add(matmul(x, transpose(w.W)), w.b_ih)
    of_state = add(matmul(h, transpose(w.U)), w.b_hh)
    if cell == "lstm":
        assert c is not None
        z = blocks(rounding(add(of_input, of_state)), 4)  # i f g o
        kinds = ("sigmoid", "sigmoid", "tanh", "sigmoid")
        z = [held(one, kind, rounding) for one, kind in zip(z, kinds, strict=True)]
        (i, _), (f, _), (o, _) = gate(z[0]), gate(z[1]), gate(z[3])
        c = rounding(add(times(f, c), times(i, activate("tanh", z[2]))))
        return Step(rounding(times(o, activate("tanh", c))), c, tuple(z), f)
    if cell == "gru":
        a, b = blocks(rounding(of_input), 3), blocks(rounding(of_state), 3)
        m = b[2]
        zr, zz = (held(add(a[n], b[n]), "sigmoid", rounding) for n in (0, 1))
        (r, _), (z, _) = gate(zr), gate(zz)
        zn = held(add(a[2], times(r, m)), "tanh", rounding)
        n = activate("tanh", zn)
        h = rounding(add(times(gate(negative(zz))[0], n), times(z, h)))
        return Step(h, None, (zr, zz, zn, m), z)
    z = rounding(add(of_input, of_state))
    return Step(rounding(activate(cell, z)), None, (z,), None)


def negative(a: Scaled) -> Scaled:
    return Scaled(-a.mantissa, a.exponent)


def back(
    cell: str, step: Step, h: Scaled, c: Scaled | None, delta: Scaled, kappa: Scaled | None
) -> Back:
    """What δ_t, and of an LSTM what comes to c_t from later steps, give the step's inputs.

    h and c are those of the step before.
    """
    if cell == "lstm":
        assert c is not None
        assert kappa is not None
        assert step.c is not None
        zi, zf, zg, zo = step.z
        (i, di), (f, df), (_, do) = gate(zi), gate(zf), gate(zo)
        kappa = add(kappa, below_lid(step, delta))  # κ_t
        alpha = beside(
            times(di, times(activate("tanh", zg), kappa)),
            times(df, times(c, kappa)),
            through_activation("tanh", zg, times(i, kappa)),
            times(do, times(activate("tanh", step.c), delta)),
        )
        return Back(alpha, alpha, times(f, kappa), kappa)
    if cell == "gru":
        zr, zz, zn, m = step.z
        (r, dr), (z, dz) = gate(zr), gate(zz)
        n = activate("tanh", zn)
        nu = through_activation("tanh", zn, times(gate(negative(zz))[0], delta))
        zeta = times(dz, times(add(h, negative(n)), delta))
        rho = times(dr, times(m, nu))
        state = beside(rho, zeta, times(r, nu))
        return Back(beside(rho, zeta, nu), state, times(z, delta), None)
    epsilon = through_activation(cell, step.z[0], delta)
    return Back(epsilon, epsilon, times(0.0 * delta.mantissa, delta), None)


def below_lid(step: Step, delta: Scaled) -> Scaled:
    """δ ∘ o (1 - tanh² c): what an LSTM's h passes on to its c."""
    assert step.c is not None
    return through_activation("tanh", step.c, times(gate(step.z[3])[0], delta))
