"""NumPy, with all buffers allocated beforehand and all operations in place."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array
from vegrad.benchmark.peers.activations import written
from vegrad.benchmark.peers.problem import (
    BETAS,
    DECAY,
    EPS,
    LR,
    MAX_NORM,
    Buffers,
    Clipping,
    Peer,
    Problem,
    Result,
)
from vegrad.benchmark.timing import Call


class _NumPy(Peer):
    name, title, module = "numpy", "NumPy", "numpy"


class NumPy(_NumPy):
    """The pass, in float32 or in another dtype."""

    def __init__(self, problem: Problem, dtype: npt.DTypeLike = np.float32) -> None:
        self.activation = written(problem.case.activation)
        self.layers = [(w.astype(dtype), b.astype(dtype)) for w, b in problem.layers]
        self.x, self.target = problem.x.astype(dtype), problem.target.astype(dtype)
        self.outputs: list[Array] = [self.x] + [np.empty_like(self.x) for _ in self.layers]
        self.kept = self.outputs
        if self.activation.keeps_z:
            self.kept = [np.empty_like(self.x) for _ in self.outputs]
        self.delta, self.before, self.slope, self.scratch = (
            np.empty_like(self.x) for _ in range(4)
        )
        self.gradients = [(np.empty_like(w), np.empty_like(b)) for w, b in self.layers]

    @staticmethod
    def product(a: Array, b: Array, kind: str, out: Array) -> Call:
        """Return a call that writes a·b to `out`, or a·bᵀ if the kind is nt."""
        return partial(np.matmul, a, b.T if kind == "nt" else b, out=out)

    @staticmethod
    def traffic(block: Array) -> dict[str, dict[str, Call]]:
        """Return calls by kind and name that read, write, or read and write a block once."""
        return {
            "read": {"numpy sum": block.sum, "numpy dot": partial(np.dot, block, block)},
            "write": {"numpy fill": partial(block.fill, 1)},
            "update": {"numpy multiply": partial(np.multiply, block, np.float32(1), out=block)},
        }

    def step(self) -> None:
        """Compute the loss and the gradients."""
        apply_, slope_, last = self.activation.apply_, self.activation.slope_, len(self.layers) - 1
        for index, (weight, bias) in enumerate(self.layers):
            z = np.matmul(self.outputs[index], weight.T, out=self.outputs[index + 1])
            z += bias
            if index < last:
                if self.activation.keeps_z:
                    np.copyto(self.kept[index + 1], z)
                apply_(z, self.scratch)
        delta, before = self.delta, self.before
        np.subtract(self.outputs[-1], self.target, out=delta)
        self.loss = float(np.vdot(delta, delta)) / delta.size
        delta *= 2 / delta.size
        for index in range(last, -1, -1):
            d_weight, d_bias = self.gradients[index]
            np.matmul(delta.T, self.outputs[index], out=d_weight)
            np.sum(delta, axis=0, out=d_bias)
            if index:
                np.matmul(delta, self.layers[index][0], out=before)
                slope_(self.kept[index], self.slope, self.scratch)
                before *= self.slope
                delta, before = before, delta

    def result(self) -> Result:
        """Return the loss and the gradients."""
        return self.loss, list(self.gradients)


def _joint_norm(gradients: list[Array]) -> float:
    return math.sqrt(sum(float(np.vdot(array, array)) for array in gradients))


class NumPyClip(_NumPy, Clipping):
    """The clip."""

    def step(self) -> None:
        """Clip by the joint norm."""
        threshold, norm = self.next(), _joint_norm(self.gradients)
        if norm > threshold:
            for gradient in self.gradients:
                gradient *= threshold / norm


class NumPyAdamW(_NumPy):
    """The clip and the step; the gradients are left as they are."""

    def __init__(self, buffers: Buffers) -> None:
        self.weights = [weight.copy() for weight in buffers.weights]
        self.gradients = buffers.gradients
        self.means, self.squares, *self.scratch = (
            [np.zeros_like(weight) for weight in self.weights] for _ in range(4)
        )
        self.steps = 0

    def step(self) -> None:
        """Take one step."""
        self.steps += 1
        factor = min(1.0, MAX_NORM / _joint_norm(self.gradients))
        (a, b), root = BETAS, math.sqrt(1 - BETAS[1] ** self.steps)
        buffers = (self.weights, self.gradients, self.means, self.squares, *self.scratch)
        for w, g, m, v, room, other in zip(*buffers, strict=True):
            np.multiply(g, factor, out=room)
            m *= a
            m += np.multiply(room, 1 - a, out=other)
            v *= b
            np.multiply(room, room, out=room)
            v += np.multiply(room, 1 - b, out=room)
            np.sqrt(v, out=room)
            room *= 1 / root
            room += EPS
            np.divide(m, room, out=room)
            room *= LR / (1 - a**self.steps)
            w *= 1 - LR * DECAY
            w -= room

    def result(self) -> list[Array]:
        """Return the weights."""
        return self.weights
