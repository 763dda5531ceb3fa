"""vegrad itself, used as anybody would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from vegrad import _core
from vegrad.arrays.measurement import norm
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
from vegrad.networks.mlp import MLP
from vegrad.optim import AdamW


class Vegrad:
    """The pass with the flow of every layer measured."""

    name: ClassVar[str] = "vegrad"
    title: ClassVar[str] = "vegrad"
    module: ClassVar[str | None] = "vegrad"
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
    def product(a: Array, b: Array, kind: str, out: Array) -> Callable[[], object]:
        """A call that makes a·b, or a·bᵀ if the kind is nt."""
        return partial(_core.matmul, a, b, kind)

    @staticmethod
    def reads(block: Array) -> dict[str, Callable[[], object]]:
        """Calls that read a block once."""
        return {"vegrad norm": partial(norm, block)}

    def step(self) -> None:
        """Loss and gradients."""
        self.loss = self.network.backward(self.x, self.target, flow=self.flow)

    def result(self) -> Result:
        """The loss and the gradients."""
        names = [f"layers.{index}." for index in range(self.network.depth)]
        got = self.network.gradients
        return self.loss, [(got[name + "weight"], got[name + "bias"]) for name in names]


class VegradWithoutFlow(Vegrad):
    """The pass with the loss and the gradients alone."""

    name: ClassVar[str] = "vegrad-noflow"
    title: ClassVar[str] = "vegrad, no flow"
    flow: ClassVar[bool] = False


class VegradFloat64(Vegrad):
    """The pass in float64, with the flow."""

    name: ClassVar[str] = "vegrad-float64"
    title: ClassVar[str] = "vegrad float64"
    dtype: ClassVar[str] = "float64"


class VegradClip(Clipping):
    """clip_by_global_norm_ of NumPy arrays."""

    name: ClassVar[str] = "vegrad"
    title: ClassVar[str] = "vegrad"
    module: ClassVar[str | None] = "vegrad"

    def step(self) -> None:
        """Clip by the joint norm."""
        clip_by_global_norm_(self.gradients, self.next())


class VegradAdamW:
    """AdamW with a clip inside the step, on NumPy arrays."""

    name: ClassVar[str] = "vegrad"
    title: ClassVar[str] = "vegrad"
    module: ClassVar[str | None] = "vegrad"

    def __init__(self, buffers: Buffers) -> None:
        self.weights: list[Any] = [weight.copy() for weight in buffers.weights]
        self.gradients: list[Any] = list(buffers.gradients)
        self.optimizer = AdamW(LR, weight_decay=DECAY, clip=GlobalNorm(MAX_NORM))

    def step(self) -> None:
        """One step."""
        self.optimizer.step(self.weights, self.gradients)

    def result(self) -> list[Any]:
        """The weights."""
        return self.weights
