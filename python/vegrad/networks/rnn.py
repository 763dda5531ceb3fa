"""Recurrent networks, whose passes forward and back through time are fused."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad._core import Recurrent
from vegrad.arrays.checks import (
    Array,
    Cell,
    Loss,
    Number,
    RecurrentInitialization,
    Targets,
    as_count,
    as_number,
)
from vegrad.arrays.shown import shown
from vegrad.flow.finding import Finding
from vegrad.networks.distributed import Group
from vegrad.networks.network import Config, Network, Shapes, check_dtype, check_name
from vegrad.networks.recurrent_network import RecurrentNetwork
from vegrad.networks.recurrent_trainer import Trainer, trainer_of
from vegrad.networks.recurrent_training import fit
from vegrad.networks.rows import Batch, Rows
from vegrad.networks.sequence_reading import forgotten, is_usual, judged
from vegrad.networks.sequence_rows import SequenceRows, flat
from vegrad.networks.sequences import State, Truncation
from vegrad.networks.time_flow import TimeFlow
from vegrad.theory.cells import GATES
from vegrad.theory.recurrent_initializers import draw_recurrent_parameters

TARGETS = ("last", "all")


class RNN(RecurrentNetwork):
    """A recurrent network with fused passes and an exact gradient flow through time.

    Cells, gate order, names and shapes are those of `torch.nn.RNN`, `LSTM` and `GRU` (batch first)
    with a linear head on the top layer's output h:

        tanh, relu   h_t = φ(W x_t + b_ih + U h_{t-1} + b_hh)
        lstm         i, f, o = σ, g = tanh of their rows of the same sum;
                     c_t = f c_{t-1} + i g, h_t = o tanh c_t
        gru          r, z = σ of their rows; n = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn));
                     h_t = (1 - z) n + z h_{t-1}

    `parameters` are `rnn.weight_ih_l0` W (G·H, I), `rnn.weight_hh_l0` U (G·H, H),
    `rnn.bias_ih_l0` and `rnn.bias_hh_l0` (G·H,), the same of each further layer, `head.weight`
    (O, H) and `head.bias` (O,). G is 4 of lstm (i, f, g, o), 3 of gru (r, z, n), else 1.

    Args:
        inputs: I, the numbers of a step of a sequence.
        hidden: H, units of each layer.
        outputs: O, the numbers of an output.
        cell: tanh, relu, lstm or gru.
        layers: L, the number of recurrent layers.
        targets: "last" (one output and target a row, from the row's last step) or "all" (one a
            step).
        loss: mse (mean over all elements), cross_entropy (softmax, integer labels) or
            binary_cross_entropy (with logits): means over rows or, if there is a target at each
            step, over all steps of all rows: a long row counts more than a short one.
        init: default (as PyTorch draws: everything uniform within ±1/√H), or that with changes:
            orthogonal (each gate's U), identity (U = I, biases 0, W ~ N(0, 0.001²); tanh and relu),
            critical (U ~ N(0, σ_u²/H) that keeps the gradient's size from step to step; tanh and
            relu) or chrono (gate biases for time scales up to `time_scale`; lstm and gru).
        forget_bias: of the LSTM's forget gate or the GRU's update gate: what the two bias vectors
            add up to. None leaves it as it is drawn.
        time_scale: for init="chrono", and needed there: the longest time scale in steps, such as T.
        input_variance: for init="critical": the mean square of the inputs, 1 if not given.
        dtype: float32 or float64.
        seed: of the initial weights; the same for both dtypes. None draws a fresh one.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range, or that do not go
            together.
    """

    _core: Recurrent

    kind = "RNN"
    fit = fit  # the training loop, whose first argument is the network

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        cell: Cell = "lstm",
        layers: int = 1,
        targets: Targets = "last",
        loss: Loss = "mse",
        init: RecurrentInitialization = "default",
        forget_bias: Number | None = None,
        time_scale: Number | None = None,
        input_variance: Number | None = None,
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self.config = {
            "inputs": _as_size("inputs", inputs),
            "hidden": _as_size("hidden", hidden),
            "outputs": _as_size("outputs", outputs),
            "cell": check_name("cell", cell, GATES),
            "layers": _as_size("layers", layers),
            "targets": check_name("targets", targets, TARGETS),
            "loss": check_name("loss", loss, _core.LOSSES),
            "init": init,
            "forget_bias": _as_number_or_none("forget_bias", forget_bias),
            "time_scale": _as_number_or_none("time_scale", time_scale),
            "input_variance": _as_number_or_none("input_variance", input_variance),
            "dtype": check_dtype(dtype),
            "seed": None if seed is None else as_count("seed", seed),
        }
        names = ("inputs", "hidden", "outputs", "cell", "layers", "init", "forget_bias",
                 "time_scale", "input_variance", "seed")  # fmt: skip
        drawn = draw_recurrent_parameters(**{name: self.config[name] for name in names})
        self._build()
        with np.errstate(over="ignore"):
            for name, array in drawn.items():
                self._parameters[name][...] = array

    def _new_core(self) -> Recurrent:
        names = ("inputs", "hidden", "outputs", "cell", "layers", "targets", "loss", "dtype")
        return _core.Recurrent(**{name: self.config[name] for name in names})

    @classmethod
    def _described(cls, config: Config) -> tuple[Config, Shapes]:
        names = ("inputs", "hidden", "outputs", "layers")
        sizes = {name: _as_size(name, config[name]) for name in names}
        template = cls(1, 1, 1, **{name: v for name, v in config.items() if name not in sizes})
        H, O = sizes["hidden"], sizes["outputs"]  # noqa: E741
        rows = len(GATES[template.config["cell"]]) * H
        shapes: Shapes = {}
        for layer in range(sizes["layers"]):
            shapes[f"rnn.weight_ih_l{layer}"] = rows, H if layer else sizes["inputs"]
            shapes[f"rnn.weight_hh_l{layer}"] = rows, H
            shapes[f"rnn.bias_ih_l{layer}"] = shapes[f"rnn.bias_hh_l{layer}"] = (rows,)
        return template.config | sizes, shapes | {"head.weight": (O, H), "head.bias": (O,)}

    def __repr__(self) -> str:
        sizes = ("inputs", "hidden", "outputs")
        given = {k: v for k, v in self.config.items() if k not in sizes and v is not None}
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"RNN({', '.join(str(self.config[name]) for name in sizes)}, {options})"

    # Passes --------------------------------------------------------------------------------------

    def forward(self, x: object, *, lengths: object = None, state: object = None) -> Array:
        """Return the outputs (B, O), or (B, T, O) if there is a target at each step.

        What lies beyond a row's length is 0. Arguments as for `backward`.
        """
        # Contiguous arrays of the network's dtype go straight into the core. It returns None for
        # arrays that have to be converted first, or refused; so do the passes below.
        output = self._core.forward(x, lengths, state)
        if output is None:
            output = self._core.forward(*self._sequences(x, lengths, state))
        assert output is not None
        return output

    def loss(
        self, x: object, target: object, *, lengths: object = None, state: object = None
    ) -> float:
        """Return the loss; arguments as for `backward`."""
        loss = self._core.loss(x, target, lengths, state)
        if loss is None:
            loss = self._core.loss(*self._with_target(target, *self._sequences(x, lengths, state)))
        assert loss is not None
        return loss

    def backward(
        self,
        x: object,
        target: object,
        *,
        lengths: object = None,
        state: object = None,
        truncation: Truncation = None,
        flow: bool = True,
    ) -> float:
        """Run one forward and backward pass; return the loss and fill `.gradients` and `.flow`.

        Args:
            x: (B, T, I). What lies beyond a row's length is not looked at.
            target: (B, O) or, if there is a target at each step, (B, T, O); the last axis may be
                missing when O = 1. For cross_entropy integer labels (B,) or (B, T). What lies
                beyond a row's length may be anything.
            lengths: (B,) integers from 1 to T, in any order; None if all rows have T steps.
            state: the state before the first step, 0 if None: h (L, B, H), of an LSTM (h, c), such
                as `.state` is after a pass. No gradient goes into it.
            truncation: how far gradients go back. None: all the way. (k1, k2) with k2 > k1: the
                losses of each k1 steps, beginning with the first, go back k2 steps from the last of
                them (Williams & Peng 1990). K, or (K, K): chunks of K steps, which no gradient
                leaves; the last may be short: with T = 13, 4 takes the last loss back one step
                only, (3, 4) four. If only the last step has a target, k2 or K steps from there. Or
                a `vegrad.RandomTruncation`, drawn anew for each pass. Memory: of those steps.
            flow: False leaves the statistics of the flow out.

        Raises:
            TypeError, ValueError: before anything is written, if an argument does not fit. NaN and
                inf are no errors here: they propagate to the loss, the gradients and the flow.
        """
        window, factors = self._window(truncation, x)
        loss = self._core.backward(x, target, lengths, state, window, factors, flow)
        if loss is None:
            batch = self._with_target(target, *self._sequences(x, lengths, state))
            loss = self._core.backward(*batch, window, factors, flow)
        assert loss is not None
        self.note_pass(flow=flow and window is None)
        return loss

    @property
    def state(self) -> State:
        """The state after each row's last step of the last pass: (h,) or (h, c), each (L, B, H).

        They are copies. Passed to the next pass as `state`, they let it go on where this one ended.
        """
        return self._core.state()

    @property
    def flow(self) -> TimeFlow:
        """The gradient flow through time that the last `backward` measured.

        Raises:
            RuntimeError: if there was no `backward` yet, or the last one had `flow=False` or was
                truncated.
        """
        return cast(TimeFlow, super().flow)

    def _new_flow(self) -> TimeFlow:
        cell = self.config["cell"] == "lstm"
        return TimeFlow(**self._core.flow(), every_step=self._every_step, through_cell=cell)

    def workspace_bytes(self, batch: int, steps: int, window: int | None = None) -> int:
        """Return the bytes that the network keeps between calls once trained on such a batch.

        Args:
            batch: rows.
            steps: T.
            window: the steps that gradients go back; None for all.
        """
        batch, steps = as_count("batch", batch, 1), as_count("steps", steps, 1)
        window = steps if window is None else as_count("window", window, 1)
        return self._core.workspace_bytes(batch, steps, window)

    # For a training ------------------------------------------------------------------------------

    def trainer(self, rows: Rows, batch_size: int, group: Group | None = None) -> Trainer:
        """Return what takes steps on batches of these rows, which `rows` has made."""
        assert isinstance(rows, SequenceRows)
        return trainer_of(self._core, rows, batch_size, group)

    def loss_of(self, batch: Batch) -> float:
        """Return the loss of a batch that was checked."""
        return self.loss(batch.x, batch.target, lengths=batch.lengths)

    def compared(self, batch: Batch) -> tuple[Array, Array]:
        """Return outputs (N, O) beside the targets, one a row or one a step of each row."""
        output = self.forward(batch.x, lengths=batch.lengths)
        if not self._every_step:
            return output, batch.target
        return flat(output, batch.lengths), flat(batch.target, batch.lengths)

    def is_usual(self, batch: Batch, constant: float) -> bool:
        """Return True if one pass shows nothing that comes near to a limit of any rule."""
        return is_usual(self, batch, constant)

    def judged(self, batch: Batch, resamples: int) -> tuple[Finding, ...]:
        """Judge the network as it is by one pass over these rows."""
        return judged(self, batch)

    def forgotten(self, batch: Batch, first: Network | None) -> tuple[Finding, ...]:
        """Return what it forgets of these rows, though its target needs it."""
        return forgotten(self, batch, first if isinstance(first, RNN) else None)


def _as_size(argument: str, value: object) -> int:
    size = as_count(argument, value, 1)
    if size >= 2**31:
        raise ValueError(f"{argument} must be from 1 to 2147483647, not {shown(size)}")
    return size


def _as_number_or_none(argument: str, value: object) -> float | None:
    return None if value is None else as_number(argument, value)
