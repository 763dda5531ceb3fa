"""The parts that the experiments on recurrent networks share: weights, and training on fresh rows.

Each step of a training draws its rows anew, as in the papers: there is no training set to learn by
heart, and nothing to hold out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import vegrad
from vegrad import clipping
from vegrad.datasets import Sequences

TEST_ROWS = 1000
Draw = Callable[[int, int], Sequences]
"""A function of rows and seed."""


@dataclass
class Course:
    """What a training has come to."""

    losses: list[float] = field(default_factory=list)
    """Loss of each step's rows."""
    norms: list[float] = field(default_factory=list)
    """Joint norm of each step's gradient, before the clip."""
    looks: list[tuple[int, float]] = field(default_factory=list)
    """Steps, and the figure on the test rows after so many."""
    solved: int | None = None
    """The step at which the figure was good enough for the first time."""
    ended: int | None = None
    """The step whose loss or gradient was not finite."""


def gaussian(network: vegrad.RNN, deviation: float, seed: int) -> None:
    """Draw all weights from N(0, deviation²); biases become 0."""
    rng = np.random.default_rng([seed, 2013])
    for name, array in network.parameters.items():
        array[...] = deviation * rng.standard_normal(array.shape) if "weight" in name else 0.0


def spectral_radius(network: vegrad.RNN) -> float:
    """Return the largest modulus of an eigenvalue of the recurrent matrix."""
    return float(np.abs(np.linalg.eigvals(network.parameters["rnn.weight_hh_l0"])).max())


def share_wrong(network: vegrad.RNN, data: Sequences) -> float:
    """Return the share of rows whose largest output is not their class."""
    return float(np.mean(network.forward(data.x).argmax(axis=1) != data.y))


def train(
    network: vegrad.RNN,
    draw: Draw,
    optimizer: vegrad.optim.Optimizer,
    steps: int,
    *,
    batch: int,
    seed: int,
    figure: Callable[[vegrad.RNN, Sequences], float],
    enough: float,
    every: int = 50,
    added: Callable[[vegrad.RNN, Sequences], None] | None = None,
) -> Course:
    """Train until the figure on the test rows is good enough, or for so many steps.

    `added` changes the gradients before the step is taken.
    """
    course, test = Course(), draw(TEST_ROWS, 10**9 + seed)
    for step in range(steps):
        data = draw(batch, 10**6 * (seed + 1) + step)
        loss = network.backward(data.x, data.y)
        if added is not None:
            added(network, data)
        norm = vegrad.norm(network.gradients)
        course.losses.append(loss)
        course.norms.append(norm)
        if not np.isfinite(loss) or not np.isfinite(norm):
            course.ended = step + 1
            break
        optimizer.step(network.parameters, network.gradients)
        if (step + 1) % every == 0:
            found = figure(network, test)
            course.looks.append((step + 1, found))
            if found < enough:
                course.solved = step + 1
                break
    return course


def clip(norm: float | None) -> clipping.Rule | None:
    """Return the rule that clips by the joint norm; None for none."""
    return None if norm is None else clipping.GlobalNorm(norm)


def shown(course: Course) -> str:
    """Say in how many steps it was solved, or how it ended."""
    if course.solved is not None:
        return f"{course.solved} steps"
    if course.ended is not None:
        return f"infinite at {course.ended}"
    return "not solved"
