"""Numbers that a distribution of `torch.distributions` does not take, from the error it raised."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vegrad.flow.data import Undefined


def undefined(error: Exception) -> Undefined | None:
    """Return the numbers that a distribution refused; None if it was none, or they are not finite.

    The distribution is asked again: nothing is read out of the error's words.
    """
    trace, found = error.__traceback__, None
    while trace is not None:
        frame = trace.tb_frame
        own = frame.f_locals.get("self")
        if isinstance(own, Distribution):
            found = _refused(own, frame.f_code.co_name, frame.f_locals) or found
        trace = trace.tb_next
    if found is None:
        return None
    one, name, value, limit = found
    if not bool(value.isfinite().all()):
        return None
    low, high = float(value.min()), float(value.max())
    return Undefined(type(one).__name__, name, low, high, *_bounds(limit))


Refused = tuple[Distribution, str, Tensor, constraints.Constraint]


def _refused(one: Distribution, called: str, names: dict[str, Any]) -> Refused | None:
    """Return the first of what a distribution checks that it does not take."""
    asked = dict[str, Any]()
    if called == "_validate_sample":
        asked = {"": (names.get("value"), one.support)}
    elif called == "__init__":
        asked = {name: (vars(one).get(name), limit) for name, limit in one.arg_constraints.items()}
    for name, (value, limit) in asked.items():
        if not isinstance(value, Tensor) or constraints.is_dependent(limit) or not value.numel():
            continue
        if not bool(limit.check(value).all()):
            return one, name, value.detach(), limit
    return None


def _bounds(limit: constraints.Constraint) -> tuple[float, float]:
    """Return the least and the most that a constraint lets pass; infinite if there is none."""
    if isinstance(limit, type(constraints.boolean) | type(constraints.simplex)):
        return 0.0, 1.0
    low = torch.as_tensor(getattr(limit, "lower_bound", -inf))
    high = torch.as_tensor(getattr(limit, "upper_bound", inf))
    return float(low.min()), float(high.max())
