"""What `vegrad.RNN` computes, in plain float64 NumPy, written to be read beside the equations.

Layer l of L at step t of T, on a batch of B rows, its inputs x_t or the h_t of the layer below:

    tanh, relu   h_t = φ(W x_t + U h_{t-1} + b)
    lstm         i, f, o = σ, g = tanh of their rows of W x_t + U h_{t-1} + b
                 c_t = f c_{t-1} + i g,   h_t = o tanh c_t
    gru          r, z = σ(W x_t + U h_{t-1} + b),   m = U_n h_{t-1} + b_hn
                 n = tanh(W_n x_t + b_in + r m),    h_t = (1 - z) n + z h_{t-1}

and the outputs V h_t + d of the top layer: of each step (targets "all") or of each row's last step
("last"). Back, with δ_t = ∂loss/∂h_t, all that comes later included, and what α_t it gives the
pre-activations (reference_cells.py):

    δ_{t-1} = local + factor_t (Uᵀ α_t [+ δ_t z of a gru])
    κ_{t-1} = factor_t κ_t f + δ_{t-1} o (1 - tanh² c_{t-1})
    ∂loss/∂W = Σ_t α_tᵀ x_t,   ∂loss/∂U = Σ_t α_tᵀ h_{t-1},   ∂loss/∂x_t = α_t W

Rows of unequal length begin together, or end together where only their last step has an output. A
row that is not there at a step keeps its state, and the gradient for it.

A window (k1, k2) ends at steps k1, 2 k1, … and T; the losses of the steps that are new in it go
back to its first step, k2 before its end. With k1 = k2 they are chunks that do not overlap, the
last of which may be shorter. Where only the last step has a loss there is one window.

All values are `Scaled`, so that sequences of any length and gain are right; see reference.py for
what is exact. x is finite where there are rows; beyond them it may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import reference_cells as cells
from tests.reference import (
    Scaled,
    add,
    log2_norm,
    loss_and_gradient,
    matmul,
    scaled,
    shift,
    transpose,
)
from tests.reference_cells import GATES as GATES
from tests.reference_cells import STATES as STATES
from tests.reference_cells import Rounding, times

State = tuple[list[Scaled], ...]
"""h, or h and c, of each layer (B, H)."""


@dataclass(frozen=True)
class Pass:
    """One pass forward and back."""

    loss: float
    output: Scaled
    """(B, O) or (B, T, O), 0 beyond a row's length."""
    state: tuple[np.ndarray, ...]
    """h, or h and c (L, B, H) after each row's last step."""
    gradients: dict[str, Scaled]
    state_gradients: tuple[list[Scaled], ...]
    """∂loss/∂ of the initial h, or h and c, of each layer (B, H)."""
    flow: dict[str, np.ndarray]
    pre_activations: list[Scaled]
    """Of tanh and relu, at each step and layer."""


def run(
    parameters: Mapping[str, Any],
    x: Any,
    target: Any,
    *,
    cell: str,
    targets: str = "last",
    loss: str = "mse",
    lengths: Any = None,
    state: Sequence[Any] | None = None,
    window: tuple[int, int] | None = None,
    factors: Any = None,
    rounding: Rounding = lambda s: s,
    **_: Any,
) -> Pass:
    """One pass; `rounding` is applied to every array that a program would hold.

    x (B, T, I); target (B, O) or (B, T, O), or labels (B,) or (B, T); lengths (B,); state (L, B, H)
    each; factors (T,), by which what goes from step t back to t - 1 is multiplied.
    """
    network = Unrolled(parameters, cell, rounding)
    x = np.asarray(x, np.float64)
    B, T, _I = x.shape
    rows = Rows(B, T, lengths, end_together=targets == "last")
    network.forward(rows, rows.aligned(x), state)

    losses = Losses(network, rows, targets, loss, target)
    H = network.layers[0].U.mantissa.shape[1]
    flow = Flow(len(network.layers), T, H)
    way = Way(network, rows, losses, np.ones(T) if factors is None else np.asarray(factors), flow)
    for begin, end, new in windows(T, targets, window):
        way.back(begin, end, new)
    flow.measure_forward(network, rows)
    return Pass(
        losses.loss,
        losses.output,
        tuple(np.array([shift(*layer) for layer in part]) for part in network.states[T]),
        way.gradients | losses.gradients,
        way.at_start,
        flow.arrays,
        [step.z[0] for steps in network.steps for step in steps],
    )


