"""Truncation at random, whose mean is the full gradient."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vegrad.arrays.checks import FloatArray, as_count, as_number, check_state


class RandomTruncation:
    """Cuts of backpropagation at random steps that leave the mean gradient as it is: ARTBP.

    The way back is cut after each step with probability 1/length, and what passes an uncut step is
    multiplied by 1/(1 - 1/length). So the mean over draws is exact, and `length` is the mean number
    of steps between two cuts; the price is a variance that grows with the sequence (Tallec &
    Ollivier 2017, arXiv 1705.08209). `RNN.backward` and `fit` take it as `truncation=` and draw
    anew for each pass.

    Args:
        length: above 1; inf never cuts.
        seed: of the draws.

    Raises:
        TypeError, ValueError: a length that is not above 1, a seed that is no integer from 0 on.
    """

    def __init__(self, length: float, seed: int = 0) -> None:
        self.length, self.seed, self._drawn = _length(length), as_count("seed", seed), 0
        self._random = np.random.PCG64(self.seed)

    def __repr__(self) -> str:
        return f"RandomTruncation({self.length:g}, seed={self.seed})"

    def factors(self, steps: int) -> FloatArray:
        """Draw what multiplies the gradient that goes back from each step: float64 (steps,)."""
        steps = as_count("steps", steps)
        kept = 1 - 1 / self.length
        whole = np.random.Generator(self._random).random(steps) < kept
        self._drawn += steps
        return np.where(whole, 1 / kept, 0.0)

    def state_dict(self) -> dict[str, object]:
        """Return what it takes to go on with the same draws, as plain JSON types."""
        return {"truncation": type(self).__name__, "length": self.length, "seed": self.seed,
                "drawn": self._drawn}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where a state was taken; ValueError, and no change, if it is of something else."""
        check_state(state, "truncation", self.state_dict())
        length = _length(state["length"])
        seed, drawn = (as_count(name, state[name]) for name in ("seed", "drawn"))
        self.length, self.seed, self._drawn = length, seed, drawn
        self._random = np.random.PCG64(seed)
        self._random.advance(drawn)


def _length(value: object) -> float:
    length = as_number("length", value)
    if not length > 1:
        raise ValueError(f"length must be above 1, not {value}: at 1 every step would be cut")
    return length
