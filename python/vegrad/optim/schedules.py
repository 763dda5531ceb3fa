"""Learning rates that follow the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from vegrad.arrays import checks
from vegrad.arrays.checks import Number


@dataclass(frozen=True)
class _Schedule:
    """A rate that rises linearly, and then falls by a cosine unless it stays."""

    lr: float
    final: float
    warmup: int
    steps: int | None

    def __repr__(self) -> str:
        if self.steps is None:
            return f"warmup({self.lr!r}, {self.warmup})"
        more = {"final": self.final, "warmup": self.warmup}
        named = "".join(f", {name}={value!r}" for name, value in more.items() if value)
        return f"cosine({self.lr!r}, {self.steps}{named})"

    def __call__(self, step: int) -> float:
        checks.as_count("step", step)
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.steps is None:
            return self.lr
        if step >= self.steps:
            return self.final
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.final + (self.lr - self.final) * (1 + cos(pi * done)) / 2


def warmup(lr: Number, steps: int) -> Callable[[int], float]:
    """Return a rate that rises linearly to `lr` over the first `steps` steps and then stays.

    Steps are integers, counted from 0: for another the rate raises TypeError or ValueError.
    """
    rate = checks.as_finite("lr", lr)
    return _Schedule(rate, rate, checks.as_count("steps", steps), None)


def cosine(
    lr: Number, steps: int, *, final: Number = 0.0, warmup: int = 0
) -> Callable[[int], float]:
    """Return a rate that rises for `warmup` steps, then falls by a cosine to `final` at `steps`.

    With 0 steps it is `final`. Steps are counted as for `warmup`. Source: Loshchilov & Hutter 2016,
    arXiv:1608.03983, without restarts.
    """
    top, last, rise = (
        checks.as_finite("lr", lr),
        checks.as_count("steps", steps),
        checks.as_count("warmup", warmup),
    )
    if rise > last:
        raise ValueError(f"warmup must be at most steps, {steps}, not {warmup}")
    return _Schedule(top, checks.as_finite("final", final), rise, last)