def windows(T: int, targets: str, window: tuple[int, int] | None) -> list[tuple[int, int, int]]:
    """First step, end, and first new step of each window."""
    if window is None:
        return [(0, T, 0)]
    k1, k2 = window
    if targets == "last":
        return [(max(T - k2, 0), T, T - 1)]
    ends = [*range(k1, T, k1), T]
    return [
        (max(end - k2, 0) if k2 > k1 else new, end, new)
        for end, new in zip(ends, [0, *ends[:-1]], strict=True)
    ]


class Rows:
    """Which rows are there at which step."""

    def __init__(self, B: int, T: int, lengths: Any, *, end_together: bool) -> None:
        self.B, self.T = B, T
        self.lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
        t = np.arange(T)[:, None]
        self.step_of = t - T + self.lengths if end_together else np.broadcast_to(t, (T, B))
        """The row's own step at step t (T, B)."""
        self.there = (self.step_of >= 0) & (self.step_of < self.lengths)

    def aligned(self, values: np.ndarray) -> np.ndarray:
        """(B, T, …) as (T, B, …), 0 where a row is not there."""
        steps = np.clip(self.step_of, 0, self.T - 1)
        found = values[np.arange(self.B), steps]
        return np.where(self.there.reshape(self.T, self.B, *[1] * (values.ndim - 2)), found, 0)

    def keep(self, t: int, there: Scaled, else_: Scaled) -> Scaled:
        """The first where a row is there at step t, else the second."""
        mask = self.there[t][:, None]
        kept = Scaled(np.where(mask, there.mantissa, 0.0), there.exponent)
        return add(kept, Scaled(np.where(mask, 0.0, else_.mantissa), else_.exponent))

    def only(self, t: int, values: Scaled) -> Scaled:
        return Scaled(np.where(self.there[t][:, None], values.mantissa, 0.0), values.exponent)

    def in_both(self, t: int) -> np.ndarray:
        """The rows of step t that are there at the step before it, too, if there is one."""
        return self.there[t] & (self.there[t - 1] if t else True)

    def only_both(self, t: int, values: Scaled) -> Scaled:
        return Scaled(np.where(self.in_both(t)[:, None], values.mantissa, 0.0), values.exponent)


class Unrolled:
    """The network and its way forward: the states after each step, and the steps."""

    def __init__(self, parameters: Mapping[str, Any], cell: str, rounding: Rounding) -> None:
        self.cell, self.rounding = cell, rounding
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        count = (len(parameters) - 2) // len(names)
        values = {name: rounding(scaled(array)) for name, array in parameters.items()}
        self.layers = [
            cells.Weights(*(values[f"rnn.{name}_l{layer}"] for name in names))
            for layer in range(count)
        ]
        self.V, self.d = values["head.weight"], values["head.bias"]
        self.x: list[Scaled] = []
        self.steps: list[list[cells.Step]] = []  # of step t, layer l
        self.states: list[State] = []  # before step t, so that the last is after all
        self.carries: list[list[np.ndarray]] = [[] for _ in range(count)]

    def forward(self, rows: Rows, x: np.ndarray, state: Sequence[Any] | None) -> None:
        L, H = len(self.layers), self.layers[0].U.mantissa.shape[1]
        if state is None:
            state = [np.zeros((L, rows.B, H))] * STATES[self.cell]
        h, *c = [[self.rounding(scaled(layer)) for layer in part] for part in state]
        self.states.append((list(h), *map(list, c)))
        for t in range(rows.T):
            self.x.append(self.rounding(scaled(x[t])))
            below, steps = self.x[t], []
            for layer, w in enumerate(self.layers):
                before = c[0][layer] if c else None
                step = cells.forward(self.cell, w, below, h[layer], before, self.rounding)
                steps.append(step)
                h[layer] = rows.keep(t, step.h, h[layer])
                if c:
                    assert step.c is not None
                    c[0][layer] = rows.keep(t, step.c, c[0][layer])
                if step.carry is not None:
                    self.carries[layer].append(step.carry[rows.there[t]])
                below = h[layer]
            self.steps.append(steps)
            self.states.append((list(h), *map(list, c)))

    def input(self, layer: int, t: int) -> Scaled:
        return self.states[t + 1][0][layer - 1] if layer else self.x[t]


