"""The trend of a chain of gains, the stretch that drifts most, and who departs from the rest.

Everything here is scale-free: gains are ratios between neighbouring layers, in log2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import hypot, inf, isfinite, sqrt

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.flow import Flow
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, finite_mean

CHOSEN = 0.5  # decades beyond the limit that a stretch must go, as the steepest was chosen
SHIFT = 2.0 * DECADE  # how far a single gain, or a stretch of them, must depart to be noticed
CHAIN_SHIFT = 3.0 * DECADE  # the same between gradients of which only the sizes are known


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
        """True if the gain differs from 1×; under 5 layers an interval cannot tell."""
        return self.count < 5 or not self.low <= 0.0 <= self.high

    def blame(self, sign: int) -> str:
        """Return the factor that pulls further, down for sign -1 and up for +1."""
        return "weights" if sign * (self.weights - self.activation) > 0 else "activation"


@dataclass
class Gains:
    """The gains of a chain, entry l between layer l and layer l + 1 above it."""

    total: FloatArray
    weights: FloatArray
    activation: FloatArray
    local: FloatArray
    """For comparing neighbours: nan where a norm is 0, normalization undone."""
    shift: float = SHIFT
    batches: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    """Gains (R, L - 1) of resampled batches; R may be 0."""

    @classmethod
    def of_flow(cls, flow: Flow, batches: FloatArray, normalized: Array) -> Gains:
        """Take the gains of a chain of layers, of which those that are `normalized` are True."""
        local = _local(flow, normalized)
        factors = flow.weight_gain_log2, flow.activation_gain_log2
        return cls(flow.gain_log2, *factors, local, batches=batches)

    @classmethod
    def of_sizes(cls, sizes: FloatArray, shift: float) -> Gains:
        """Take the gains between gradients of which only the sizes (log2) are known."""
        gains = sizes[:-1] - sizes[1:]  # from each layer to the one below
        local = np.where(np.isfinite(gains), gains, np.nan)
        return cls(gains, gains, np.zeros(gains.size), local, shift)

    @cached_property
    def broken(self) -> dict[int, float]:
        """The gains far from the rest, and what (log2) is usual among the others."""
        known = np.isfinite(self.local)
        gains = self.local[known]
        usual, spread = np.zeros((2, self.local.size))  # 1× where there are too few to compare with
        if gains.size > 2:
            usual[~known] = np.median(gains)
        if gains.size > 3:
            usual[known] = others = _median_of_others(gains)
            for middle in np.unique(others):
                apart = 1.4826 * _median_of_others(np.abs(gains - middle))
                spread[known] = np.where(others == middle, apart, spread[known])
        far = np.abs(self.local - usual) >= np.maximum(self.shift, 6.0 * spread)
        places = np.flatnonzero(far | (self.total == -inf)).tolist()
        return dict(zip(places, usual[places].tolist(), strict=True))

    @cached_property
    def trend(self) -> Trend | None:
        """The trend of the whole chain, its broken gains left out."""
        return self.fit(place for place in range(self.local.size) if place not in self.broken)

    def fit(self, places: Iterable[int]) -> Trend | None:
        """Return the trend through the gains at `places` that are finite; None if none are."""
        chosen = [place for place in places if isfinite(self.total[place])]
        if not chosen:
            return None
        gains, count = self.total[chosen], len(chosen)
        mean = float(gains.mean())
        half = inf if count == 1 else _student(count - 1) * float(gains.std(ddof=1)) / sqrt(count)
        half = hypot(half, self._by_chance_of_batch(chosen))
        weights, activation = (
            finite_mean(self.weights[chosen]),
            finite_mean(self.activation[chosen]),
        )
        return Trend(mean, mean - half, mean + half, count, weights, activation)

    def _by_chance_of_batch(self, places: list[int]) -> float:
        """Return half the interval of a mean gain (log2) that resampled batches give."""
        means = self.batches[:, places].mean(axis=1) if len(self.batches) > 1 else np.zeros(0)
        means = means[np.isfinite(means)]
        return _student(means.size - 1) * float(means.std(ddof=1)) if means.size > 1 else 0.0

    def steepest(self, sign: int) -> range:
        """Return the stretch of gains that shrinks (sign -1) or grows most (Kadane's algorithm).

        It is empty if it shifts the gradient by less than `shift`, or by what chance explains.
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

    def drift(self, sign: int, limit: float) -> tuple[Trend, range | None] | None:
        """Return the trend of what shrinks (sign -1) or grows by `limit` decades.

        That is the whole chain or a stretch of it, which is then given too: it must go half a
        decade further, as it was chosen for being the steepest.
        """
        trend, stretch = self.trend, self.steepest(sign)
        whole = trend is not None and trend.significant and sign * trend.decades >= limit
        if stretch and (not whole or len(stretch) < 0.5 * len(self.total)):
            part = self.fit(stretch)
            if part is not None and sign * part.decades >= limit + CHOSEN:
                return part, stretch
        return (trend, None) if trend is not None and whole else None

    @cached_property
    def noise(self) -> float:
        """The scatter of one gain (log2), judged by neighbours so that a drift is not scatter."""
        steps = np.abs(np.diff(self.local[np.isfinite(self.local)]))
        return 1.4826 * float(np.median(steps)) / sqrt(2.0) if steps.size > 1 else 0.0


@dataclass(frozen=True)
class Along:
    """The sizes (log2) along a chain of gradients, of those that are finite and not 0."""

    logs: FloatArray
    places: tuple[int, ...]
    names: tuple[str, ...]
    of: str
    """weights or biases."""

    @classmethod
    def through(cls, sizes: FloatArray, names: Sequence[str], of: str) -> Along | None:
        """Take the sizes of the gradients of these names, if two of them are known."""
        known = np.flatnonzero(np.isfinite(sizes)).tolist()
        if len(known) < 2:
            return None
        return cls(sizes[known], tuple(known), tuple(names[place] for place in known), of)

    @cached_property
    def gains(self) -> Gains:
        """The gains between neighbours."""
        return Gains.of_sizes(self.logs, CHAIN_SHIFT)

    def site(self, number: int) -> Site:
        """Return the site of one of them."""
        return Site(self.of, self.names[number], self.places[number])


def _local(flow: Flow, normalized: Array) -> FloatArray:
    """Return the gains for comparing neighbours.

    Behind a normalization δ is inversely proportional to the size of z, which skip connections
    make grow from layer to layer; neither W nor its gradient minds.
    """
    gains = np.where(np.isfinite(flow.gain_log2), flow.gain_log2, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.where(normalized, np.log2(flow.preactivation_std), 0.0)
        scale = np.append(sizes[:-1], 0.0)
        undone = gains + scale[:-1] - scale[1:]
    return np.where(np.isfinite(undone), undone, gains)


def _median_of_others(values: FloatArray) -> FloatArray:
    """Return for each of some values (N,) the median of all the others, (N,)."""
    order = np.argsort(values)
    ranks = np.empty(len(values), int)
    ranks[order] = np.arange(len(values))
    ordered, count = values[order], len(values) - 1
    low, high = (
        np.where(middle < ranks, ordered[middle], ordered[middle + 1])
        for middle in ((count - 1) // 2, count // 2)
    )
    median: FloatArray = (low + high) / 2.0
    return median


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (series: Abramowitz & Stegun 26.7.5)."""
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    return 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2 + 2.55585 / freedom**3
