"""Lyapunov exponents of recurrent cells: how fast each direction of the state is forgotten.

The product of the steps' Jacobians is taken apart by QR at every step, so that it neither
underflows nor becomes parallel; log |diag R| is averaged over the steps after a transient (Engelken
et al. 2020, arXiv:2006.02427; Vogt et al. 2020, arXiv:2006.14123).
"""

from __future__ import annotations

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.theory.cells import Run, Step


def _vanilla(u: FloatArray, step: Step, q: FloatArray) -> FloatArray:
    return np.asarray(step.gates[0].slope[0, 0][:, None] * (u @ q))


def _gru(u: FloatArray, step: Step, before: Step, q: FloatArray) -> FloatArray:
    r, z, n = step.gates
    ur, uz, un = np.split(u @ q, 3)
    assert step.m is not None

    def column(values: FloatArray) -> FloatArray:
        return np.asarray(values[0, 0][:, None])

    new = column(n.slope) * (column(r.slope * step.m) * ur + column(r.value) * un)
    moved = column((before.h - n.value) * z.slope) * uz
    return column(1.0 - z.value) * new + column(z.value) * q + moved


def _lstm(
    u: FloatArray, step: Step, before: Step, q: FloatArray, hr: FloatArray | None
) -> FloatArray:
    outputs = before.h.shape[-1]
    i, f, g, o = step.gates
    ui, uf, ug, uo = np.split(u @ q[:outputs], 4)
    assert step.tanh_c is not None
    assert before.c is not None

    def column(values: FloatArray) -> FloatArray:
        return np.asarray(values[0, 0][:, None])

    c = column(f.value) * q[outputs:] + column(before.c * f.slope) * uf
    c += column(i.value * g.slope) * ug + column(g.value * i.slope) * ui
    h = column(step.tanh_c.value * o.slope) * uo + column(o.value * step.tanh_c.slope) * c
    return np.concatenate([h if hr is None else hr @ h, c])


def lyapunov_exponents(
    run: Run, count: int | None = None, *, transient: int = 0, seed: int = 0
) -> FloatArray:
    """Return the largest Lyapunov exponents of a run, in nats a step, the largest first.

    Only the first set of weights and the first row of inputs are looked at. The state of an LSTM is
    h and c; those directions of it that no step keeps have exponents of -inf or near it.

    Args:
        run: a pass of `cells.run` over as many steps as are to be averaged over, and the transient.
        count: how many exponents (all).
        transient: steps at the beginning that are left out of the mean.
        seed: of the directions to start with.

    Raises:
        ValueError: count is not between 1 and the size of the state; no step is left.
    """
    u = run.weights["hh"][0]
    hr = run.weights["hr"][0] if "hr" in run.weights else None
    size = run.start.h.shape[-1] + (0 if run.start.c is None else run.start.c.shape[-1])
    wanted = size if count is None else count
    if not 1 <= wanted <= size:
        raise ValueError(f"count must be from 1 to {size}, the size of the state, not {count}")
    if not 0 <= transient < len(run.steps):
        raise ValueError(f"transient must be below the number of steps, {len(run.steps)}")
    start = np.random.default_rng(seed).standard_normal((size, wanted))
    q: FloatArray = np.linalg.qr(start)[0]
    total, before = np.zeros(wanted), run.start
    for t, step in enumerate(run.steps):
        if run.cell == "lstm":
            moved = _lstm(u, step, before, q, hr)
        elif run.cell == "gru":
            moved = _gru(u, step, before, q)
        else:
            moved = _vanilla(u, step, q)
        q, r = np.linalg.qr(moved)
        if t >= transient:
            with np.errstate(divide="ignore"):
                total += np.log(np.abs(np.diagonal(r)))
        before = step
    return np.sort(total / (len(run.steps) - transient))[::-1]
