"""The work that all libraries are given, and the form of a peer, which does it in one library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vegrad.arrays.checks import Activation
from vegrad.arrays.checks import Array as Array

Result = tuple[float, list[tuple[Any, Any]]]  # the loss, and the gradients of each (weight, bias)

# Clipping changes what it clips. Each threshold is the last one times this, so that the norm is
# above the threshold in every call and the work is always the same.
SHRINK = 1 - 2**-16
LR, MAX_NORM, DECAY, BETAS, EPS = 1e-3, 1.0, 1e-2, (0.9, 0.999), 1e-8  # for AdamW


@dataclass(frozen=True)
class Case:
    """A network of `layers` weight matrices of `width` by `width`, run on `batch` rows."""

    layers: int
    width: int
    batch: int
    activation: Activation = "tanh"  # of the hidden layers; the last layer is the identity
    init: str = "glorot_uniform"  # or "he_uniform", or "linear": the default of torch.nn.Linear

    @property
    def label(self) -> str:
        """The shape in short form, with the activation if it is not tanh."""
        shape = f"{self.layers}x{self.width}x{self.batch}"
        return shape if self.activation == "tanh" else f"{shape}-{self.activation}"

    @property
    def flops(self) -> int:
        """Number of additions and multiplications in the products of matrices.

        They give outputs and weight gradients of L layers, and input gradients of L - 1.
        """
        return (3 * self.layers - 1) * 2 * self.batch * self.width**2

    @property
    def weight_bytes(self) -> int:
        """Size of the weight matrices in float32, in bytes."""
        return 4 * self.layers * self.width**2


class Problem:
    """Weights (out, in), biases, data and target of a case: float32, the same for all peers."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        n, self.case = case.width, case
        squares = {"glorot_uniform": 3, "he_uniform": 6, "linear": 1}
        bound = math.sqrt(squares[case.init] / n)
        bias_bound = bound if case.init == "linear" else 0.1

        def uniform(limit: float, *shape: int) -> Array:
            return random.uniform(-limit, limit, shape).astype(np.float32)

        self.layers = [(uniform(bound, n, n), uniform(bias_bound, n)) for _ in range(case.layers)]
        self.x = random.standard_normal((case.batch, n), np.float32)
        self.target = random.standard_normal((case.batch, n), np.float32)


class Buffers:
    """Normal weights and gradients of given shapes: float32, the same for all peers."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.shapes = shapes
        self.weights = [random.standard_normal(shape, np.float32) for shape in shapes]
        self.gradients = [random.standard_normal(shape, np.float32) for shape in shapes]
        squares = (np.square(g, dtype=np.float64).sum() for g in self.gradients)
        self.norm = math.sqrt(sum(squares))
        self.bytes = sum(array.nbytes for array in self.gradients)


class Peer:
    """One piece of work, written as the users of a library would write it.

    A peer is made from a Problem or from Buffers. `step()` does the work once, and returns when its
    results are in memory; `result()` returns them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    module: ClassVar[str | None]
    """The module that must be installed."""
    variants: ClassVar[Mapping[str, bool | None]] = {}
    """Ways to do the work by name, of which the fastest is timed."""
    variant: str | None = None

    def __init__(self, given: Any) -> None:
        raise NotImplementedError

    @staticmethod
    def prepare(threads: int) -> None:
        """Set up the library for this number of threads."""

    def step(self) -> None:
        """Do the work once."""
        raise NotImplementedError

    def result(self) -> Any:
        """Return what the last step has left."""
        raise NotImplementedError


class Clipping(Peer):
    """The common part of peers that clip: their own copies, and a threshold that sinks.

    The first step leaves half the norm.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.gradients = [gradient.copy() for gradient in buffers.gradients]
        self.threshold = buffers.norm / 2

    def next(self) -> float:
        """Return the threshold of the next step."""
        self.threshold *= SHRINK
        return self.threshold

    def result(self) -> list[Array]:
        """Return the clipped gradients."""
        return self.gradients


def right_clipped(buffers: Buffers) -> list[Array]:
    """Return what the first step of `Clipping` must leave, in float64."""
    return [0.5 * SHRINK * gradient.astype(np.float64) for gradient in buffers.gradients]


def right_stepped(buffers: Buffers) -> list[Array]:
    """Return the weights after the first step of AdamW with clipped gradients, in float64."""
    factor = min(1.0, MAX_NORM / buffers.norm)
    found = []
    for weight, gradient in zip(buffers.weights, buffers.gradients, strict=True):
        clipped = factor * gradient.astype(np.float64)
        # After one step the bias-corrected moments are the gradient and its square.
        move = clipped / (np.abs(clipped) + EPS)
        found.append(weight.astype(np.float64) * (1 - LR * DECAY) - LR * move)
    return found
