"""Initial weights and biases of recurrent networks: one row a scheme, in one table of names.

All values are drawn in float64 from one NumPy generator: first all that PyTorch's default draws, in
the order of the names, then what the scheme puts in its place. So a seed gives the same network in
float32 (rounded) and in float64, and networks of one seed that are initialized in different ways
differ in nothing but what their schemes change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray, as_count
from vegrad.arrays.shown import shown
from vegrad.theory.cells import CARRY, GATES
from vegrad.theory.gaussian import check_positive, second_moment
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.meanfield import critical_point

INPUT_DEVIATION = 0.001  # of the input weights of identity networks (Le et al. 2015)


@dataclass
class _Draft:
    """Parameters as the default draws them, of which a scheme replaces some."""

    parameters: dict[str, FloatArray]
    cell: str
    layers: int
    rng: np.random.Generator
    time_scale: float
    input_variance: float

    @property
    def hidden(self) -> int:
        """Number of units of each layer."""
        return len(self.parameters["rnn.weight_hh_l0"][0])

    def of_layer(self, layer: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return W, U and the two biases of a layer, which may be written to."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w, u, b_ih, b_hh = (self.parameters[f"rnn.{name}_l{layer}"] for name in names)
        return w, u, b_ih, b_hh

    def rows(self, gate: str) -> slice:
        """Return the rows of a gate in each of the cell's parameters."""
        place = GATES[self.cell].index(gate)
        return slice(place * self.hidden, (place + 1) * self.hidden)

    def set_bias(self, layer: int, gate: str, values: FloatArray | float) -> None:
        """Set a gate's bias: PyTorch adds two vectors, of which one gets it and the other 0."""
        _, _, b_ih, b_hh = self.of_layer(layer)
        b_ih[self.rows(gate)] = values
        b_hh[self.rows(gate)] = 0.0


def _default(draft: _Draft) -> None:
    """Leave PyTorch's draws as they are: U(-1/√H, 1/√H) of everything, the head included."""


def _orthogonal(draft: _Draft) -> None:
    """Make the recurrent matrix of each gate orthogonal (Saxe et al. 2014, Henaff et al. 2016)."""
    for layer in range(draft.layers):
        _, u, _, _ = draft.of_layer(layer)
        for gate in GATES[draft.cell]:
            u[draft.rows(gate)] = INITIALIZERS["orthogonal"].draw(
                draft.rng, draft.hidden, draft.hidden
            )


def _identity(draft: _Draft) -> None:
    """Make the recurrent matrix the identity, with small input weights (Le et al. 2015)."""
    for layer in range(draft.layers):
        w, u, b_ih, b_hh = draft.of_layer(layer)
        w[:] = INPUT_DEVIATION * draft.rng.standard_normal(w.shape)
        u[:] = np.eye(draft.hidden)
        b_ih[:] = b_hh[:] = 0.0


def _critical(draft: _Draft) -> None:
    """Draw U ~ N(0, σ_u²/H) with the σ_u that keeps ‖δ‖ over the steps for inputs of this size.

    What inputs and biases give a pre-activation is taken from the weights that were drawn; a layer
    above the first gets the outputs of the one below, whose size mean-field theory knows.
    """
    variance = draft.input_variance
    for layer in range(draft.layers):
        w, u, b_ih, b_hh = draft.of_layer(layer)
        given = variance * float(np.sum(w**2)) / draft.hidden + float(np.mean((b_ih + b_hh) ** 2))
        # Of relu the gain does not depend on sizes, so that the same σ_u is right for any of them.
        point = critical_point(draft.cell, sqrt(given) if draft.cell == "tanh" else 0.0)
        assert point is not None
        u[:] = draft.rng.standard_normal(u.shape) * (point.sigma_w / sqrt(draft.hidden))
        variance = second_moment(draft.cell, point.q) if draft.cell == "tanh" else nan


def _chrono(draft: _Draft) -> None:
    """Draw gate biases for time scales up to `time_scale` steps (Tallec & Ollivier 2018)."""
    for layer in range(draft.layers):
        times = draft.rng.uniform(1.0, draft.time_scale - 1.0, draft.hidden)
        draft.set_bias(layer, CARRY[draft.cell], np.log(times))
        if draft.cell == "lstm":
            draft.set_bias(layer, "input", -np.log(times))


VANILLA, GATED = ("tanh", "relu"), ("lstm", "gru")


@dataclass(frozen=True)
class RecurrentInitializer:
    """One row of the table of initializations of recurrent networks."""

    change: Callable[[_Draft], None]
    """Replaces what differs from PyTorch's default."""
    cells: tuple[str, ...] = (*VANILLA, *GATED)
    """The cells that it is for."""


RECURRENT_INITIALIZERS: Mapping[str, RecurrentInitializer] = {
    "default": RecurrentInitializer(_default),
    "orthogonal": RecurrentInitializer(_orthogonal),
    "identity": RecurrentInitializer(_identity, VANILLA),
    "critical": RecurrentInitializer(_critical, VANILLA),
    "chrono": RecurrentInitializer(_chrono, GATED),
}


