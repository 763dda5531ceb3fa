"""The multilayer perceptron whose forward and backward passes are fused, and its gradient flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from numbers import Integral, Real
from os import PathLike
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import Array, as_batch, as_target
from vegrad.arrays.files import complaining_of, load_tensors, save_tensors
from vegrad.diagnosis.history import History
from vegrad.flow.flow import Flow
from vegrad.networks.training import Callback, fit
from vegrad.optim import Optimizer
from vegrad.theory.initializers import INITIALIZERS, draw_parameters, resolve_sigmas


class MLP:
    """A multilayer perceptron with fused passes and an exact gradient flow.

    Layer l of L computes z = h Wᵀ + b, y = norm(z) (hidden layers only) and h + φ(y) if `residual`
    and the widths agree, else φ(y).

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
        norm: None, "layer" or "rms": normalizes the hidden layers' pre-activations over the units
            of a row, without a learned scale or shift, eps = 1e-5.
        residual: add the layer's input to its output where the widths agree.
        dtype: float32 or float64.
        seed: of the initial weights; the same for both dtypes. None draws a fresh one.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "tanh",
        output: str = "identity",
        loss: str = "mse",
        init: str = "glorot_uniform",
        sigma_w: float | None = None,
        sigma_b: float | None = None,
        norm: str | None = None,
        residual: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self.config: dict[str, Any] = {
            "sizes": _check_sizes(sizes),
            "activation": _check_name("activation", activation, _core.ACTIVATIONS),
            "output": _check_name("output", output, _core.ACTIVATIONS),
            "loss": _check_name("loss", loss, _core.LOSSES),
            "init": _check_name("init", init, INITIALIZERS),
            "sigma_w": _check_sigma("sigma_w", sigma_w, init),
            "sigma_b": _check_sigma("sigma_b", sigma_b, init),
            "norm": None if norm is None else _check_name("norm", norm, _core.NORMS),
            "residual": _check_bool("residual", residual),
            "dtype": _check_dtype(dtype),
            "seed": _check_seed(seed),
        }
        if init == "normal" and sigma_w is None:
            raise ValueError('init="normal" needs sigma_w, got None')
        c = self.config
        sigmas = resolve_sigmas(init, activation, c["sigma_w"], c["sigma_b"])
        self._build()
        layers = draw_parameters(tuple(c["sizes"]), init, *sigmas, c["seed"])
        with np.errstate(over="ignore"):
            for number, (weight, bias) in enumerate(layers):
                self._parameters[f"layers.{number}.weight"][...] = weight
                self._parameters[f"layers.{number}.bias"][...] = bias

    def _build(self) -> None:
        """What follows from the config, all parameters zero."""
        c = self.config
        self._dtype = np.dtype(c["dtype"])
        shape = ("sizes", "activation", "output", "loss", "norm", "residual", "dtype")
        self._core = _core.Network(**{name: c[name] for name in shape})
        self._parameters = MappingProxyType(self._core.parameters())
        self._gradients = MappingProxyType(self._core.gradients())
        self._flow: Flow | None = None
        self._measured = False

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the network to a safetensors file, which appears whole or not at all.

        The arrays are `parameters`; the arguments of the constructor are in the file's metadata.
        """
        save_tensors(path, dict(self._parameters), {"kind": "MLP", "config": self.config})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """A network that `save` wrote, the same to the bit.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is truncated, or no network of vegrad.
        """
        arrays, about = load_tensors(path, "MLP")
        network = cls.__new__(cls)
        with complaining_of(path):
            template = cls([1, 1], **{k: v for k, v in about["config"].items() if k != "sizes"})
            network.config = template.config | {"sizes": _check_sizes(about["config"]["sizes"])}
            wanted = {
                name: shape
                for layer, (i, o) in enumerate(pairwise(network.config["sizes"]))
                for name, shape in (
                    (f"layers.{layer}.weight", (o, i)),
                    (f"layers.{layer}.bias", (o,)),
                )
            }
            got = {name: array.shape for name, array in arrays.items()}
            if got != wanted:
                raise ValueError(f"parameters must be {wanted}, not {got}")
            for name, array in arrays.items():
                if array.dtype != network.config["dtype"]:
                    raise ValueError(f"{name} must be {network.config['dtype']}, not {array.dtype}")
            network._build()
        for name, array in arrays.items():
            network._parameters[name][...] = array
        return network

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.config.items() if k != "sizes" and v not in (None, False)}
        options = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        sizes = [str(size) for size in self.config["sizes"]]
        if len(sizes) > 8:
            sizes[2:-2] = [f"… {len(sizes) - 4} more …"]
        return f"MLP([{', '.join(sizes)}], {options})"

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.config["sizes"]) - 1

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Views of the network's memory: `layers.0.weight` (O, I), `layers.0.bias` (O,) and so on.

        Writing to them changes the network.
        """
        return self._parameters

    @property
    def gradients(self) -> Mapping[str, Array]:
        """Views of the last `backward`'s gradients, named and shaped as the parameters.

        True values as far as the dtype can hold them: 0 below its normal range, inf above.
        """
        return self._gradients

    @property
    def flow(self) -> Flow:
        """What the last `backward` measured; RuntimeError if there was none (or `flow=False`)."""
        if not self._measured:
            raise RuntimeError("no flow yet: call backward(x, target) first, with flow=True")
        if self._flow is None:
            self._flow = Flow(**self._core.flow())
        return self._flow

    def forward(self, x: Any) -> Array:
        """The output (B, O) for the rows of x (B, I), in the network's dtype."""
        # Contiguous arrays of the network's dtype go straight in; what has to be converted, or
        # complained about, comes back as None. So below.
        output = self._core.forward(x)
        if output is None:
            output = self._core.forward(self._batch(x))
        assert output is not None
        return output

    def loss(self, x: Any, target: Any) -> float:
        """The loss of the rows of x (B, I); target as for `backward`."""
        loss = self._core.loss(x, target)
        if loss is None:
            loss = self._core.loss(*self._checked(x, target))
        assert loss is not None
        return loss

    def backward(self, x: Any, target: Any, *, flow: bool = True) -> float:
        """One forward and backward pass: returns the loss, fills `.gradients` and `.flow`.

        Args:
            x: (B, I), B from 1 to 2^30.
            target: (B, O), or (B,) when O = 1; for cross_entropy integer labels (B,).
            flow: False leaves the statistics out.

        Raises:
            TypeError, ValueError: before anything is written. NaN and inf are not errors here:
                they propagate to the loss, the gradients and the flow.
        """
        loss = self._core.backward(x, target, flow)
        if loss is None:
            loss = self._core.backward(*self._checked(x, target), flow)
        assert loss is not None
        self._passed(flow)
        return loss

    def fit(
        self,
        x: Any,
        target: Any,
        *,
        optimizer: Optimizer,
        epochs: int,
        batch_size: int,
        validation: tuple[Any, Any] | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        callbacks: Iterable[Callback] = (),
        progress: bool = True,
        gauge_every: int | None = 100,
        checkpoint: str | PathLike[str] | None = None,
        resume: str | PathLike[str] | None = None,
    ) -> History:
        """Trains the network; Ctrl-C is answered within a batch and leaves it as a step left it.

        Args:
            x: (N, I).
            target: as for `backward`, for all rows.
            optimizer: of vegrad.optim, with its clip.
            epochs: passes over the data, counted from the first start, also after a resume.
            batch_size: rows of a step; the last of an epoch may have fewer.
            validation: (x, target), looked at after each epoch.
            shuffle: draw a new order of the rows for each epoch.
            seed: of the order. None draws a fresh one.
            callbacks: called with (network, history) after each epoch; True ends the training.
            progress: show a line on standard error.
            gauge_every: steps from one look at `History.alpha` to the next, each of which costs
                about another step; None for none.
            checkpoint: a file that is written after each epoch, whole or not at all.
            resume: a checkpoint to go on from, bit for bit as if never stopped.

        Raises:
            TypeError, ValueError: before the first step; NonFiniteGradientError as the clip's rule
                says, with the weights as the last step left them. What ends a training, Ctrl-C too,
                has the history so far as its attribute `history`.
        """
        return fit(self, x, target, optimizer=optimizer, epochs=epochs, batch_size=batch_size,
                   validation=validation, shuffle=shuffle, seed=seed, callbacks=callbacks,
                   progress=progress, gauge_every=gauge_every,
                   checkpoint=checkpoint, resume=resume)  # fmt: skip

    def _passed(self, flow: bool) -> None:
        """Notes that the core has made a backward pass, with or without a flow."""
        self._flow, self._measured = None, flow

    def workspace_bytes(self, batch: int) -> int:
        """Bytes that the network keeps between calls once it has trained on `batch` rows.

        The activations of every layer (twice if residual), a few row blocks for the gradients in
        flight, and packing buffers; no further memory is taken from then on.
        """
        if not isinstance(batch, Integral) or isinstance(batch, bool):
            raise TypeError(f"batch must be an integer, not {type(batch).__name__}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        return self._core.workspace_bytes(int(batch))

    def _batch(self, x: Any) -> Array:
        return as_batch(x, self.config["sizes"][0], self._dtype)

    def _checked(self, x: Any, target: Any) -> tuple[Array, Array]:
        c = self.config
        batch = self._batch(x)
        return batch, as_target(target, len(batch), c["sizes"][-1], self._dtype, c["loss"])


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
        raise TypeError(f"sizes must be a sequence of integers, not {type(sizes).__name__}")
    if len(sizes) < 2:
        raise ValueError(f"sizes must have inputs and outputs at least, not {list(sizes)}")
    for place, size in enumerate(sizes):
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise TypeError(f"sizes[{place}] must be an integer, not {size!r}")
        if not 1 <= size < 2**31:
            raise ValueError(f"sizes[{place}] must be from 1 to 2147483647, not {size}")
    return [int(size) for size in sizes]


def _check_name(argument: str, name: str, known: Any) -> str:
    names = ", ".join(known)
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be one of {names}, not {type(name).__name__}")
    if name not in known:
        raise ValueError(f"{argument} must be one of {names}, not {name!r}")
    return name


def _check_sigma(argument: str, sigma: float | None, init: str) -> float | None:
    if sigma is None:
        return None
    if not isinstance(sigma, Real) or isinstance(sigma, bool):
        raise TypeError(f"{argument} must be a number, not {type(sigma).__name__}")
    if init != "normal" and (init, argument) != ("critical", "sigma_b"):
        raise ValueError(f'{argument} goes with init="normal", not with init={init!r}')
    if not isfinite(sigma) or sigma < 0:
        raise ValueError(f"{argument} must be finite and not negative, not {sigma}")
    return float(sigma)


def _check_bool(argument: str, value: bool) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{argument} must be True or False, not {value!r}")
    return bool(value)


def _check_dtype(dtype: npt.DTypeLike) -> str:
    try:
        name = np.dtype(dtype).name
    except TypeError as error:
        raise TypeError(f"dtype must be float32 or float64, not {dtype!r}") from error
    if name not in ("float32", "float64"):
        raise TypeError(f"dtype must be float32 or float64, not {name}")
    return name


def _check_seed(seed: int | None) -> int | None:
    if seed is None:
        return None
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer or None, not {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    return int(seed)