class Losses:
    """Outputs, loss, and the gradient that enters the top layer at each step."""

    def __init__(self, network: Unrolled, rows: Rows, targets: str, loss: str, target: Any) -> None:
        T, B, every = rows.T, rows.B, targets == "all"
        on = rows.there.copy() if every else np.arange(T)[:, None] * np.ones(B) == T - 1
        step, row = np.nonzero(on)  # of each output, in the order of steps
        top = [network.states[t + 1][0][-1] for t in range(T)]
        highest = max(top[t].exponent for t in step)
        h = scaled(
            np.array(
                [
                    shift(top[t].mantissa[b], top[t].exponent - highest)
                    for t, b in zip(step, row, strict=True)
                ]
            ),
            highest,
        )
        output = network.rounding(add(matmul(h, transpose(network.V)), network.d))
        wanted = np.asarray(target)
        wanted = wanted[row, step] if every else wanted[row]
        self.loss, gradient = loss_and_gradient(loss, output, wanted)
        gradient = network.rounding(gradient)
        O = output.mantissa.shape[1]  # noqa: E741
        placed = np.zeros((B, T, O) if every else (B, O))
        placed[(row, step) if every else row] = output.mantissa
        self.output = Scaled(placed, output.exponent)
        self.gradients = {
            "head.weight": matmul(transpose(gradient), h),
            "head.bias": scaled(np.sum(gradient.mantissa, axis=0), gradient.exponent),
        }
        entering = matmul(gradient, network.V)
        at = np.zeros((T, B, entering.mantissa.shape[1]))
        at[step, row] = entering.mantissa
        self.entering = [scaled(one, entering.exponent) for one in at]  # (B, H) of step t


class Way:
    """The ways back, whose gradients add up."""

    def __init__(
        self,
        network: Unrolled,
        rows: Rows,
        losses: Losses,
        factors: np.ndarray,
        flow: Flow,
    ) -> None:
        self.network, self.rows, self.losses = network, rows, losses
        self.factors, self.flow = factors, flow
        self.gradients: dict[str, Scaled] = {}
        zero = scaled(np.zeros((rows.B, network.layers[0].U.mantissa.shape[1])))
        self.at_start: State = tuple(
            [zero] * len(network.layers) for _ in range(STATES[network.cell])
        )
        self.zero = zero

    def back(self, begin: int, end: int, new: int) -> None:
        """From step end - 1 to `begin`; losses enter at steps from `new` on."""
        L, cell, rounding = len(self.network.layers), self.network.cell, self.network.rounding
        later: State = tuple([self.zero] * L for _ in range(STATES[cell]))  # for h_t, and c_t
        for t in reversed(range(begin, end)):
            entering = self.losses.entering[t] if t >= new else self.zero
            for layer in reversed(range(L)):
                w, step = self.network.layers[layer], self.network.steps[t][layer]
                h, *c = (part[layer] for part in self.network.states[t])
                if cell == "lstm":
                    from_later = later[0][layer], later[1][layer]
                    self.flow.into_cell(layer, t + 1, *from_later, step, self.rows)
                delta = add(later[0][layer], entering)
                kappa = later[1][layer] if c else None
                found = cells.back(cell, step, h, c[0] if c else None, delta, kappa)
                at_input = self.rows.only(t, rounding(found.input))
                at_state = self.rows.only(t, rounding(found.state))
                matrix = rounding(matmul(at_state, w.U))
                carried = rounding(found.carried)
                if cell == "lstm":
                    passed, into_c = matrix, times(self.factors[t], carried)
                    later[1][layer] = self.rows.keep(t, into_c, later[1][layer])
                else:
                    passed = add(matrix, carried)
                passed = times(self.factors[t], passed)
                matrix = times(self.factors[t], matrix)
                self.flow.measure(layer, t, self.rows, delta, passed, matrix, found)
                if cell == "lstm" and t == 0:
                    self.flow.into_c0(layer, self.rows.only_both(0, into_c))
                later[0][layer] = self.rows.keep(t, passed, delta)
                below = self.network.input(layer, t)
                self._add(layer, "weight_ih", matmul(transpose(at_input), below))
                self._add(layer, "weight_hh", matmul(transpose(at_state), h))
                for part, at in (("bias_ih", at_input), ("bias_hh", at_state)):
                    self._add(layer, part, scaled(at.mantissa.sum(axis=0), at.exponent))
                entering = rounding(matmul(at_input, w.W))
        if begin == 0:
            for part, found_ in zip(self.at_start, later, strict=True):
                part[:] = [add(a, b) for a, b in zip(part, found_, strict=True)]

    def _add(self, layer: int, name: str, gradient: Scaled) -> None:
        name = f"rnn.{name}_l{layer}"
        before = self.gradients.get(name)
        self.gradients[name] = gradient if before is None else add(before, gradient)


