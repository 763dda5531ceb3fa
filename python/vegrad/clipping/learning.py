"""Rules that choose their limit from the norms of the steps before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import hypot, inf, isfinite, isnan, sqrt
from sys import float_info
from typing import ClassVar, cast, get_args

import numpy as np

from vegrad import _core
from vegrad._core import Clipped
from vegrad.arrays import checks
from vegrad.arrays.checks import Buffers, Number, Policy, SpikeMode, SpikeOption
from vegrad.clipping.percentiles import Percentiles
from vegrad.clipping.rules import Loss, Prepared, Rule, argument


class Learned(Rule):
    """A rule whose limit for the joint norm follows from the norms seen so far."""

    def prepare(  # noqa: D102
        self, grads: Buffers, loss: Loss | None = None
    ) -> Prepared:
        learn: Callable[[], None] | None = None

        def choose(norm: float) -> float:
            nonlocal learn
            limit, taken_in = self._limit_for(norm, loss)
            if isfinite(norm):
                learn = taken_in
            return limit

        def after(clipped: Clipped) -> None:
            if learn is not None:
                learn()

        return grads, self._request("global_norm", choose), after

    def _limit_for(self, norm: float, loss: Loss | None) -> tuple[float, Callable[[], None]]:
        """Return the limit for this norm, and a function to call once it has been applied.

        A limit of -inf leaves out the step. A norm is inf where it is out of the range of float64,
        and inf or NaN where an element is, with nonfinite="propagate"; then nothing is learnt.
        """
        raise NotImplementedError


def _percentage(argument: str, value: object) -> float:
    number = checks.as_number(argument, value)
    if not 0 <= number <= 100:
        raise ValueError(f"{argument} must be from 0 to 100, not {value}")
    return number


class AutoClip(Learned):
    """Clip to a percentile of all joint norms so far (Seetharaman 2020, arXiv:2007.14469).

    The norm of this step is among them. The first 8192 norms are kept, as in the source; once there
    are more, each counts in one of the bins of which there are 1024 to a doubling, and the limit is
    within 2^-11 (0.05 %) of the exact percentile. So neither the time of a step nor the state
    (`norms`, and `counts` of the bins) grows with the number of steps.
    """

    percentile = argument(_percentage)
    _learnt: ClassVar = {"norms": checks.as_finites, "counts": checks.as_counts}

    def __init__(self, percentile: Number = 10, *, nonfinite: Policy = "raise") -> None:
        super().__init__(percentile=percentile, nonfinite=nonfinite)
        self._seen = Percentiles()

    @property
    def norms(self) -> list[float]:
        """The norms so far in order of size, or the middles of the bins that they are in."""
        return self._seen.values

    @property
    def counts(self) -> list[int]:
        """The number of norms in each bin; empty while they are all kept."""
        return self._seen.counts

    def _limit_for(self, norm: float, loss: Loss | None) -> tuple[float, Callable[[], None]]:
        if isnan(norm):
            return inf, lambda: None
        largest = float_info.max  # stands for a norm that is beyond it
        limit = self._seen.with_one_more(self.percentile, min(norm, largest))
        if limit > largest * (1 - 2**-10):  # as far as bins tell, it is this one
            limit = inf
        return limit, lambda: self._seen.add(norm)

    def _restore(self, state: Mapping[str, object]) -> None:
        norms, counts = (cast(Iterable[object], state[name]) for name in self._learnt)
        self._seen = Percentiles(
            checks.as_finites("norms", norms), checks.as_counts("counts", counts)
        )


MODES: tuple[SpikeMode, ...] = get_args(SpikeMode)
OPTIONS: tuple[SpikeOption, ...] = get_args(SpikeOption)


def _mode(argument: str, value: object) -> SpikeMode:
    return checks.as_one_of(argument, value, MODES)


def _option(argument: str, value: object) -> SpikeOption:
    return checks.as_one_of(argument, value, OPTIONS)


class ZClip(Learned):
    """Bring joint norms far above their moving mean back to it (2025, arXiv:2504.02507).

    For `warmup` steps the mean μ and the standard deviation σ of the norms before clipping are
    taken. After that a norm N above a threshold is brought down to a target T. In the mode
    "zscore" it is above if z = (N - μ)/(σ + 1e-6) exceeds z_threshold, and T is
    clip_factor · (μ + z_threshold² σ / z), or μ with the clip_option "mean". In the mode
    "percentile" threshold and target are both μ + z_threshold σ.

    μ and σ² are moving averages, which keep the share alpha of their value and take in T, or N
    where it was not above: first μ, then σ² with the square of the distance from the new μ. With
    skip_update_on_spike they take in nothing where it was above.

    At every step, warm-up or not, no norm is left above max_grad_norm; None is no such cap, and the
    averages know nothing of it. All this is as in the authors' code
    (github.com/bluorion-com/ZClip), where a factor is T/(N + 1e-6), and T/N here.
    """

    alpha = argument(checks.as_fraction)
    z_threshold = argument(checks.as_limit)
    warmup = argument(partial(checks.as_count, least=1))
    max_grad_norm = argument(checks.as_limit_or_none)
    mode, clip_option = argument(_mode), argument(_option)
    clip_factor = argument(checks.as_finite)
    skip_update_on_spike = argument(checks.as_flag)
    _learnt: ClassVar = {
        "seen": checks.as_finites,
        "mean": checks.as_limit_or_none,
        "deviation": checks.as_limit_or_none,
    }

    def __init__(
        self,
        alpha: Number = 0.97,
        z_threshold: Number = 2.5,
        warmup: int = 25,
        max_grad_norm: Number | None = 1.0,
        *,
        mode: SpikeMode = "zscore",
        clip_option: SpikeOption = "adaptive_scaling",
        clip_factor: Number = 1.0,
        skip_update_on_spike: bool = False,
        nonfinite: Policy = "raise",
    ) -> None:
        super().__init__(
            alpha=alpha,
            z_threshold=z_threshold,
            warmup=warmup,
            max_grad_norm=max_grad_norm,
            mode=mode,
            clip_option=clip_option,
            clip_factor=clip_factor,
            skip_update_on_spike=skip_update_on_spike,
            nonfinite=nonfinite,
        )
        self.seen: list[float] = []
        self.mean: float | None = None
        self.deviation: float | None = None

    def _limit_for(self, norm: float, loss: Loss | None) -> tuple[float, Callable[[], None]]:
        mean, deviation = self.mean, self.deviation
        cap = inf if self.max_grad_norm is None else self.max_grad_norm
        if mean is None or deviation is None:
            return cap, lambda: self._warm_up(norm)
        target = self._target(norm, mean, deviation)
        if target is None:
            return cap, lambda: self._follow(mean, deviation, norm)
        taken = None if self.skip_update_on_spike else target
        return min(target, cap), lambda: self._follow(mean, deviation, taken)

    def _target(self, norm: float, mean: float, deviation: float) -> float | None:
        """Return what a norm above the threshold is brought down to, None for one that is not."""
        if self.mode == "percentile":
            threshold = mean + self.z_threshold * deviation
            return threshold if norm > threshold else None
        z = (norm - mean) / (deviation + 1e-6)
        if not z > self.z_threshold:
            return None
        if self.clip_option == "mean":
            return mean
        return self.clip_factor * (mean + self.z_threshold * deviation * (self.z_threshold / z))

    def _warm_up(self, norm: float) -> None:
        self.seen.append(norm)
        if len(self.seen) >= self.warmup:
            scale = max(self.seen) or 1.0  # so that no square is out of range
            seen = np.array(self.seen) / scale
            self.mean, self.deviation = float(scale * seen.mean()), float(scale * seen.std())
            self.seen = []

    def _follow(self, mean: float, deviation: float, taken: float | None) -> None:
        if taken is None:
            return
        self.mean = self.alpha * mean + (1 - self.alpha) * taken
        self.deviation = hypot(
            sqrt(self.alpha) * deviation, sqrt(1 - self.alpha) * (taken - self.mean)
        )

    def _restore(self, state: Mapping[str, object]) -> None:
        super()._restore(state)
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("mean and deviation must both be given, or neither")


class AdaGC(Rule):
    """Clip each buffer relative to a moving average γ of its own norm (2025, arXiv:2502.11034).

    For `start` steps the joint norm is clipped to max_norm, and γ of each buffer is the smallest
    norm that it had after clipping. After that a norm above ratio · γ is brought down to ratio · γ,
    and γ takes in the clipped norm with weight 1 - beta. A buffer that is not there in a step keeps
    its γ, and one that comes later begins with γ as its own norm, as in the authors' code
    (github.com/lishuai-97/AdaGC). Buffers are told apart by their names or positions.
    """

    ratio = argument(checks.as_limit)
    beta = argument(checks.as_fraction)
    start = argument(checks.as_count)
    max_norm = argument(checks.as_limit)
    _learnt: ClassVar = {"steps": checks.as_count, "averages": checks.as_limits_by_name}

    def __init__(
        self,
        ratio: Number = 1.04,
        beta: Number = 0.99,
        start: int = 100,
        max_norm: Number = 1.0,
        *,
        nonfinite: Policy = "raise",
    ) -> None:
        super().__init__(
            ratio=ratio, beta=beta, start=start, max_norm=max_norm, nonfinite=nonfinite
        )
        self.steps = 0
        self.averages: dict[str, float] = {}

    def prepare(  # noqa: D102
        self, grads: Buffers, loss: Loss | None = None
    ) -> Prepared:
        names, grads = _named(grads)
        gamma = np.array([self.averages.get(name, inf) for name in names])
        starting = self.steps < self.start
        new = np.array([name not in self.averages for name in names], bool)
        if not starting and self.ratio < 1 and new.any():  # else they are below ratio · γ
            gamma[new] = _core.norms(grads, 2.0)[new]
        known = np.isfinite(gamma)
        limits = np.where(known, self.ratio * np.where(known, gamma, 0), inf)

        def learn(clipped: Clipped) -> None:
            if clipped.skipped or not np.isfinite(clipped.norms).all():
                return
            if starting:
                after = np.minimum(gamma, clipped.norms * clipped.coefficient)
            else:
                before = np.where(new, clipped.norms, gamma)
                after = self.beta * before + (1 - self.beta) * np.minimum(clipped.norms, limits)
            self.averages |= zip(names, after.tolist(), strict=True)
            self.steps += 1

        if starting:
            return grads, self._request("global_norm", self.max_norm), learn
        return grads, self._request("limits", limits), learn


def _named(grads: Buffers) -> tuple[list[str], Buffers]:
    """Return the names of the buffers that are not None, and buffers to read again."""
    if isinstance(grads, Iterator):
        # One that yields nothing is the core's to refuse.
        grads = checks.listed("grads", grads) or grads
    return _core.names(grads), grads
