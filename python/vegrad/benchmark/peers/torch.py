"""PyTorch, eager, with autograd.

PyTorch is imported when a peer is made; only here and in vegrad.torch is it imported at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.arrays.checks import Array
from vegrad.benchmark.peers.activations import identity
from vegrad.benchmark.peers.problem import (
    DECAY,
    LR,
    MAX_NORM,
    Buffers,
    Clipping,
    Peer,
    Problem,
    Result,
)
from vegrad.benchmark.timing import Call
from vegrad.clipping import GlobalNorm, clip_by_global_norm_
from vegrad.optim import AdamW


def _activation(name: str) -> Callable[[Any], Any]:
    """Return PyTorch's function, such as torch.tanh; its defaults are those of vegrad."""
    import torch

    counterpart = ACTIVATIONS[name].torch
    if counterpart is None:
        return identity(name)
    found: Callable[[Any], Any] = attrgetter(counterpart.function)(torch)
    return found


class _Torch(Peer):
    name, title, module = "torch", "PyTorch", "torch"


class Torch(_Torch):
    """The pass; the gradients are set to None first, as zero_grad() does."""

    flush: ClassVar[bool] = False

    @staticmethod
    def prepare(threads: int) -> None:
        """Set the number of threads."""
        import torch

        torch.set_num_threads(threads)

    @staticmethod
    def product(a: Array, b: Array, kind: str, out: Array) -> Call:
        """Return a call that writes a·b to `out`, or a·bᵀ if the kind is nt."""
        import torch

        x, y, z = map(torch.from_numpy, (a, b.T if kind == "nt" else b, out))
        return partial(torch.mm, x, y, out=z)

    @staticmethod
    def traffic(block: Array) -> dict[str, dict[str, Call]]:
        """Return calls by kind and name that read, write, or read and write a block once."""
        import torch

        x = torch.from_numpy(block)
        return {
            "read": {"torch sum": x.sum, "torch dot": partial(torch.dot, x, x)},
            "write": {"torch fill": partial(x.fill_, 1)},
            "update": {"torch mul": partial(x.mul_, 1)},
        }

    def __init__(self, problem: Problem) -> None:
        import torch

        self.torch: Any = torch
        self.activation = _activation(problem.case.activation)
        self.layers = [
            [torch.tensor(array, requires_grad=True) for array in pair] for pair in problem.layers
        ]
        self.x, self.target = torch.tensor(problem.x), torch.tensor(problem.target)

    def step(self) -> None:
        """Compute the loss and the gradients."""
        if self.flush:
            self.torch.set_flush_denormal(True)
        functional = self.torch.nn.functional
        h, last = self.x, len(self.layers) - 1
        for index, (weight, bias) in enumerate(self.layers):
            weight.grad = bias.grad = None
            h = functional.linear(h, weight, bias)
            if index < last:
                h = self.activation(h)
        self.loss = functional.mse_loss(h, self.target)
        self.loss.backward()
        if self.flush:
            self.torch.set_flush_denormal(False)

    def result(self) -> Result:
        """Return the loss and the gradients."""
        return self.loss.item(), [(w.grad.numpy(), b.grad.numpy()) for w, b in self.layers]


class TorchFlushed(Torch):
    """The same pass with subnormal numbers flushed to zero on the calling thread."""

    name, title, flush = "torch-flushed", "PyTorch flushed", True


class _Parameters(_Torch):
    """Parameters with gradients, and the implementations of clip_grad_norm_."""

    variants: ClassVar[Mapping[str, bool | None]] = {
        f"foreach={mode}": mode for mode in (None, True, False)
    }
    variant: str | None = "foreach=None"

    def make(self, buffers: Buffers) -> None:
        import torch

        self.torch: Any = torch
        self.parameters = [torch.nn.Parameter(torch.tensor(w)) for w in buffers.weights]
        for parameter, gradient in zip(self.parameters, buffers.gradients, strict=True):
            parameter.grad = torch.tensor(gradient)

    def clip(self, threshold: float) -> None:
        mode = self.variants[self.variant or "foreach=None"]
        self.torch.nn.utils.clip_grad_norm_(self.parameters, threshold, foreach=mode)


class TorchClip(_Parameters, Clipping):
    """The clip: clip_grad_norm_."""

    def __init__(self, buffers: Buffers) -> None:
        self.make(buffers)
        self.threshold = buffers.norm / 2

    def step(self) -> None:
        """Clip by the joint norm."""
        self.clip(self.next())

    def result(self) -> list[Array]:
        """Return the clipped gradients."""
        return [parameter.grad.numpy() for parameter in self.parameters]


class TorchAdamW(_Parameters):
    """The clip and the step: clip_grad_norm_ and AdamW(fused=True)."""

    def __init__(self, buffers: Buffers) -> None:
        self.make(buffers)
        self.optimizer = self.torch.optim.AdamW(
            self.parameters, lr=LR, weight_decay=DECAY, fused=True
        )

    def step(self) -> None:
        """Take one step."""
        self.clip(MAX_NORM)
        self.optimizer.step()

    def result(self) -> list[Array]:
        """Return the weights."""
        return [np.asarray(parameter.detach().numpy()) for parameter in self.parameters]


class VegradTensorsClip(TorchClip):
    """The clip of the same tensors by vegrad."""

    name, title, variants, variant = "vegrad-tensors", "vegrad, tensors", {}, None

    def step(self) -> None:
        """Clip by the joint norm."""
        clip_by_global_norm_([one.grad for one in self.parameters], self.next())


class VegradTensorsAdamW(TorchAdamW):
    """AdamW of vegrad with a clip inside the step, on the same tensors."""

    name, title, variants, variant = "vegrad-tensors", "vegrad, tensors", {}, None

    def __init__(self, buffers: Buffers) -> None:
        self.make(buffers)
        self.optimizer = AdamW(LR, weight_decay=DECAY, clip=GlobalNorm(MAX_NORM))

    def step(self) -> None:
        """Take one step."""
        self.optimizer.step(self.parameters, [one.grad for one in self.parameters])
