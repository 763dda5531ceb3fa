"""Clipping of gradients in place, and the rules that training loops apply.

`grads` is one buffer, a sequence or a mapping of them; a buffer is a NumPy array or a CPU tensor
that speaks DLPack, of float16, bfloat16, float32 or float64, of any shape and strides. `None`
entries are passed over. Every check comes before the first write.

Norms of float16, bfloat16 and float32 accumulate in float64, those of float64 in scaled sums, so
that a norm is right whenever every element is finite. Results have the same bits on any number of
threads and on every instruction set. A norm that is above its limit by no more than the rounding
of its elements accounts for is left alone, so that clipping twice changes nothing. Nothing is
written where nothing is clipped.

`nonfinite` says what happens if an element is inf or NaN: "raise" (NonFiniteGradientError, nothing
changes), "skip" (nothing changes), "zero" (such elements become 0) or "propagate" (the formula as
it stands).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf, isinf, isnan, sqrt
from typing import Any, ClassVar, Self

import numpy as np

from vegrad import _core
from vegrad._core import Clipped, NonFiniteGradientError
from vegrad.arrays.checks import as_count, as_fraction, as_limit, as_number, as_order, as_policy

__all__ = [
    "AdaGC",
    "Adaptive",
    "AutoClip",
    "BlockRMS",
    "Clipped",
    "GlobalNorm",
    "NonFiniteGradientError",
    "Norm",
    "Rule",
    "Value",
    "ZClip",
    "adaptive_clip_",
    "clip_by_block_rms_",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
]


def clip_by_value_(grads: Any, limit: float, *, nonfinite: str = "raise") -> Clipped:
    """G ← min(max(g, -limit), limit); the limit as the buffer's dtype holds it. Norms are L2."""
    return _core.clip("value", grads, as_limit("limit", limit), 2.0, as_policy(nonfinite))


def clip_by_norm_(
    grads: Any, max_norm: float, *, ord: float = 2, nonfinite: str = "raise"
) -> Clipped:
    """G ← g · min(1, max_norm / N), N the norm of each buffer by itself."""
    limit = as_limit("max_norm", max_norm)
    return _core.clip("norm", grads, limit, as_order(ord), as_policy(nonfinite))


def clip_by_global_norm_(
    grads: Any, max_norm: float | None, *, ord: float = 2, nonfinite: str = "raise"
) -> Clipped:
    """G ← g · min(1, max_norm / N), N the joint norm (Pascanu et al. 2013, arXiv:1211.5063).

    max_norm=None only measures.
    """
    limit = None if max_norm is None else as_limit("max_norm", max_norm)
    return _core.clip("global_norm", grads, limit, as_order(ord), as_policy(nonfinite))


def clip_by_block_rms_(grads: Any, max_rms: float, *, nonfinite: str = "raise") -> Clipped:
    """G ← g · min(1, max_rms / RMS(g)), each buffer by itself. Norms are L2."""
    return _core.clip("block_rms", grads, as_limit("max_rms", max_rms), 2.0, as_policy(nonfinite))


def adaptive_clip_(
    grads: Any, params: Any, clipping: float = 0.01, *, eps: float = 1e-3, nonfinite: str = "raise"
) -> Clipped:
    """Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171).

    For each unit, M = clipping · max(‖W‖, eps); where ‖G‖ > M, G ← G · M / max(‖G‖, 1e-6). A unit
    is what the first axis counts, a row of an (out, in) weight; a buffer with one axis or none is
    one unit. Norms are L2.

    Args:
        grads: as everywhere.
        params: buffers of the same names (or number) and shapes; of any of the dtypes.
        clipping: λ, the largest ratio of gradient to weight.
        eps: the least ‖W‖ that counts.
        nonfinite: of the gradients.
    """
    ratio, least = as_limit("clipping", clipping), as_limit("eps", eps)
    return _core.clip("adaptive", grads, ratio, 2.0, as_policy(nonfinite), params, least)


# The rule's name, its limit, the order of its norm, the policy, eps: arguments of _core.clip.
Request = tuple[str, Any, float, str, float]
Learn = Callable[[Clipped], None]


