"""vegrad itself, used as anybody would use it."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.arrays.measurement import norm
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
from vegrad.networks.mlp import MLP
from vegrad.optim import AdamW


class _Vegrad(Peer):
    name, title, module = "vegrad", "vegrad", "vegrad"


class Vegrad(_Vegrad):
    """The pass, with the flow of every layer measured."""

    flow: ClassVar[bool] = True
    dtype: ClassVar[str] = "float32"

    def __init__(self, problem: Problem) -> None:
        case = problem.case
        sizes = [case.width] * (case.layers + 1)
        self.network = MLP(sizes, activation=case.activation, dtype=self.dtype, seed=0)
        self.x, self.target = (a.astype(self.dtype) for a in (problem.x, problem.target))
        for index, (weight, bias) in enumerate(problem.layers):
            self.network.parameters[f"layers.{index}.weight"][...] = weight
            self.network.parameters[f"layers.{index}.bias"][...] = bias

    @staticmethod
    def product(a: Array, b: Array, kind: str, out: Array) -> Call:
        """Return a call that computes a·b, or a·bᵀ if the kind is nt; it cannot write to `out`."""
        return partial(_core.matmul, a, b, kind)

    @staticmethod
    def traffic(block: Array) -> dict[str, dict[str, Call]]:
        """Return a call by kind and name that reads a block once."""
        return {"read": {"vegrad norm": partial(norm, block)}}

    def step(self) -> None:
        """Compute the loss and the gradients."""
        self.loss = self.network.backward(self.x, self.target, flow=self.flow)

    def result(self) -> Result:
        """Return the loss and the gradients."""
        names = [f"layers.{index}." for index in range(self.network.depth)]
        got = self.network.gradients
        return self.loss, [(got[name + "weight"], got[name + "bias"]) for name in names]


class VegradWithoutFlow(Vegrad):
    """The pass, with the loss and the gradients alone."""

    name, title, flow = "vegrad-noflow", "vegrad, no flow", False


class VegradFloat64(Vegrad):
    """The pass in float64, with the flow."""

    name, title, dtype = "vegrad-float64", "vegrad float64", "float64"


class VegradClip(_Vegrad, Clipping):
    """`clip_by_global_norm_` of NumPy arrays."""

    def step(self) -> None:
        """Clip by the joint norm."""
        clip_by_global_norm_(self.gradients, self.next())


class VegradAdamW(_Vegrad):
    """The clip and the step in one call, on NumPy arrays."""

    def __init__(self, buffers: Buffers) -> None:
        self.weights = [weight.copy() for weight in buffers.weights]
        self.gradients = list(buffers.gradients)
        self.optimizer = AdamW(LR, weight_decay=DECAY, clip=GlobalNorm(MAX_NORM))

    def step(self) -> None:
        """Take one step."""
        self.optimizer.step(self.weights, self.gradients)

    def result(self) -> list[Array]:
        """Return the weights."""
        return self.weights
