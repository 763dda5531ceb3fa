"""The rule that clips nothing, but leaves out whole steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isfinite, sqrt
from typing import ClassVar

import numpy as np

from vegrad.arrays import checks
from vegrad.arrays.checks import Number, Policy
from vegrad.clipping.learning import Learned
from vegrad.clipping.rules import Loss, argument

ROUNDING = 2.0**-40
"""The share of the mean by which a number may exceed its limit: numbers that are all the same have
no deviation, but a mean that is rounded."""


class SkipSpike(Learned):
    """Leave out a step whose joint norm or loss is far above those of the steps before.

    A step is left out if its norm, or its loss where it is known, exceeds the mean of the last
    `window` steps by more than `sigmas` of their standard deviations (with n - 1 in the
    denominator), or if one of them is not finite: a norm above 1.8e308 is infinite, and so is that
    of a gradient with an infinite element, which nonfinite="propagate" lets come here. No gradient,
    weight or state of the optimizer changes then, and the step does not count among the
    optimizer's; `Clipped.skipped` is True. Nothing is left out before step number `after`. This is
    the rule of OLMo's optimizers (github.com/allenai/OLMo-core, SkipStepOptimizer).

    Steps that are left out count in the window, so that norms which stay high are soon taken for
    usual; what is not finite never does. `fit` knows the loss of each step, a closure gives it to
    an optimizer of `vegrad.torch`, and in other loops pass it: `step(params, grads, loss=loss)`,
    `apply_(grads, loss=loss)`, or `step(loss=loss)` of a torch optimizer. Without it the norm alone
    decides.
    """

    sigmas = argument(checks.as_limit)
    window = argument(partial(checks.as_count, least=2))
    after = argument(partial(checks.as_count, least=3))
    _learnt: ClassVar = {"norms": checks.as_finites, "losses": checks.as_reals}

    def __init__(
        self,
        sigmas: Number = 6,
        window: int = 128,
        after: int = 64,
        *,
        nonfinite: Policy = "raise",
    ) -> None:
        super().__init__(sigmas=sigmas, window=window, after=after, nonfinite=nonfinite)
        self.norms: list[float] = []
        self.losses: list[float] = []

    def _limit_for(self, norm: float, loss: Loss | None) -> tuple[float, Callable[[], None]]:
        now = None if loss is None else loss()
        left_out = self._is_spike(norm, self.norms)
        if now is not None:
            left_out = self._is_spike(now, self.losses) or left_out

        def learn() -> None:
            self._take_in(norm, self.norms)
            if now is not None:
                self._take_in(now, self.losses)

        return -inf if left_out else inf, learn

    def _is_spike(self, value: float, before: Sequence[float]) -> bool:
        if len(before) < self.after - 1:
            return False
        last = np.array(before[-self.window :])
        scale = float(max(last.max(), -last.min())) or 1.0  # so that no square is out of range
        last /= scale
        mean = float(np.add.reduce(last)) / len(last)
        last -= mean
        deviation = sqrt(last @ last / (len(last) - 1))
        return not value / scale - mean <= self.sigmas * deviation + ROUNDING * abs(mean)

    def _take_in(self, value: float, before: list[float]) -> None:
        if isfinite(value):
            before.append(value)
            del before[: -max(self.window, self.after - 1)]