class Flow:
    """The fields of `vegrad.TimeFlow`; a step that several windows go through has the last's.

    Gains are of the rows that are there at both steps.
    """

    def __init__(self, L: int, T: int, H: int) -> None:
        names = ("delta", "gain", "cell_gain", "carry", "matrix", "hidden")
        self.arrays = {f"{name}_log2": np.full((L, T), math.nan) for name in names}
        self.arrays["carry_mean"] = np.full((L, H), math.nan)
        self.kappas: dict[tuple[int, int], Scaled] = {}

    def measure(
        self,
        layer: int,
        t: int,
        rows: Rows,
        delta: Scaled,
        passed: Scaled,
        matrix: Scaled,
        found: cells.Back,
    ) -> None:
        if not rows.there[t].any():
            return
        to, count = self.arrays, rows.there[t].sum() * delta.mantissa.shape[1]
        to["delta_log2"][layer, t] = log2_norm(rows.only(t, delta)) - 0.5 * math.log2(count)
        if not rows.in_both(t).any():
            return
        delta, passed, matrix, carried = (
            rows.only_both(t, s) for s in (delta, passed, matrix, found.carried)
        )
        to["gain_log2"][layer, t] = ratio(passed, delta)
        gru = len(found.state.mantissa[0]) > len(delta.mantissa[0])
        if found.kappa is not None:  # the matrix part is measured one step on
            self.kappas[layer, t] = rows.only_both(t, found.kappa)
            to["carry_log2"][layer, t] = ratio(carried, self.kappas[layer, t])
        else:
            to["carry_log2"][layer, t] = ratio(carried, delta) if gru else -math.inf
            to["matrix_log2"][layer, t] = ratio(matrix, delta)

    def into_cell(
        self, layer: int, t: int, passed: Scaled, carried: Scaled, before: cells.Step, rows: Rows
    ) -> None:
        """Of an LSTM's κ_t what comes to κ_{t-1}: all, and by way of h_{t-1}.

        `passed` is what goes into h_{t-1}, `carried` what goes into c_{t-1} itself.
        """
        kappa = self.kappas.get((layer, t))
        if kappa is not None:
            both = Scaled(np.where(rows.there[t - 1][:, None], kappa.mantissa, 0.0), kappa.exponent)
            through = rows.only(t - 1, rows.only(t, cells.below_lid(before, passed)))
            self.arrays["matrix_log2"][layer, t] = ratio(through, both)
            everything = add(through, rows.only(t - 1, rows.only(t, carried)))
            self.arrays["cell_gain_log2"][layer, t] = ratio(everything, both)

    def into_c0(self, layer: int, carried: Scaled) -> None:
        """What goes into c before the first step comes from κ_0 alone."""
        if (layer, 0) in self.kappas:
            size = ratio(carried, self.kappas[layer, 0])
            self.arrays["cell_gain_log2"][layer, 0] = size

    def measure_forward(self, network: Unrolled, rows: Rows) -> None:
        for layer, carries in enumerate(network.carries):
            for t in range(rows.T):
                if not rows.there[t].any():
                    continue
                h = rows.only(t, network.states[t + 1][0][layer])
                count = rows.there[t].sum() * h.mantissa.shape[1]
                self.arrays["hidden_log2"][layer, t] = log2_norm(h) - 0.5 * math.log2(count)
            if carries:
                self.arrays["carry_mean"][layer] = np.concatenate(carries).mean(axis=0)


def ratio(a: Scaled, b: Scaled) -> float:
    """log2 ‖a‖/‖b‖; nan if both are 0."""
    size, of = log2_norm(a), log2_norm(b)
    return math.nan if of == -math.inf else size - of
