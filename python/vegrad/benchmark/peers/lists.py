"""Pure Python: lists of floats (which are float64), comprehensions and maps, on one thread."""

from __future__ import annotations

import math
import timeit
from operator import add, mul, sub

from vegrad.benchmark.peers.activations import written
from vegrad.benchmark.peers.problem import (
    BETAS,
    DECAY,
    EPS,
    LR,
    MAX_NORM,
    SHRINK,
    Buffers,
    Case,
    Peer,
    Problem,
    Result,
)

Rows = list[list[float]]


class _Lists(Peer):
    name, title, module = "lists", "Python lists", None


class Lists(_Lists):
    """The pass, with lists of lists."""

    def __init__(self, problem: Problem) -> None:
        self.activation = written(problem.case.activation)
        self.layers: list[tuple[Rows, list[float]]] = [
            (weight.tolist(), bias.tolist()) for weight, bias in problem.layers
        ]
        self.x: Rows = problem.x.tolist()
        self.target: Rows = problem.target.tolist()

    @classmethod
    def expected_seconds(cls, case: Case) -> float:
        """Guess from one dot product how long a pass takes, to decide whether to run it at all."""
        values = [0.5] * case.width
        product = timeit.timeit(lambda: sum(map(mul, values, values)), number=100) / 100
        return product / case.width * case.flops / 2

    def step(self) -> None:
        """Compute the loss and the gradients."""

        def product(rows: Rows, columns: Rows) -> Rows:
            return [[sum(map(mul, row, column)) for column in columns] for row in rows]

        def transpose(rows: Rows) -> Rows:
            return list(map(list, zip(*rows, strict=True)))

        _, value, slope, *_ = self.activation
        outputs, kept, last = [self.x], [self.x], len(self.layers) - 1
        for index, (weight, bias) in enumerate(self.layers):
            z = [list(map(add, row, bias)) for row in product(outputs[-1], weight)]
            outputs.append(z if index == last else [list(map(value, row)) for row in z])
            kept.append(z if self.activation.keeps_z else outputs[-1])
        delta = [list(map(sub, *pair)) for pair in zip(outputs[-1], self.target, strict=True)]
        count = len(delta) * len(delta[0])
        self.loss = sum(value * value for row in delta for value in row) / count
        delta = [[2 / count * value for value in row] for row in delta]
        self.gradients: list[tuple[Rows, list[float]]] = []
        for index in range(last, -1, -1):
            columns = transpose(delta)
            d_weight = product(columns, transpose(outputs[index]))
            self.gradients.append((d_weight, [sum(column) for column in columns]))
            if index:
                delta = product(delta, transpose(self.layers[index][0]))
                for d, row in zip(delta, kept[index], strict=True):
                    d[:] = map(mul, d, map(slope, row))
        self.gradients.reverse()

    def result(self) -> Result:
        """Return the loss and the gradients."""
        return self.loss, list(self.gradients)


def _joint_norm(gradients: Rows) -> float:
    return math.sqrt(sum(sum(map(mul, row, row)) for row in gradients))


class ListsClip(_Lists):
    """The clip, with one flat list for each gradient."""

    def __init__(self, buffers: Buffers) -> None:
        self.gradients: Rows = [array.ravel().tolist() for array in buffers.gradients]
        self.threshold = buffers.norm / 2

    def step(self) -> None:
        """Clip by the joint norm."""
        self.threshold *= SHRINK
        norm = _joint_norm(self.gradients)
        if norm > self.threshold:
            factor = self.threshold / norm
            for row in self.gradients:
                row[:] = [factor * value for value in row]

    def result(self) -> Rows:
        """Return the clipped gradients."""
        return self.gradients


class ListsAdamW(_Lists):
    """The clip and the step, with flat lists."""

    def __init__(self, buffers: Buffers) -> None:
        self.weights: Rows = [array.ravel().tolist() for array in buffers.weights]
        self.gradients: Rows = [array.ravel().tolist() for array in buffers.gradients]
        self.means: Rows = [[0.0] * len(row) for row in self.weights]
        self.squares: Rows = [[0.0] * len(row) for row in self.weights]
        self.steps = 0

    def step(self) -> None:
        """Take one step."""
        self.steps += 1
        factor = min(1.0, MAX_NORM / _joint_norm(self.gradients))
        (a, b), root = BETAS, math.sqrt(1 - BETAS[1] ** self.steps)
        rate, keep = LR / (1 - a**self.steps), 1 - LR * DECAY
        for w, g, m, v in zip(self.weights, self.gradients, self.means, self.squares, strict=True):
            clipped = [factor * value for value in g]
            m[:] = [a * old + (1 - a) * new for old, new in zip(m, clipped, strict=True)]
            v[:] = [b * old + (1 - b) * new * new for old, new in zip(v, clipped, strict=True)]
            w[:] = [
                keep * old - rate * mean / (math.sqrt(square) / root + EPS)
                for old, mean, square in zip(w, m, v, strict=True)
            ]

    def result(self) -> Rows:
        """Return the weights."""
        return self.weights