def draw_recurrent_parameters(
    inputs: int,
    hidden: int,
    outputs: int,
    cell: str,
    layers: int,
    init: str,
    *,
    forget_bias: float | None = None,
    time_scale: float | None = None,
    input_variance: float | None = None,
    seed: int | None = None,
) -> dict[str, FloatArray]:
    """Draw the parameters of a recurrent network in float64, with PyTorch's names and shapes.

    Args:
        inputs: I, features a step.
        hidden: H, units of each layer.
        outputs: O, outputs of the head.
        cell: tanh, relu, lstm or gru.
        layers: number of recurrent layers.
        init: "default" (U(-1/√H, 1/√H) of everything, as PyTorch draws it), or that with changes:
            "orthogonal" (each gate's recurrent matrix), "identity" (recurrent matrix I, biases 0,
            input weights N(0, 0.001²); tanh and relu), "critical" (recurrent weights N(0, σ_u²/H)
            that keep ‖δ‖; tanh and relu), "chrono" (gate biases for a range of time scales; lstm
            and gru).
        forget_bias: bias of the LSTM's forget gate or of the GRU's update gate: what the two bias
            vectors add up to. None leaves it as it is drawn.
        time_scale: with "chrono": the longest time scale in steps, at least 2: usually T.
        input_variance: with "critical": the mean square of the inputs (1).
        seed: of the draws; None takes a fresh one.

    Returns:
        rnn.weight_ih_l0 (G·H, I), rnn.weight_hh_l0 (G·H, H), rnn.bias_ih_l0 and rnn.bias_hh_l0
        (G·H,), the same of each further layer, with H inputs, then head.weight (O, H) and head.bias
        (O,). G is 4 of lstm (input, forget, cell, output), 3 of gru (reset, update, new), else 1.

    Raises:
        TypeError, ValueError: an argument is not of these kinds or values, or does not go with the
            cell or with init.
    """
    for name, count in (("inputs", inputs), ("hidden", hidden), ("outputs", outputs)):
        as_count(name, count, 1)
    as_count("layers", layers, 1)
    _check(cell, init, forget_bias, time_scale, input_variance)
    rng = np.random.default_rng(seed)
    draft = _Draft(
        _drawn_by_default(inputs, hidden, outputs, cell, layers, rng),
        cell,
        layers,
        rng,
        time_scale=2.0 if time_scale is None else float(time_scale),
        input_variance=1.0 if input_variance is None else float(input_variance),
    )
    RECURRENT_INITIALIZERS[init].change(draft)
    if forget_bias is not None:
        for layer in range(layers):
            draft.set_bias(layer, CARRY[cell], float(forget_bias))
    return draft.parameters


def _drawn_by_default(
    inputs: int, hidden: int, outputs: int, cell: str, layers: int, rng: np.random.Generator
) -> dict[str, FloatArray]:
    rows, bound = len(GATES[cell]) * hidden, 1.0 / sqrt(hidden)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        shapes[f"rnn.weight_ih_l{layer}"] = (rows, hidden if layer else inputs)
        shapes[f"rnn.weight_hh_l{layer}"] = (rows, hidden)
        shapes[f"rnn.bias_ih_l{layer}"] = shapes[f"rnn.bias_hh_l{layer}"] = (rows,)
    shapes |= {"head.weight": (outputs, hidden), "head.bias": (outputs,)}
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def _check(
    cell: str,
    init: str,
    forget_bias: float | None,
    time_scale: float | None,
    input_variance: float | None,
) -> None:
    """Check that these values go together."""
    for argument, value, table in (
        ("cell", cell, GATES),
        ("init", init, RECURRENT_INITIALIZERS),
    ):
        names = ", ".join(table)
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be one of {names}, not {type(value).__name__}")
        if value not in table:
            raise ValueError(f"{argument} must be one of {names}, not {shown(value)}")
    cells = RECURRENT_INITIALIZERS[init].cells
    if cell not in cells:
        raise ValueError(f'init="{init}" is for cell {" and ".join(cells)}, not {shown(cell)}')
    if forget_bias is not None:
        _check_forget_bias(cell, init, forget_bias)
    if (init == "chrono") != (time_scale is not None):
        raise ValueError(
            'init="chrono" needs time_scale, the longest time scale in steps'
            if time_scale is None
            else f'time_scale goes with init="chrono", not with {shown(init)}'
        )
    if time_scale is not None and check_positive("time_scale", time_scale) < 2.0:
        raise ValueError(f"time_scale must be at least 2 steps, not {time_scale}")
    if input_variance is not None:
        if init != "critical":
            raise ValueError(f'input_variance goes with init="critical", not with {shown(init)}')
        check_positive("input_variance", input_variance)


def _check_forget_bias(cell: str, init: str, forget_bias: float) -> None:
    check_finite("forget_bias", forget_bias)
    if cell not in CARRY:
        raise ValueError(f"forget_bias is for cell lstm and gru, not {shown(cell)}")
    if init == "chrono":
        raise ValueError('forget_bias does not go with init="chrono", which sets that bias itself')


def check_finite(name: str, value: object) -> float:
    """Return a finite number as a float."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    return float(value)
