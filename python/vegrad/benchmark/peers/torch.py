"""PyTorch, eager, with autograd; imported when one of these is made.

Only here and in vegrad.torch is PyTorch imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.benchmark.peers.activations import identity
from vegrad.benchmark.peers.problem import (
    DECAY,
    LR,
    MAX_NORM,
    Array,
    Buffers,
    Clipping,
    Problem,
    Result,
)
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


class Torch:
    """The pass; the gradients are set to None first, as zero_grad() does."""

    name: ClassVar[str] = "torch"
    title: ClassVar[str] = "PyTorch"
    module: ClassVar[str | None] = "torch"
    flush: ClassVar[bool] = False

    @staticmethod
    def prepare(threads: int) -> None:
        """Set the number of threads."""
        import torch

        torch.set_num_threads(threads)

    @staticmethod
    def product(a: Array, b: Array, kind: str, out: Array) -> Callable[[], object]:
        """A call that writes a·b to `out`, or a·bᵀ if the kind is nt."""
        import torch

        x, y, z = map(torch.from_numpy, (a, b.T if kind == "nt" else b, out))
        return partial(torch.mm, x, y, out=z)

    @staticmethod
    def reads(block: Array) -> dict[str, Callable[[], object]]:
        """Calls that read a block once."""
        import torch

        x = torch.from_numpy(block)
        return {"torch sum": x.sum, "torch dot": partial(torch.dot, x, x)}

    @staticmethod
    def writes(block: Array) -> dict[str, Callable[[], object]]:
        """Calls that write a block once."""
        import torch

        return {"torch fill": partial(torch.from_numpy(block).fill_, 1)}

    @staticmethod
    def updates(block: Array) -> dict[str, Callable[[], object]]:
        """Calls that read every element of a block once and write it back."""
        import torch

        return {"torch mul": partial(torch.from_numpy(block).mul_, 1)}

    def __init__(self, problem: Problem) -> None:
        import torch

        self.torch: Any = torch
        self.activation = _activation(problem.case.activation)
        self.layers = [
            [torch.tensor(array, requires_grad=True) for array in pair] for pair in problem.layers
        ]
        self.x, self.target = torch.tensor(problem.x), torch.tensor(problem.target)

    def step(self) -> None:
        """Loss and gradients."""
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
        """The loss and the gradients."""
        return self.loss.item(), [(w.grad.numpy(), b.grad.numpy()) for w, b in self.layers]


class TorchFlushed(Torch):
    """The same with subnormal numbers flushed to zero on the calling thread."""

    name: ClassVar[str] = "torch-flushed"
    title: ClassVar[str] = "PyTorch flushed"
    flush: ClassVar[bool] = True


class _Parameters:
    """Parameters with gradients, and which implementation takes part."""

    name: ClassVar[str] = "torch"
    title: ClassVar[str] = "PyTorch"
    module: ClassVar[str | None] = "torch"
    variants: ClassVar[dict[str, Any]] = {
        f"foreach={mode}": mode for mode in (None, True, False)
    }  # of clip_grad_norm_
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
    """clip_grad_norm_."""

    def __init__(self, buffers: Buffers) -> None:
        self.make(buffers)
        self.threshold = buffers.norm / 2

    def step(self) -> None:
        """Clip by the joint norm."""
        self.clip(self.next())

    def result(self) -> list[Any]:
        """The clipped gradients."""
        return [parameter.grad.numpy() for parameter in self.parameters]


class TorchAdamW(_Parameters):
    """clip_grad_norm_ and AdamW(fused=True)."""

    def __init__(self, buffers: Buffers) -> None:
        self.make(buffers)
        self.optimizer = self.torch.optim.AdamW(
            self.parameters, lr=LR, weight_decay=DECAY, fused=True
        )

    def step(self) -> None:
        """One step."""
        self.clip(MAX_NORM)
        self.optimizer.step()

    def result(self) -> list[Any]:
        """The weights."""
        return [np.asarray(parameter.detach().numpy()) for parameter in self.parameters]


class VegradTensorsClip(TorchClip):
    """vegrad's clip of the same tensors."""

    name: ClassVar[str] = "vegrad-tensors"
    title: ClassVar[str] = "vegrad, tensors"
    variants: ClassVar[dict[str, Any]] = {}
    variant = None

    def step(self) -> None:
        """Clip by the joint norm."""
        clip_by_global_norm_([one.grad for one in self.parameters], self.next())


class VegradTensorsAdamW(TorchAdamW):
    """vegrad's AdamW with a clip inside the step, on the same tensors."""

    name: ClassVar[str] = "vegrad-tensors"
    title: ClassVar[str] = "vegrad, tensors"
    variants: ClassVar[dict[str, Any]] = {}
    variant = None

    def __init__(self, buffers: Buffers) -> None:
        self.make(buffers)
        self.optimizer = AdamW(LR, weight_decay=DECAY, clip=GlobalNorm(MAX_NORM))

    def step(self) -> None:
        """One step."""
        self.optimizer.step(self.parameters, [one.grad for one in self.parameters])
