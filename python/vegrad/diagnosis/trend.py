"""What the rules of a diagnosis look at: the trend of a chain of gains, and who departs from it.

Everything here is scale-free: gains are ratios between neighbouring layers, in log2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import hypot, inf, isfinite, sqrt
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, finite_mean
from vegrad.theory.expected import ExpectedFlow

CHOSEN = 0.5  # decades beyond the limit that a stretch must go, as the steepest was chosen


@dataclass(frozen=True)
class Trend:
    """The gain a layer (log2), fitted by least squares to the gains of a chain.

    The constant that fits gains best is their mean. `low` and `high` bound it with 95 %
    confidence, from the scatter across layers and from batch to batch (Student's t). `weights` and
    `activation` are the means of its two factors; `count` is the number of gains.
    """

    gain: float
    low: float
    high: float
    count: int
    weights: float
    activation: float

    @property
    def decades(self) -> float:
        """log10 of the whole chain's gain."""
        return self.gain * self.count / DECADE

    @property
    def significant(self) -> bool:
        """Whether the gain differs from 1×; under 5 layers an interval cannot tell."""
        return self.count < 5 or not self.low <= 0.0 <= self.high

    def blame(self, sign: int) -> str:
        """The factor that pulls further, down for sign -1 and up for +1."""
        return "weights" if sign * (self.weights - self.activation) > 0 else "activation"


@dataclass
class Measured:
    """A network after one backward pass."""

    network: Any
    loss: float
    flow: Flow
    shift: float
    """How far (log2) a single gain, or a stretch of them, must depart to be noticed."""
    batches: FloatArray
    """Gains (R, L - 1) of resampled batches of the same size; R may be 0."""
    expected: ExpectedFlow | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The arguments that the network was made with."""
        return dict(self.network.config)

    @cached_property
    def local(self) -> FloatArray:
        """The gains (log2) for comparing neighbours: NaN where a norm is 0, normalization undone.

        Behind a normalization δ is inversely proportional to the size of z, which skip connections
        make grow from layer to layer; neither W nor its gradient minds.
        """
        gains = np.where(np.isfinite(self.flow.gain_log2), self.flow.gain_log2, np.nan)
        if self.config["norm"] is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                scale = np.append(np.log2(self.flow.preactivation_std[:-1]), 0.0)
                undone = gains + scale[:-1] - scale[1:]
            gains = np.where(np.isfinite(undone), undone, gains)
        return gains

    @cached_property
    def broken(self) -> dict[int, float]:
        """The gains far from the rest, and what (log2) is usual among the others."""
        result = {}
        for place, gain in enumerate(self.local):
            others = np.delete(self.local, place)
            others = others[np.isfinite(others)]
            usual, spread = 0.0, 0.0  # 1× where there are too few others to compare with
            if others.size > 2:
                usual = float(np.median(others))
                spread = 1.4826 * float(np.median(np.abs(others - usual)))
            stopped = self.flow.gain_log2[place] == -inf
            if stopped or abs(gain - usual) >= max(self.shift, 6.0 * spread):
                result[place] = usual
        return result

    @cached_property
    def trend(self) -> Trend | None:
        """The trend of the whole chain, its broken gains left out."""
        return self.fit(place for place in range(self.local.size) if place not in self.broken)

    def fit(self, places: Iterable[int]) -> Trend | None:
        """The trend through the gains at `places` that are finite; None if there are none."""
        chosen = [place for place in places if isfinite(self.flow.gain_log2[place])]
        if not chosen:
            return None
        gains, count = self.flow.gain_log2[chosen], len(chosen)
        mean = float(gains.mean())
        half = inf if count == 1 else _student(count - 1) * float(gains.std(ddof=1)) / sqrt(count)
        half = hypot(half, self._by_chance_of_batch(chosen))
        weights = finite_mean(self.flow.weight_gain_log2[chosen])
        activation = finite_mean(self.flow.activation_gain_log2[chosen])
        return Trend(mean, mean - half, mean + half, count, weights, activation)

    def _by_chance_of_batch(self, places: list[int]) -> float:
        """Half the interval of a mean gain (log2) that resampled batches give; 0 without them."""
        means = self.batches[:, places].mean(axis=1) if len(self.batches) > 1 else np.zeros(0)
        means = means[np.isfinite(means)]
        return _student(means.size - 1) * float(means.std(ddof=1)) if means.size > 1 else 0.0

    def steepest(self, sign: int) -> range:
        """The stretch of gains that shrinks (sign -1) or grows most (Kadane's algorithm).

        Empty if it shifts the gradient by less than `shift`, or by what chance explains.
        """
        # Less the scatter of one, so that a stretch does not creep on through healthy neighbours.
        steps = np.nan_to_num(sign * self.local) - self.noise
        steps[list(self.broken)] = 0.0
        best, total, start, stretch = 0.0, 0.0, 0, range(0)
        for place, step in enumerate(steps.tolist()):
            if total <= 0.0:
                total, start = 0.0, place
            total += step
            if total > best:
                best, stretch = total, range(start, place + 1)
        # Five deviations, because it was chosen among all stretches for being the steepest.
        chance = 5.0 * self.noise * sqrt(len(stretch))
        return stretch if best >= max(self.shift, chance) else range(0)

    def chain(self, sign: int, limit: float) -> tuple[Trend, range | None] | None:
        """What shrinks (sign -1) or grows by `limit` decades: the whole chain, or a stretch of it.

        With the stretch, if it is one; that must go half a decade further, as it was chosen for
        being the steepest.
        """
        trend, stretch = self.trend, self.steepest(sign)
        whole = trend is not None and trend.significant and sign * trend.decades >= limit
        if stretch and (not whole or len(stretch) < 0.5 * len(self.flow.gain_log2)):
            part = self.fit(stretch)
            if part is not None and sign * part.decades >= limit + CHOSEN:
                return part, stretch
        return (trend, None) if trend is not None and whole else None

    @cached_property
    def noise(self) -> float:
        """The scatter of one gain (log2), judged by neighbours so that a drift is not scatter."""
        steps = np.abs(np.diff(self.local[np.isfinite(self.local)]))
        return 1.4826 * float(np.median(steps)) / sqrt(2.0) if steps.size > 1 else 0.0

    @cached_property
    def underflowed(self) -> tuple[int, ...]:
        """The layers whose weight gradient is 0 in the network's dtype, though not in truth."""
        return self._lost(lambda gradient: not gradient.any())

    @cached_property
    def overflowed(self) -> tuple[int, ...]:
        """The layers whose weight gradient is inf in the network's dtype, though not in truth."""
        return self._lost(lambda gradient: bool(np.isinf(gradient).any()))

    def _lost(self, is_lost: Callable[[Any], bool]) -> tuple[int, ...]:
        gradients = self.network.gradients
        finite = np.flatnonzero(np.isfinite(self.flow.gradient_log2)).tolist()
        return tuple(i for i in finite if is_lost(gradients[f"layers.{i}.weight"]))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (series: Abramowitz & Stegun 26.7.5)."""
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    return 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2 + 2.55585 / freedom**3
