"""Initial weights and biases: one function a scheme, one table of names.

Each function draws float64 values for one layer, weight (O, I) and bias (O,), from a NumPy
generator, so that a seed gives the same network in float32 (rounded) and in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import sqrt

import numpy as np
import numpy.typing as npt

Weight = npt.NDArray[np.float64]
Initializer = Callable[[np.random.Generator, int, int], Weight]


def _uniform(variance: Callable[[int, int], float]) -> Initializer:
    def draw(rng: np.random.Generator, outputs: int, inputs: int) -> Weight:
        bound = sqrt(3.0 * variance(outputs, inputs))
        return rng.uniform(-bound, bound, (outputs, inputs))

    return draw


def _normal(variance: Callable[[int, int], float]) -> Initializer:
    def draw(rng: np.random.Generator, outputs: int, inputs: int) -> Weight:
        weight = rng.standard_normal((outputs, inputs))
        weight *= sqrt(variance(outputs, inputs))
        return weight

    return draw


def _glorot(outputs: int, inputs: int) -> float:
    return 2.0 / (inputs + outputs)  # Glorot & Bengio 2010


def _he(outputs: int, inputs: int) -> float:
    return 2.0 / inputs  # He et al. 2015


def _lecun(outputs: int, inputs: int) -> float:
    return 1.0 / inputs  # LeCun et al. 1998


def _orthogonal(rng: np.random.Generator, outputs: int, inputs: int) -> Weight:
    """Orthonormal rows or columns, whichever are fewer, uniformly drawn (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.standard_normal((max(outputs, inputs), min(outputs, inputs))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # makes the draw uniform over orthogonal matrices
    return np.ascontiguousarray(q if outputs >= inputs else q.T)


INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": _uniform(_glorot),
    "glorot_normal": _normal(_glorot),
    "he_uniform": _uniform(_he),
    "he_normal": _normal(_he),
    "lecun_normal": _normal(_lecun),
    "orthogonal": _orthogonal,
    "normal": _normal(_lecun),  # times sigma_w; the only one with biases
}


def draw_parameters(
    sizes: tuple[int, ...],
    init: str,
    sigma_w: float | None,
    sigma_b: float | None,
    seed: int | None,
) -> Iterator[tuple[Weight, Weight]]:
    """Weight (O, I) and bias (O,) of each layer; sigma_w and sigma_b as in `vegrad.MLP`.

    One layer at a time: the values are twice as large as the float32 network's.
    """
    rng = np.random.default_rng(seed)
    for inputs, outputs in pairwise(sizes):
        weight = INITIALIZERS[init](rng, outputs, inputs)
        if sigma_w is not None:
            weight *= sigma_w
        bias = rng.standard_normal(outputs) * sigma_b if sigma_b else np.zeros(outputs)
        yield weight, bias
