"""Rules that choose their limit from the norms of the steps before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import inf, isfinite, sqrt
from typing import Any, ClassVar

import numpy as np

from vegrad import _core
from vegrad._core import Clipped
from vegrad.arrays import checks
from vegrad.arrays.checks import Buffers
from vegrad.clipping.rules import Learn, Request, Rule


class _Learned(Rule):
    """A rule whose limit for the joint norm follows from the norms seen so far."""

    max_grad_norm = inf

    def prepare(self, grads: Buffers) -> tuple[Any, Request, Learn | None]:
        learn: Callable[[], None] | None = None

        def choose(norm: float) -> float:
            nonlocal learn
            if not isfinite(norm):  # which happens only with nonfinite="propagate"
                return self.max_grad_norm
            limit, learn = self._limit_for(norm)
            return limit

        def after(clipped: Clipped) -> None:
            if learn is not None:
                learn()

        return grads, self._request("global_norm", choose), after

    def _limit_for(self, norm: float) -> tuple[float, Callable[[], None]]:
        """Return the limit for this norm, and a function to call once it has been applied."""
        raise NotImplementedError


def _percentage(argument: str, value: object) -> float:
    number = checks.as_number(argument, value)
    if not 0 <= number <= 100:
        raise ValueError(f"{argument} must be from 0 to 100, not {value}")
    return number


class AutoClip(_Learned):
    """Clip to a percentile of all joint norms so far (Seetharaman 2020, arXiv:2007.14469).

    `history` keeps every norm, as in the source, and each step reads all of them: time and memory
    grow with the number of steps. To forget, shorten it between steps: `del rule.history[:-1000]`.
    """

    _arguments: ClassVar = {"percentile": _percentage}
    _learnt: ClassVar = {"history": checks.as_limits}

    def __init__(self, percentile: float = 10, *, nonfinite: str = "raise") -> None:
        super().__init__(nonfinite)
        self.percentile = percentile
        self.history: list[float] = []

    def _limit_for(self, norm: float) -> tuple[float, Callable[[], None]]:
        history = [*self.history, norm]
        return float(np.percentile(history, self.percentile)), lambda: self.history.append(norm)


class ZClip(_Learned):
    """Bring joint norms far above their moving mean back to it (2025, arXiv:2504.02507).

    For `warmup` steps the joint norm N is clipped to max_grad_norm; the mean μ and the variance σ²
    of the norms before clipping are kept. After that z = (N - μ)/(σ + 1e-6). If z exceeds
    z_threshold, the limit is μ + z_threshold² σ / z, but at most max_grad_norm; otherwise nothing
    is clipped, even where N exceeds max_grad_norm. μ and σ² are then moving averages, which keep
    the share alpha of their value and take in N, or the limit if N exceeded the threshold: first μ,
    then σ² with the square of the distance from the new μ.
    """

    _arguments: ClassVar = {
        "alpha": checks.as_fraction,
        "z_threshold": checks.as_limit,
        "warmup": partial(checks.as_count, least=1),
        "max_grad_norm": checks.as_limit,
    }
    _learnt: ClassVar = {
        "seen": checks.as_limits,
        "mean": checks.as_limit_or_none,
        "variance": checks.as_limit_or_none,
    }

    def __init__(
        self,
        alpha: float = 0.97,
        z_threshold: float = 2.5,
        warmup: int = 25,
        max_grad_norm: float = 1.0,
        *,
        nonfinite: str = "raise",
    ) -> None:
        super().__init__(nonfinite)
        self.alpha = alpha
        self.z_threshold = z_threshold
        self.warmup = warmup
        self.max_grad_norm = max_grad_norm
        self.seen: list[float] = []
        self.mean: float | None = None
        self.variance: float | None = None

    def _limit_for(self, norm: float) -> tuple[float, Callable[[], None]]:
        mean, variance = self.mean, self.variance
        if mean is None or variance is None:
            return self.max_grad_norm, lambda: self._warm_up(norm)
        deviation = sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        limit, taken = inf, norm
        if z > self.z_threshold:
            limit = mean + self.z_threshold * deviation / (z / self.z_threshold)
            limit = taken = min(limit, self.max_grad_norm)
        return limit, lambda: self._follow(mean, variance, taken)

    def _warm_up(self, norm: float) -> None:
        self.seen.append(norm)
        if len(self.seen) >= self.warmup:
            self.mean, self.variance = float(np.mean(self.seen)), float(np.var(self.seen))
            self.seen = []

    def _follow(self, mean: float, variance: float, taken: float) -> None:
        self.mean = self.alpha * mean + (1 - self.alpha) * taken
        self.variance = self.alpha * variance + (1 - self.alpha) * (taken - self.mean) ** 2

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        if (self.mean is None) != (self.variance is None):
            raise ValueError("mean and variance must both be given, or neither")


class AdaGC(Rule):
    """Clip each buffer relative to a moving average γ of its own norm (2025, arXiv:2502.11034).

    For `start` steps the joint norm is clipped to max_norm, and γ of each buffer is the smallest
    norm that it had after clipping. After that a norm above ratio · γ is brought down to ratio · γ,
    and γ takes in the clipped norm with weight 1 - beta.
    """

    _arguments: ClassVar = {
        "ratio": checks.as_limit,
        "beta": checks.as_fraction,
        "start": checks.as_count,
        "max_norm": checks.as_limit,
    }
    _learnt: ClassVar = {"steps": checks.as_count, "averages": checks.as_limits_by_name}

    def __init__(
        self,
        ratio: float = 1.04,
        beta: float = 0.99,
        start: int = 100,
        max_norm: float = 1.0,
        *,
        nonfinite: str = "raise",
    ) -> None:
        super().__init__(nonfinite)
        self.ratio = ratio
        self.beta = beta
        self.start = start
        self.max_norm = max_norm
        self.steps = 0
        self.averages: dict[str, float] = {}

    def prepare(self, grads: Buffers) -> tuple[Any, Request, Learn | None]:  # noqa: D102
        names, grads = _named(grads)
        if self.averages and set(names) != self.averages.keys():
            odd = sorted(self.averages.keys() ^ set(names))
            raise ValueError(
                f"grads must have the same buffers as in earlier steps, but {odd} differ"
            )
        gamma = np.array([self.averages.get(name, inf) for name in names])
        starting = self.steps < self.start or not self.averages
        limits = self.ratio * gamma

        def learn(clipped: Clipped) -> None:
            if clipped.skipped or not np.isfinite(clipped.norms).all():
                return
            if starting:
                after = np.minimum(gamma, clipped.norms * clipped.coefficient)
            else:
                after = self.beta * gamma + (1 - self.beta) * np.minimum(clipped.norms, limits)
            self.averages = dict(zip(names, after.tolist(), strict=True))
            self.steps += 1

        if starting:
            return grads, self._request("global_norm", self.max_norm), learn
        return grads, self._request("limits", limits), learn


def _named(grads: Buffers) -> tuple[list[str], Buffers]:
    """Return the names of the buffers that are not None, and buffers to read again."""
    if isinstance(grads, Iterator):
        grads = list(grads) or grads  # one that yields nothing is the core's to refuse
    return _core.names(grads), grads
