"""The multilayer perceptron, whose forward and backward passes are fused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from numbers import Integral
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad._core import Network as CoreNetwork
from vegrad._core import Trainer as CoreTrainer
from vegrad.arrays.checks import (
    Activation,
    Array,
    FloatArray,
    Initialization,
    Loss,
    Normalization,
    Number,
    as_batch,
    as_count,
    as_number,
    as_target,
)
from vegrad.arrays.shown import shown
from vegrad.flow.finding import Finding
from vegrad.networks.distributed import Group
from vegrad.networks.network import (
    Config,
    Examined,
    Network,
    Shapes,
    check_dtype,
    check_flag,
    check_name,
)
from vegrad.networks.prediction import predict
from vegrad.networks.reading import is_usual, judged
from vegrad.networks.rows import Batch, Rows
from vegrad.networks.shared_steps import SharedSteps
from vegrad.networks.training import fit
from vegrad.reports.flow import Flow
from vegrad.theory.initializers import INITIALIZERS, draw_parameters, resolve_sigmas


class MLP(Network):
    """A multilayer perceptron with fused passes and an exact gradient flow.

    Layer l of L computes z = h Wᵀ + b, y = norm(z) (hidden layers only) and h + φ(y) if `residual`
    and the widths agree, else φ(y). `parameters` are `layers.0.weight` (O, I), `layers.0.bias` (O,)
    and so on.

    Args:
        sizes: inputs, hidden widths, outputs: L + 1 positive integers for L layers.
        activation: φ of the hidden layers: identity, sigmoid, tanh, relu, leaky_relu (slope 0.01),
            elu, selu, gelu (exact), silu, softplus, hard_tanh or erf.
        output: φ of the last layer.
        loss: mse (mean over all elements), cross_entropy (softmax, integer labels, mean over the
            batch) or binary_cross_entropy (with logits, mean over all elements).
        init: glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_normal, orthogonal, lsuv
            (orthogonal, to be scaled on data by `vegrad.lsuv_`), all with zero biases; normal:
            weights N(0, sigma_w²/fan_in), biases N(0, sigma_b²); or critical: normal at the
            sigma_w where gradients keep their size (`vegrad.theory.critical_point`).
        sigma_w: for init="normal" only, and needed there.
        sigma_b: for init="normal", 0 if not given, and "critical", where by default it is 0 for
            identity, relu, leaky_relu and sigmoid, √0.05 for tanh, erf and hard_tanh, 0.2 for elu
            and selu, √0.3 for gelu, √0.8 for silu.
        norm: None, "layer" or "rms": normalize the hidden layers' pre-activations over the units
            of a row, without a learned scale or shift, eps = 1e-5.
        residual: add the layer's input to its output where the widths agree.
        dtype: float32 or float64.
        seed: of the initial weights; the same for both dtypes. None draws a fresh one.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.
    """

    _core: CoreNetwork

    kind = "MLP"
    fit = fit  # the training loop, whose first argument is the network
    predict = predict  # for the rows of a table

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation = "tanh",
        output: Activation = "identity",
        loss: Loss = "mse",
        init: Initialization = "glorot_uniform",
        sigma_w: Number | None = None,
        sigma_b: Number | None = None,
        norm: Normalization | None = None,
        residual: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self.config = {
            "sizes": _check_sizes(sizes),
            "activation": check_name("activation", activation, _core.ACTIVATIONS),
            "output": check_name("output", output, _core.ACTIVATIONS),
            "loss": check_name("loss", loss, _core.LOSSES),
            "init": check_name("init", init, INITIALIZERS),
            "sigma_w": _check_sigma("sigma_w", sigma_w, init),
            "sigma_b": _check_sigma("sigma_b", sigma_b, init),
            "norm": None if norm is None else check_name("norm", norm, _core.NORMS),
            "residual": check_flag("residual", residual),
            "dtype": check_dtype(dtype),
            "seed": None if seed is None else as_count("seed", seed),
        }
        if init == "normal" and sigma_w is None:
            raise ValueError('init="normal" needs sigma_w, a number, got None')
        c = self.config
        sigmas = resolve_sigmas(init, activation, c["sigma_w"], c["sigma_b"])
        self._build()
        layers = draw_parameters(tuple(c["sizes"]), init, *sigmas, c["seed"])
        with np.errstate(over="ignore"):
            for number, (weight, bias) in enumerate(layers):
                self._parameters[f"layers.{number}.weight"][...] = weight
                self._parameters[f"layers.{number}.bias"][...] = bias

    def _new_core(self) -> CoreNetwork:
        names = ("sizes", "activation", "output", "loss", "norm", "residual", "dtype")
        return _core.Network(**{name: self.config[name] for name in names})

    @classmethod
    def _described(cls, config: Config) -> tuple[Config, Shapes]:
        sizes = _check_sizes(config["sizes"])
        template = cls([1, 1], **{name: v for name, v in config.items() if name != "sizes"})
        shapes: Shapes = {}
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            shapes[f"layers.{layer}.weight"] = outputs, inputs
            shapes[f"layers.{layer}.bias"] = (outputs,)
        return template.config | {"sizes": sizes}, shapes

    def __repr__(self) -> str:
        given = {k: v for k, v in self.config.items() if k != "sizes" and v not in (None, False)}
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        sizes = [str(size) for size in self.config["sizes"]]
        if len(sizes) > 8:
            sizes[2:-2] = [f"… {len(sizes) - 4} more …"]
        return f"MLP([{', '.join(sizes)}], {options})"

    @property
    def flow(self) -> Flow:
        """The gradient flow that the last `backward` measured.

        Raises:
            RuntimeError: if there was no `backward` yet, or the last one had `flow=False`.
        """
        return cast(Flow, super().flow)

    def _new_flow(self) -> Flow:
        return Flow(**self._core.flow())

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.config["sizes"]) - 1

    def forward(self, x: Any) -> Array:
        """Return the output (B, O) for the rows of x (B, I), in the network's dtype."""
        # Contiguous arrays of the network's dtype go straight into the core. It returns None for
        # arrays that have to be converted first, or refused; so do the passes below.
        output = self._core.forward(x)
        if output is None:
            output = self._core.forward(self._batch(x))
        assert output is not None
        return output

    def loss(self, x: Any, target: Any) -> float:
        """Return the loss of the rows of x (B, I); target as for `backward`."""
        loss = self._core.loss(x, target)
        if loss is None:
            loss = self._core.loss(*self.checked(x, target))
        assert loss is not None
        return loss

    def backward(
        self, x: Any, target: Any, *, flow: bool = True, truncation: int | None = None
    ) -> float:
        """Run one forward and backward pass; return the loss and fill `.gradients` and `.flow`.

        Args:
            x: (B, I), B from 1 to 2^30.
            target: (B, O), or (B,) when O = 1; for cross_entropy integer labels (B,).
            flow: False leaves the statistics of the flow out.
            truncation: K ends the pass after the K topmost layers, and saves the work below. These
                layers get the gradients of a full pass, those below exactly 0; there is no flow.
                None, or the number of layers and more, for a full pass. `vegrad.truncation` tells
                what K loses.

        Raises:
            TypeError, ValueError: before anything is written, if x or target does not fit. NaN and
                inf are no errors here: they propagate to the loss, the gradients and the flow.
        """
        layers = self.depth
        if truncation is not None:
            layers = min(as_count("truncation", truncation, 1), layers)
        loss = self._core.backward(x, target, flow, layers)
        if loss is None:
            loss = self._core.backward(*self.checked(x, target), flow, layers)
        assert loss is not None
        self.note_pass(flow=flow and layers == self.depth)
        return loss

    def examined(self, x: object, target: object) -> Examined:
        """Run `backward`, which is told besides what a diagnosis needs."""
        found = self._core.examine(x, target)
        if found is None:
            found = self._core.examine(*self.checked(x, target))
        assert found is not None
        self.note_pass(flow=True)
        return Examined(*found)

    def workspace_bytes(self, batch: int) -> int:
        """Return the bytes that the network keeps between calls once trained on `batch` rows.

        These are the activations of every layer (twice if residual), a few row blocks for the
        gradients in flight, and packing buffers; no further memory is taken from then on.
        """
        return self._core.workspace_bytes(as_count("batch", batch, 1))

    def _batch(self, x: Any) -> Array:
        return as_batch(x, self.config["sizes"][0], self._dtype)

    def checked(self, x: Any, target: Any) -> tuple[Array, Array]:
        """Return x (B, I) and target as contiguous arrays that the core takes.

        Raises:
            TypeError, ValueError: as `backward`.
        """
        c = self.config
        batch = self._batch(x)
        return batch, as_target(target, len(batch), c["sizes"][-1], self._dtype, c["loss"])

    # For a training -------------------------------------------------------------------------------

    def weight_gradients_log2(self) -> FloatArray:
        """Return log2 of the norms of the weights' gradients in the last pass."""
        return self.flow.gradient_log2

    def trainer(
        self, rows: Rows, batch_size: int, group: Group | None = None
    ) -> CoreTrainer | SharedSteps:
        """Return the core's trainer of this network, or the steps of a group of processes."""
        if group is not None:
            return SharedSteps(self._core, rows, batch_size, group)
        return _core.Trainer(self._core, rows.x, rows.target, batch_size)

    def loss_of(self, batch: Batch) -> float:
        """Return the loss of a batch that was checked."""
        return self.loss(batch.x, batch.target)

    def compared(self, batch: Batch) -> tuple[Array, Array]:
        """Return the outputs (N, O) beside the targets."""
        return self.forward(batch.x), batch.target

    def is_usual(self, batch: Batch, constant: float) -> bool:
        """Return True if one pass shows nothing that comes near to a limit of any rule."""
        return is_usual(self, batch, constant)

    def judged(self, batch: Batch, resamples: int) -> tuple[Finding, ...]:
        """Judge the network as it is by one pass over these rows, and `resamples` more."""
        return judged(self, batch, resamples)


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
        raise TypeError(f"sizes must be a sequence of integers, not {type(sizes).__name__}")
    if len(sizes) < 2:
        raise ValueError(f"sizes must have inputs and outputs at least, not {shown(list(sizes))}")
    for place, size in enumerate(sizes):
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise TypeError(f"sizes[{place}] must be an integer, not {shown(size)}")
        if not 1 <= size < 2**31:
            raise ValueError(f"sizes[{place}] must be from 1 to 2147483647, not {shown(size)}")
    return [int(size) for size in sizes]


def _check_sigma(argument: str, sigma: Number | None, init: str) -> float | None:
    if sigma is None:
        return None
    number = as_number(argument, sigma)
    if init != "normal" and (init, argument) != ("critical", "sigma_b"):
        raise ValueError(f'{argument} goes with init="normal", not with init={shown(init)}')
    if not isfinite(number) or number < 0:
        raise ValueError(f"{argument} must be finite and not negative, not {sigma}")
    return number
