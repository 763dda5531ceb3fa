"""The descent of a training: its steps through the weights, and the loss along them."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import NamedTuple

from vegrad.arrays.checks import FloatArray

ROUNDED = 1e-6  # of a loss in float32, whose last digits are chance


class Look(NamedTuple):
    """The loss along one step, which begins at the place 0 and ends at 1."""

    step: int
    """Its number among all steps."""
    alpha: float
    """Its end on the parabola that fits its begin and end: -1 stands still, 0 is the minimum."""
    places: FloatArray
    """Places from 0 to 1."""
    loss: FloatArray
    """The loss there."""
    beyond: FloatArray
    """Places from 1 on, up to where the step would have ended without the clip; or none."""
    ghost: FloatArray
    """The loss there."""

    @property
    def climbs(self) -> bool:
        """True if the loss is higher where the step ends than where it begins."""
        return bool(self.loss[-1] > self.loss[0] + ROUNDED * abs(self.loss[0]))


@dataclass(frozen=True)
class Descent:
    """The steps of a training, S of them.

    `loss` (S + 1,) is that before each step and after the last, nan where nothing was measured;
    `length` (S,) is ‖Δ‖ of all parameters together, `coefficient` (S,) the clip's factor, 1 without
    one. `looks` has the steps that are drawn. `guess` is the loss of the best output that is the
    same for all rows, or nan. With `whole` the loss is always of the same rows, otherwise of each
    step's own batch.
    """

    loss: FloatArray
    length: FloatArray
    coefficient: FloatArray
    looks: tuple[Look, ...]
    guess: float = nan
    whole: bool = True
