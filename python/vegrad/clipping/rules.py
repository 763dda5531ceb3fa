"""Rules that clip with a fixed limit, and what all rules have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from math import inf
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

from vegrad import _core
from vegrad._core import Clipped
from vegrad.arrays import checks
from vegrad.arrays.checks import Buffers, Number, Policy
from vegrad.arrays.shown import visible

T = TypeVar("T")

# What _core.clip is asked for: the name of the rule, the limit (a number for all buffers, an array
# with one for each, or a function of the joint norm), the order of the norm, the policy, eps.
Request: TypeAlias = tuple[str, Any, float, str, float]
# Checks a value of an argument of this name, and returns it as the rule keeps it.
Check: TypeAlias = Callable[[str, Any], object]
# What a rule does with the result of a clip.
Learn: TypeAlias = Callable[[Clipped], None]
# The gradients, what the core is asked for, and what is done with its answer, if anything.
Prepared: TypeAlias = tuple[Any, Request, Learn | None]
# Gives the loss of a step, for a rule that judges by it; called only after the backward pass.
Loss: TypeAlias = Callable[[], float]


class Argument:
    """Attribute that checks what it is set to; reading it costs nothing, as there is no getter."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.__doc__ = None

    def __set_name__(self, owner: type[object], name: str) -> None:
        self.name = name

    def __set__(self, rule: Rule, value: object) -> None:
        vars(rule)[self.name] = self.check(self.name, value)


def argument(check: Callable[[str, Any], T]) -> T:
    """Return an `Argument`, which type checkers may take for what its check returns."""
    return cast(T, Argument(check))


def _order(_: str, value: object) -> float:
    return checks.as_order(value)


def _policy(_: str, value: object) -> Policy:
    return checks.as_policy(value)


def as_known(loss: Number | None) -> Loss | None:
    """Return what gives this loss, a number that may be inf or NaN, to a rule; None for None."""
    if loss is None:
        return None
    number = checks.as_number("loss", loss)
    return lambda: number


class Rule:
    """A way to clip, with its arguments and its state, as optimizers take it for `clip`.

    `state_dict()` has plain JSON types only; an argument that is infinite is "inf" in it. The state
    never takes in a norm that is not finite, nor the norm of a step that was skipped or refused
    (but `SkipSpike` those that it leaves out). Neither the state nor the time of a step grows with
    the number of steps. A rule with a state belongs to one optimizer, or to one loop: two that
    share it would mix their norms.

    A subclass names its rule in the core, has its `argument`s with the limit first,
    and names the parts of its state that it learns, each with the function that checks a value of
    it. Arguments may be changed between steps, and are checked again then.
    """

    _rule: ClassVar[str]
    _arguments: ClassVar[tuple[str, ...]] = ()
    _limit: ClassVar[str]
    _learnt: ClassVar[Mapping[str, Check]] = {}
    nonfinite = argument(_policy)
    ord: float = 2.0
    """Order of the norm."""
    eps: float = 0.0
    """The value that stands for the norm of a weight if that is smaller."""

    def __init_subclass__(cls) -> None:
        own = [name for name, value in vars(cls).items() if isinstance(value, Argument)]
        cls._arguments = (*cls._arguments, *own)
        if own:
            cls._limit = own[0]

    def __init__(self, **arguments: object) -> None:
        for name, value in arguments.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an argument or a part of the state; AttributeError for what a rule does not have."""
        known = [*self._arguments, *self._learnt, "nonfinite"]
        if name not in known and not name.startswith("_"):
            hint = checks.did_you_mean(name, known)
            raise AttributeError(f"{type(self).__name__} has no argument {visible(name)}{hint}")
        super().__setattr__(name, value)

    def apply_(
        self, grads: Buffers, params: Buffers = None, *, loss: Number | None = None
    ) -> Clipped:
        """Clip the gradients in place.

        Only `Adaptive` uses the parameters, and only `SkipSpike` the loss of this step: where it
        leaves out the step, nothing changes and the result's `skipped` is True.
        """
        known = as_known(loss)
        grads, (rule, limit, order, nonfinite, eps), learn = self.prepare(
            checks.as_gradients(grads), known
        )
        clipped = _core.clip(rule, grads, limit, order, nonfinite, params, eps)
        if learn is not None:
            learn(clipped)
        return clipped

    def prepare(self, grads: Buffers, loss: Loss | None = None) -> Prepared:
        """Return what an optimizer needs: the gradients, the request, and what to do afterwards.

        If `grads` was an iterator, the gradients that are returned are a list of what it gave.
        """
        return grads, self._request(self._rule, getattr(self, self._limit)), None

    def _request(self, rule: str, limit: object) -> Request:
        return rule, limit, self.ord, self.nonfinite, self.eps

    def _values(self, *names: str) -> dict[str, Any]:
        return {name: deepcopy(getattr(self, name)) for name in (*self._arguments, *names)}

    def __repr__(self) -> str:
        values = self._values("nonfinite")
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in values.items())})"

    def state_dict(self) -> dict[str, Any]:
        """Return the name of the rule, its arguments and what it has learnt from past norms."""
        values = self._values("nonfinite", *self._learnt)
        values = {name: "inf" if value == inf else value for name, value in values.items()}
        return {"rule": type(self).__name__} | values

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; ValueError, and no change, if it is broken or of another rule."""
        checks.check_state(state, "rule", self.state_dict())
        try:
            given: dict[str, Any] = {n: state[n] for n in (*self._arguments, "nonfinite")}
            given = {name: inf if value == "inf" else value for name, value in given.items()}
            fresh = type(self)(**given)
            fresh._restore(state)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"state must be as state_dict() gave it: {error}") from error
        vars(self).update(vars(fresh))

    def _restore(self, state: Mapping[str, object]) -> None:
        for name, checked in self._learnt.items():
            setattr(self, name, checked(name, state[name]))


