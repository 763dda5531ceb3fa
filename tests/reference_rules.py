"""The rules that learn from past norms, each written anew from its authors' formulas.

A rule maps the gradients of a step to a formula of reference_clipping. Its numbers are those of the
authors' code but for one: there a clipped gradient is multiplied by limit/(norm + 1e-6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.reference_buffers import Arrays
from tests.reference_clipping import Formula, each, global_norm, norm


class AutoClip:
    """The limit is a percentile of all norms so far, this one included.

    A norm beyond float64 counts as its largest number.

    Seetharaman et al. 2020, arXiv:2007.14469; github.com/pseeth/autoclip, autoclip.py.
    """

    def __init__(self, percentile: float = 10) -> None:
        self.percentile, self.history = percentile, list[float]()

    def __call__(self, grads: Arrays, dtypes: Sequence[str]) -> Formula:
        return global_norm(self.limit(float(norm(grads))), dtypes=dtypes)

    def limit(self, n: float) -> float:
        self.history.append(min(n, float(np.finfo(np.float64).max)))
        return float(np.percentile(self.history, self.percentile))


class ZClip:
    """Norms far above their moving mean are brought down, and all to at most max_grad_norm.

    Kumar et al. 2025, arXiv:2504.02507; github.com/bluorion-com/ZClip, zclip.py.
    """

    def __init__(
        self,
        alpha: float = 0.97,
        z_threshold: float = 2.5,
        warmup: int = 25,
        max_grad_norm: float | None = 1.0,
        mode: str = "zscore",
        clip_option: str = "adaptive_scaling",
        clip_factor: float = 1.0,
        skip_update_on_spike: bool = False,
    ) -> None:
        self.alpha, self.z, self.warmup, self.cap = alpha, z_threshold, warmup, max_grad_norm
        self.mode, self.option, self.factor = mode, clip_option, clip_factor
        self.skips_update = skip_update_on_spike
        self.first, self.mean, self.variance = list[float](), math.nan, math.nan

    def __call__(self, grads: Arrays, dtypes: Sequence[str]) -> Formula:
        return global_norm(self.limit(float(norm(grads))), dtypes=dtypes)

    def limit(self, n: float) -> float:
        cap = math.inf if self.cap is None else self.cap
        if len(self.first) < self.warmup:
            self.first.append(n)
            self.mean, self.variance = float(np.mean(self.first)), float(np.var(self.first))
            return cap
        target = self.target(n)
        if target is None:
            self.follow(n)
            return min(n, cap)
        if not self.skips_update:
            self.follow(target)
        return min(target, cap)

    def target(self, n: float) -> float | None:
        deviation = math.sqrt(self.variance)
        if self.mode == "percentile":
            limit = self.mean + self.z * deviation
            return limit if n > limit else None
        z = (n - self.mean) / (deviation + 1e-6)
        if z <= self.z:
            return None
        if self.option == "mean":
            return self.mean
        eta = z / self.z
        return (self.mean + self.z * deviation / eta) * self.factor

    def follow(self, x: float) -> None:
        self.mean = self.alpha * self.mean + (1 - self.alpha) * x
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (x - self.mean) ** 2


class AdaGC:
    """Each buffer is clipped relative to a running mean of its own norms after clipping.

    Wang et al. 2025, arXiv:2502.11034; github.com/lishuai-97/AdaGC, class AdaGC of the patch. Its
    buffers are numbered here; `places` says which of them the gradients are.
    """

    def __init__(
        self, ratio: float = 1.04, beta: float = 0.99, start: int = 100, max_norm: float = 1.0
    ) -> None:
        self.ratio, self.beta, self.start, self.max_norm = ratio, beta, start, max_norm
        self.step, self.gamma = 0, dict[int, float]()

    def __call__(
        self, grads: Arrays, dtypes: Sequence[str], places: Sequence[int] | None = None
    ) -> Formula:
        places = range(len(grads)) if places is None else places
        self.step += 1
        if self.step <= self.start:
            formula = global_norm(self.max_norm, dtypes=dtypes)
            for place, g in zip(places, formula(grads)[0], strict=True):
                size = float(norm([g]))
                self.gamma[place] = min(self.gamma.get(place, size), size)
            return formula
        limits = []
        for place, g in zip(places, grads, strict=True):
            size = float(norm([g]))
            gamma = self.gamma.setdefault(place, size)
            limits.append(self.ratio * gamma)
            self.gamma[place] = self.beta * gamma + (1 - self.beta) * min(size, limits[-1])
        return each(limits, 2, dtypes)


class SkipSpike:
    """Steps are left out whose norm or loss is far above the last ones.

    github.com/allenai/OLMo-core, src/olmo_core/optim/skip_step_optimizer.py.
    """

    def __init__(self, sigmas: float = 6, window: int = 128, after: int = 64) -> None:
        self.sigmas, self.window, self.after = sigmas, window, after
        self.losses, self.norms = list[float](), list[float]()

    def skips(self, n: float, loss: float | None = None) -> bool:
        found = False
        for series, value in ((self.norms, n), (self.losses, loss)):
            if value is None:
                continue
            series.append(value)
            if len(series) >= self.after:
                past = series[-self.window - 1 : -1]
                found |= not value - np.mean(past) <= self.sigmas * np.std(past, ddof=1)
        return bool(found)
