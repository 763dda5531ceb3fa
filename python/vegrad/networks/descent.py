"""A training whose loss is measured along its steps, on the same rows throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, FloatArray
from vegrad.clipping import NonFiniteGradientError
from vegrad.diagnosis.parabola import parabola
from vegrad.flow.descent import Descent, Look
from vegrad.networks.mlp import MLP
from vegrad.networks.rnn import RNN
from vegrad.optim import SGD, Optimizer
from vegrad.treatment.goal import goal_for

PLACES = np.linspace(0, 1, 9)
FARTHEST, GHOSTS = 3.0, 7  # of a step without its clip: times the step, and places on the way
SHORTENING = ("GlobalNorm", "AutoClip", "ZClip")  # rules with one factor for all gradients
Buffers = dict[str, Array]


@np.errstate(invalid="ignore", over="ignore")
def descend(
    network: MLP | RNN,
    x: Array,
    target: Array,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int | None = None,
    lengths: Array | None = None,
    looks: int = 24,
    seed: int = 0,
) -> Descent:
    """Train a network, and measure the loss of all rows along some of the steps.

    A step that is looked at costs two passes and up to 14 losses of all rows more.

    Args:
        network: it is trained.
        x: (N, I), or (N, T, I) of a recurrent network.
        target: as for `backward`.
        optimizer: one of vegrad.optim, with its clip.
        steps: the most to take; a loss or gradient that is not finite ends them.
        batch_size: rows of a step; None for all.
        lengths: (N,) of sequences of unequal length.
        looks: the steps to look at, spread evenly.
        seed: of the order of the rows.

    Raises:
        TypeError, ValueError: as `backward`.
    """
    walk, shortens = _Walk(network, x, target, lengths), _only_shortens(optimizer)
    chosen = set(np.linspace(0, steps - 1, min(looks, steps)).round().astype(int).tolist())
    losses: list[float] = []
    norms: list[float] = []
    factors: list[float] = []
    seen: list[Look] = []
    for step, rows in zip(range(steps), _batches(len(x), batch_size, seed), strict=False):
        losses.append(walk.backward() if rows is None or step in chosen else walk.loss())
        if not np.isfinite(losses[-1]):
            break
        gradient, before = _copies(network.gradients), _copies(network.parameters)
        try:
            if rows is not None:
                walk.backward(rows)
            factor = optimizer.step(network.parameters, network.gradients).coefficient
        except NonFiniteGradientError:
            break
        moved = {name: one - before[name] for name, one in network.parameters.items()}
        norms.append(np.sqrt(_dot(moved, moved)))
        factors.append(factor)
        if step in chosen:
            unclipped = 1 / factor if shortens and 0 < factor < 1 else 1.0
            slope = _dot(gradient, moved)
            seen.append(walk.look(step, losses[-1], slope, before, moved, unclipped))
    else:
        losses.append(walk.loss())
    columns = np.array(losses), np.array(norms), np.array(factors)
    return Descent(*columns, tuple(seen), walk.guess())


def _copies(buffers: Mapping[str, Array]) -> Buffers:
    return {name: one.copy() for name, one in buffers.items()}


class _Walk:
    """The passes of a network over all rows, or some."""

    def __init__(self, network: MLP | RNN, x: Array, target: Array, lengths: Array | None) -> None:
        self.network, self.x, self.target = network, x, target
        self.lengths = {} if lengths is None else {"lengths": lengths}

    def backward(self, rows: npt.NDArray[np.intp] | None = None) -> float:
        """Run a pass over these rows; return the loss."""
        every = slice(None) if rows is None else rows
        run = cast(Callable[..., float], self.network.backward)
        lengths = {name: one[every] for name, one in self.lengths.items()}
        return run(self.x[every], self.target[every], **lengths)

    def loss(self) -> float:
        """Return the loss of all rows."""
        return cast(Callable[..., float], self.network.loss)(self.x, self.target, **self.lengths)

    def guess(self) -> float:
        """Return the loss of the best output that is the same for all rows."""
        if isinstance(self.network, RNN):
            lengths = self.lengths.get("lengths")
            wanted = self.network.rows(self.x, self.target, lengths, None).wanted
        else:
            wanted = self.network.checked(self.x, self.target)[1]
        return goal_for(self.network.config["loss"], wanted, None).guess

    def look(
        self,
        step: int,
        loss: float,
        slope: float,
        before: Buffers,
        moved: Buffers,
        unclipped: float,
    ) -> Look:
        """Measure the loss along a step that was taken, and up to where it ends without a clip."""
        after = _copies(self.network.parameters)
        end = self.backward()
        record = [loss, 0, 0, 0, end, slope, _dot(self.network.gradients, moved), 0]
        b, c = parabola(np.array([record]))
        with np.errstate(divide="ignore", invalid="ignore"):
            alpha = float((-(b + 2 * c) / b)[0]) if np.isfinite(end) else np.inf
        beyond = np.linspace(1, min(unclipped, FARTHEST), GHOSTS if unclipped > 1 else 0)
        ghost = self._along(beyond, before, moved)
        losses = self._along(PLACES, before, moved)
        losses[[0, -1]] = loss, end
        for name, one in self.network.parameters.items():
            one[...] = after[name]
        return Look(step, alpha, PLACES, losses, beyond, ghost)

    def _along(self, places: FloatArray, before: Buffers, moved: Buffers) -> FloatArray:
        losses = np.empty(len(places))
        for i, place in enumerate(places):
            for name, one in self.network.parameters.items():
                one[...] = before[name] + one.dtype.type(place) * moved[name]
            losses[i] = self.loss()
        return losses


def _batches(rows: int, size: int | None, seed: int) -> Iterator[npt.NDArray[np.intp] | None]:
    """Yield the rows of each step, each epoch in an order of its own; None stands for all."""
    random = np.random.default_rng(seed)
    while size is None or size >= rows:
        yield None
    while True:
        order = random.permutation(rows)
        yield from (order[first : first + size] for first in range(0, rows, size))


def _only_shortens(optimizer: Optimizer) -> bool:
    """Return True if the clip makes a step shorter and does not turn it."""
    state = optimizer.state_dict()
    clip = state["clip"] or {"rule": ""}
    if not isinstance(optimizer, SGD) or clip["rule"] not in SHORTENING:
        return False
    return not any(state["arguments"][name] for name in ("momentum", "weight_decay"))


def _dot(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    return sum(float(np.vdot(one[n].astype(np.float64), other[n])) for n in other)