class Value(Rule):
    """Clip every element, as `clip_by_value_` does."""

    _rule: ClassVar = "value"
    limit = argument(checks.as_limit)

    def __init__(self, limit: Number, *, nonfinite: Policy = "raise") -> None:
        super().__init__(limit=limit, nonfinite=nonfinite)


def _max_norm(name: str, value: object) -> float:
    if value is None:
        raise TypeError(
            f"{name} must be a real number, not None: an optimizer without a clip measures too, as "
            "do vegrad.measure(grads) and clip_by_global_norm_(grads, None)"
        )
    return checks.as_limit(name, value)


class _ByNorm(Rule):
    max_norm = argument(_max_norm)
    ord = argument(_order)

    def __init__(self, max_norm: Number, ord: Number = 2, *, nonfinite: Policy = "raise") -> None:
        super().__init__(max_norm=max_norm, ord=ord, nonfinite=nonfinite)


class Norm(_ByNorm):
    """Clip each buffer by its own norm, as `clip_by_norm_` does."""

    _rule: ClassVar = "norm"


class GlobalNorm(_ByNorm):
    """Clip all buffers by their joint norm, as `clip_by_global_norm_` does."""

    _rule: ClassVar = "global_norm"


class BlockRMS(Rule):
    """Clip each buffer by its root mean square, as `clip_by_block_rms_` does."""

    _rule: ClassVar = "block_rms"
    max_rms = argument(checks.as_limit)

    def __init__(self, max_rms: Number, *, nonfinite: Policy = "raise") -> None:
        super().__init__(max_rms=max_rms, nonfinite=nonfinite)


class Adaptive(Rule):
    """Clip the gradient of each unit in proportion to its weights, as `adaptive_clip_` does."""

    _rule: ClassVar = "adaptive"
    clipping = argument(checks.as_limit)
    eps = argument(checks.as_limit)

    def __init__(
        self, clipping: Number = 0.01, eps: Number = 1e-3, *, nonfinite: Policy = "raise"
    ) -> None:
        super().__init__(clipping=clipping, eps=eps, nonfinite=nonfinite)

    def apply_(  # noqa: D102
        self, grads: Buffers, params: Buffers = None, *, loss: Number | None = None
    ) -> Clipped:
        if params is None:
            raise TypeError("params must be the buffers that grads belong to, not None")
        return super().apply_(grads, params, loss=loss)
