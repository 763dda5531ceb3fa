"""Facts about outputs at the loss: the operation that shapes them, and what they can reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, inf, log, log1p

from vegrad.flow.data import Compared, Spread
from vegrad.flow.reading import INPUT, Operation, Reading
from vegrad.flow.site import Site

SAME = {  # what leaves values as they are
    *("get", "getitem", "t", "view", "reshape", "flatten", "transpose", "permute", "expand"),
    *("squeeze", "unsqueeze", "chunk", "split", "unbind", "to", "float", "double", "contiguous"),
    *("clone", "identity", "movedim", "select", "narrow", "swapaxes", "view_as", "type_as"),
    *("unflatten", "requires_grad", "broadcast_to", "expand_as"),
}
ERRORS = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sub"}
SIGMOID = {"binary_cross_entropy_with_logits", "multilabel_soft_margin_loss"}
BINARY = {*SIGMOID, "binary_cross_entropy"}
LOSS, TARGET = Site("loss", "loss"), Site("target", "target")
EDGE = 1e-4  # beyond its range by which a target is off
CLASSES = {"cross_entropy", "nll_loss"}
PROBABILITIES = {"softmax", "sigmoid", "hardsigmoid", "gumbel_softmax"}
RANGES = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, inf),
    "exp": (0.0, inf),
    "square": (0.0, inf),
    "abs": (0.0, inf),
    "elu": (-1.0, inf),
    "gelu": (-0.17, inf),
    "silu": (-0.279, inf),
    "logsigmoid": (-inf, 0.0),
    "log_softmax": (-inf, 0.0),
}


def shaped_by(reading: Reading, place: int) -> Operation | None:
    """Return the operation that gave values their range: the last that is no change of shape."""
    everything = reading.everything
    while place != INPUT:
        one = everything[place]
        if one.kind not in SAME:
            return one
        if len(one.below) != 1:
            return None
        place = one.below[0]
    return None


def range_of(reading: Reading, compared: Compared) -> tuple[str, float, float]:
    """Return the operation that bounds an output, and its bounds; "" and infinities of others."""
    one = shaped_by(reading, compared.place)
    kind = "" if one is None else one.kind
    low, high = RANGES.get(kind, (-inf, inf))
    fits = low - 1e-3 <= compared.output.low and compared.output.high <= high + 1e-3
    return (kind, low, high) if fits and (low > -inf or high < inf) else ("", -inf, inf)


def unreachable(target: Spread, low: float, high: float) -> float:
    """Return the mean squared distance of targets from a range."""
    parts = target.quantiles or (target.low, target.high)
    return sum((q - min(max(q, low), high)) ** 2 for q in parts) / len(parts)


def guess(one: Compared) -> float:
    """Return the cross entropy of guessing: all classes alike."""
    return log(one.units) if one.function in CLASSES and one.units > 1 else log(2)


def softplus(x: float) -> float:
    """Return log(1 + exp(x)), also of infinities."""
    return x if x > 30 else log1p(exp(x)) if x > -inf else 0.0


def above(reading: Reading, place: int, stop: Sequence[str]) -> tuple[set[str], set[int]]:
    """Return the kinds of the operations down to the first of the kinds `stop`, and these."""
    everything, kinds, ends = reading.everything, set[str](), set[int]()
    ahead, seen = [place], set[int]()
    while ahead:
        now = ahead.pop()
        if now == INPUT or now in seen:
            continue
        seen.add(now)
        if everything[now].kind in stop:
            ends.add(now)
            continue
        kinds.add(everything[now].kind)
        ahead += everything[now].below
    return kinds, ends


def after(reading: Reading, place: int) -> Iterator[Operation]:
    """Yield the operations that come from that at a place, in their order."""
    reached = {place}
    for n, one in enumerate(reading.everything):
        if n > place and reached.intersection(one.below):
            reached.add(n)
            yield one