class Rule:
    """What an optimizer's `clip` may be: a way to clip, with its arguments and its state.

    `state_dict()` is of plain JSON types. A state never takes in a norm that is not finite, nor
    that of a step that was skipped or refused.
    """

    _arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, nonfinite: str) -> None:
        self.nonfinite = as_policy(nonfinite)

    def apply_(self, grads: Any, params: Any = None) -> Clipped:
        """Clips the gradients in place. Only `Adaptive` looks at the parameters."""
        grads, (rule, limit, order, nonfinite, eps), learn = self.prepare(grads)
        clipped = _core.clip(rule, grads, limit, order, nonfinite, params, eps)
        if learn is not None:
            learn(clipped)
        return clipped

    def prepare(self, grads: Any) -> tuple[Any, Request, Learn | None]:
        """For optimizers: grads to be read, what the core shall do, and what comes after it."""
        return grads, self._request(), None

    def _request(self) -> Request:
        raise NotImplementedError

    def __repr__(self) -> str:
        names = (*self._arguments, "nonfinite")
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

    def state_dict(self) -> dict[str, Any]:
        """The rule's name, its arguments and what it has seen."""
        names = (*self._arguments, "nonfinite")
        return {"rule": type(self).__name__} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. ValueError, and no change, if it is another rule's or broken."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, not {type(state).__name__}")
        if state.get("rule") != type(self).__name__:
            raise ValueError(f"state must be of {type(self).__name__}, not of {state.get('rule')}")
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ValueError(f"state must have {', '.join(sorted(missing))}, which it has not")
        arguments = {name: state[name] for name in (*self._arguments, "nonfinite")}
        try:
            fresh = self._restored(arguments, state)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"state must be as state_dict() gave it: {error}") from error
        vars(self).update(vars(fresh))

    @classmethod
    def _restored(cls, arguments: dict[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(**arguments)


class Value(Rule):
    """`clip_by_value_` with a fixed limit."""

    _arguments = ("limit",)

    def __init__(self, limit: float, *, nonfinite: str = "raise") -> None:
        super().__init__(nonfinite)
        self.limit = as_limit("limit", limit)

    def _request(self) -> Request:
        return "value", self.limit, 2.0, self.nonfinite, 0.0


class Norm(Rule):
    """`clip_by_norm_`: each buffer by itself."""

    _arguments = ("max_norm", "ord")

    def __init__(self, max_norm: float, ord: float = 2, *, nonfinite: str = "raise") -> None:
        super().__init__(nonfinite)
        self.max_norm, self.ord = as_limit("max_norm", max_norm), as_order(ord)

    def _request(self) -> Request:
        return "norm", self.max_norm, self.ord, self.nonfinite, 0.0


class GlobalNorm(Rule):
    """`clip_by_global_norm_`: all buffers together."""

    _arguments = ("max_norm", "ord")

    def __init__(self, max_norm: float, ord: float = 2, *, nonfinite: str = "raise") -> None:
        super().__init__(nonfinite)
        self.max_norm, self.ord = as_limit("max_norm", max_norm), as_order(ord)

    def _request(self) -> Request:
        return "global_norm", self.max_norm, self.ord, self.nonfinite, 0.0


class BlockRMS(Rule):
    """`clip_by_block_rms_`: the root mean square of each buffer."""

    _arguments = ("max_rms",)

    def __init__(self, max_rms: float, *, nonfinite: str = "raise") -> None:
        super().__init__(nonfinite)
        self.max_rms = as_limit("max_rms", max_rms)

    def _request(self) -> Request:
        return "block_rms", self.max_rms, 2.0, self.nonfinite, 0.0


class Adaptive(Rule):
    """`adaptive_clip_`: gradients of units beside their weights."""

    _arguments = ("clipping", "eps")

    def __init__(
        self, clipping: float = 0.01, eps: float = 1e-3, *, nonfinite: str = "raise"
    ) -> None:
        super().__init__(nonfinite)
        self.clipping, self.eps = as_limit("clipping", clipping), as_limit("eps", eps)

    def apply_(self, grads: Any, params: Any = None) -> Clipped:  # noqa: D102
        if params is None:
            raise TypeError("params must be the buffers that grads belong to, not None")
        return super().apply_(grads, params)

    def _request(self) -> Request:
        return "adaptive", self.clipping, 2.0, self.nonfinite, self.eps


class _Learned(Rule):
    """A rule whose limit of the joint norm follows from the norms seen so far."""

    def prepare(self, grads: Any) -> tuple[Any, Request, Learn | None]:
        learn: Callable[[], None] | None = None

        def choose(norm: float) -> float | None:
            nonlocal learn
            if isnan(norm) or isinf(norm):  # only with nonfinite="propagate"
                return self._fallback()
            limit, learn = self._limit_for(norm)
            return limit

        def after(clipped: Clipped) -> None:
            if learn is not None:
                learn()

        return grads, ("global_norm", choose, 2.0, self.nonfinite, 0.0), after

    def _limit_for(self, norm: float) -> tuple[float, Callable[[], None]]:
        """The limit for this norm, and what to do once it has been applied."""
        raise NotImplementedError

    def _fallback(self) -> float:
        return inf


class AutoClip(_Learned):
    """The limit is a percentile of all joint norms so far (Seetharaman 2020, arXiv:2007.14469)."""

    _arguments = ("percentile",)

    def __init__(self, percentile: float = 10, *, nonfinite: str = "raise") -> None:
        super().__init__(nonfinite)
        self.percentile = as_number("percentile", percentile)
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must be from 0 to 100, not {percentile}")
        self.history: list[float] = []

    def _limit_for(self, norm: float) -> tuple[float, Callable[[], None]]:
        history = [*self.history, norm]
        return float(np.percentile(history, self.percentile)), lambda: self.history.append(norm)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return super().state_dict() | {"history": list(self.history)}

    @classmethod
    def _restored(cls, arguments: dict[str, Any], state: Mapping[str, Any]) -> Self:
        rule = cls(**arguments)
        rule.history = [as_limit("history", norm) for norm in state["history"]]
        return rule


class ZClip(_Learned):
    """Norms far above their moving mean are brought back to it (2025, arXiv:2504.02507).

    For `warmup` steps the joint norm is clipped to max_grad_norm, and the mean μ and the variance
    σ² of the norms before clipping are taken. Then z = (N - μ)/(σ + 1e-6); above z_threshold the
    limit is μ + z_threshold² σ / z, at most max_grad_norm, and moving averages with weight alpha
    take in the limit instead of the norm.
    """

    _arguments = ("alpha", "z_threshold", "warmup", "max_grad_norm")

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
        self.alpha = as_fraction("alpha", alpha)
        self.z_threshold = as_limit("z_threshold", z_threshold)
        self.warmup = as_count("warmup", warmup)
        self.max_grad_norm = as_limit("max_grad_norm", max_grad_norm)
        self.seen: list[float] = []
        self.mean: float | None = None
        self.variance: float | None = None
        if self.warmup == 0:
            raise ValueError("warmup must be at least 1, not 0: the mean comes from it")

    def _limit_for(self, norm: float) -> tuple[float, Callable[[], None]]:
        if self.mean is None or self.variance is None:
            return self.max_grad_norm, lambda: self._warm_up(norm)
        deviation = sqrt(self.variance)
        z = (norm - self.mean) / (deviation + 1e-6)
        limit, taken = inf, norm
        if z > self.z_threshold:
            limit = self.mean + self.z_threshold * deviation / (z / self.z_threshold)
            limit = taken = min(limit, self.max_grad_norm)
        return limit, lambda: self._follow(taken)

    def _fallback(self) -> float:
        return self.max_grad_norm

    def _warm_up(self, norm: float) -> None:
        self.seen.append(norm)
        if len(self.seen) >= self.warmup:
            self.mean, self.variance = float(np.mean(self.seen)), float(np.var(self.seen))
            self.seen = []

    def _follow(self, taken: float) -> None:
        assert self.mean is not None
        assert self.variance is not None
        self.mean = self.alpha * self.mean + (1 - self.alpha) * taken
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (taken - self.mean) ** 2

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        seen = {"seen": list(self.seen), "mean": self.mean, "variance": self.variance}
        return super().state_dict() | seen

    @classmethod
    def _restored(cls, arguments: dict[str, Any], state: Mapping[str, Any]) -> Self:
        rule = cls(**arguments)
        rule.seen = [as_limit("seen", norm) for norm in state["seen"]]
        for name in ("mean", "variance"):
            setattr(rule, name, None if state[name] is None else as_limit(name, state[name]))
        if (rule.mean is None) != (rule.variance is None):
            raise ValueError("mean and variance must be there both or not at all")
        return rule


class AdaGC(Rule):
    """Each buffer's norm beside a moving average of its own (2025, arXiv:2502.11034).

    For `start` steps the joint norm is clipped to max_norm, and γ of each buffer is the smallest
    norm it then had. After that a norm above ratio · γ is brought down to it, and γ takes in the
    norm with weight 1 - beta.
    """

    _arguments = ("ratio", "beta", "start", "max_norm")

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
        self.ratio = as_limit("ratio", ratio)
        self.beta = as_fraction("beta", beta)
        self.start = as_count("start", start)
        self.max_norm = as_limit("max_norm", max_norm)
        self.steps = 0
        self.averages: dict[str, float] = {}

    def prepare(self, grads: Any) -> tuple[Any, Request, Learn | None]:  # noqa: D102
        names, grads = _named(grads)
        if self.averages and set(names) != self.averages.keys():
            odd = sorted(self.averages.keys() ^ set(names))
            raise ValueError(f"grads must have the buffers of the steps before, but {odd} differ")
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
            return grads, ("global_norm", self.max_norm, 2.0, self.nonfinite, 0.0), learn
        return grads, ("limits", limits, 2.0, self.nonfinite, 0.0), learn

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return super().state_dict() | {"steps": self.steps, "averages": dict(self.averages)}

    @classmethod
    def _restored(cls, arguments: dict[str, Any], state: Mapping[str, Any]) -> Self:
        rule = cls(**arguments)
        rule.steps = as_count("steps", state["steps"])
        rule.averages = {str(k): as_limit("averages", v) for k, v in state["averages"].items()}
        return rule


def _named(grads: Any) -> tuple[list[str], Any]:
    """The names, or positions, of the buffers that are not None; and grads, to be read again."""
    if isinstance(grads, Mapping):
        return [str(name) for name, grad in grads.items() if grad is not None], grads
    if hasattr(grads, "__dlpack__") or not hasattr(grads, "__iter__"):
        return ["0"], grads
    several, grads = grads, list(grads)
    if not grads and isinstance(several, Iterator):
        clip_by_global_norm_(several, None)  # complains
    return [str(place) for place, grad in enumerate(grads) if grad is not None], grads
