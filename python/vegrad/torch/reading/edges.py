"""Tell operations whose inputs are at an edge of what they are made for.

An edge is a point at which an operation's output or its derivative is not finite: a root or a norm
of 0, a logarithm of 0, a division by 0, a softmax over nothing but -inf. `before` looks at the
inputs, which an operation may overwrite; `after` at what was made. Only calls of these kinds are
looked at, with a comparison and a reduction each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, isnan, prod
from typing import Any

import torch
from torch import Tensor

from vegrad.torch.reading.call import Call
from vegrad.torch.reading.tensors import tensors_in

IGNORED = -100  # PyTorch's default ignore_index
TINY = 1e-4  # below this, no count and no sum of weights is meant
TINY_EPS = 1e-8  # up to this ε, a normalization of a row of 0 passes on 1e4 times the gradient
LARGE = 0.25  # share of the exponents of a dtype, from which its products may leave its range


@dataclass(frozen=True)
class Edge:
    """An edge that an operation's inputs are at."""

    cause: str
    where: Tensor | None = None
    """True for each element of the output that is there; None if that is not known."""


def before(call: Call) -> Edge | None:
    """Return the edge that the inputs of a call are at, before it runs; None if at none."""
    look = BEFORE.get(call.kind)
    return None if look is None or not _is_judged(call) else _attempted(lambda: look(call))


def after(call: Call, out: Tensor, lost: bool) -> Edge | None:
    """Return the edge that shows in the output of a call; None if none does.

    Args:
        call: the call, after it ran.
        out: its first output.
        lost: True if that has values which are not finite.
    """
    look = AFTER.get(call.kind)
    found = None
    if look is not None and _is_judged(call):
        found = _attempted(lambda: look(call, out, lost))
    if found is None and lost and _is_of_nothing(call):
        return Edge("empty-loss")
    return found


def _attempted(look: Callable[[], Edge | None]) -> Edge | None:
    """Look at a call; of a form of it that is not known, nothing is said."""
    try:
        return look()
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


def made_by(call: Call, out: Tensor) -> str:
    """Return the cause for which an operation makes what is not finite of what is."""
    size = max((_largest(one) for one in call.tensors if one.is_floating_point()), default=0.0)
    name = call.name.strip("_")
    if name in LOSSES:
        return "loss-domain"
    if name in POLES or name.startswith("linalg"):
        return "domain-edge"
    limits = torch.finfo(out.dtype if out.is_floating_point() else torch.float32)
    if name in GROWING or not bool(out.isnan().any()) or size > limits.max**LARGE:
        return "dtype-range" if limits.bits == 16 and limits.max < 1e5 else "overflow"
    return "domain-edge"


def holds_infinity(call: Call) -> bool:
    """Return True if a number among the arguments is infinite: somebody made a mask of it."""
    numbers = (*call.args, *call.kwargs.values())
    return any(isinstance(one, float) and not isfinite(one) for one in numbers)


# Before it runs ---------------------------------------------------------------------------------


def _at(cause: str, where: Tensor) -> Edge | None:
    return Edge(cause, where) if bool(where.any()) else None


def _either(low: Tensor, on: Tensor, cause: str) -> Edge | None:
    """Return the edge of what is below a domain, else of what is on its border."""
    return _at("domain-edge", low) or _at(cause, on)


def _root(call: Call) -> Edge | None:
    x = _values(call)
    outside = None if x is None else _at("", x <= 0)
    return None if x is None or outside is None else _either(x < 0, x == 0, "sqrt-at-zero")


def _beyond(low: float = -inf, high: float = inf) -> Callable[[Call], Edge | None]:
    """Return a look at functions that are finite between two limits only."""

    def look(call: Call) -> Edge | None:
        x = _values(call)
        if x is None:
            return None
        outside = x <= low if low > -inf else x >= high
        return _at("domain-edge", outside | (x >= high) if high < inf else outside)

    return look


def _both_zero(call: Call) -> Edge | None:
    one, other = _values(call), _argument(call, 1, "other")
    if one is None or not isinstance(other, Tensor):
        return None
    return _at("domain-edge", (one == 0) & (other == 0))


def _xlogy(call: Call) -> Edge | None:
    one, other = _argument(call, 0, "input"), _argument(call, 1, "other")
    if not isinstance(other, Tensor):
        return None
    return _at("domain-edge", (other <= 0) & (torch.as_tensor(one, device=other.device) != 0))


def _power(call: Call) -> Edge | None:
    base, exponent = _argument(call, 0, "input"), _argument(call, 1, "exponent")
    if not isinstance(base, Tensor) or not base.is_floating_point():
        return None
    if isinstance(exponent, Tensor) and exponent.numel() != 1:
        exponent = exponent.detach()
        where = (base == 0) & (exponent < 1) & (exponent != 0)
        return _at("domain-edge", where | ((base < 0) & (exponent % 1 != 0)))
    power = float(exponent)
    if power == 0 or (power >= 1 and power % 1 == 0):
        return None
    zero = "sqrt-at-zero" if power in (0.5, -0.5) else "domain-edge" if power > 0 else ""
    on = base == 0 if power < 1 else base != base
    if power % 1 == 0:
        return _at("zero-division", on)
    return _either(base < 0, on, zero or "zero-division") if bool((base <= 0).any()) else None


def _division(call: Call) -> Edge | None:
    above, below = _argument(call, 0, "input"), _argument(call, 1, "other")
    if call.name.strip("_") in ("rdiv", "rtruediv", "reciprocal"):
        above, below = below if below is not None else 1.0, above
    if not isinstance(below, Tensor):
        at_zero = isinstance(below, int | float) and below == 0 and isinstance(above, Tensor)
        where = torch.ones_like(above, dtype=torch.bool) if at_zero else None
        count = True
    else:
        if below.numel() == 1 and not below.requires_grad and _is_tiny(below, above):
            return Edge("loss-normalizer")
        where = below == 0 if bool((below == 0).any()) else None
        count = not below.requires_grad and (
            below.ndim == 0 or not isinstance(above, Tensor) or below.numel() < above.numel()
            or below.ndim < 2
        )  # fmt: skip
    if where is None:
        return None
    if not count:
        return Edge("zero-division", where)
    nothing = not isinstance(above, Tensor) or bool((above.detach() * where == 0).all())
    return Edge("empty-loss" if nothing else "loss-normalizer", where)


def _is_tiny(below: Tensor, above: object) -> bool:
    """Return True if a number is next to 0, and what it divides is not."""
    size = abs(float(below.detach()))
    return 0 < size < TINY and isinstance(above, Tensor) and _largest(above) > size / TINY


def _alignment(call: Call) -> Edge | None:
    """Find labels that are longer than their frames; one that repeats needs a blank between."""
    labels = _argument(call, 1, "targets")
    frames = torch.as_tensor(_argument(call, 2, "input_lengths")).flatten().tolist()
    lengths = torch.as_tensor(_argument(call, 3, "target_lengths")).flatten().tolist()
    if not isinstance(labels, Tensor):
        return None
    rows = labels.cpu().tolist() if labels.ndim == 2 else None
    flat, start, short = labels.flatten().tolist(), 0, 0
    for number, (count, length) in enumerate(zip(frames, lengths, strict=False)):
        row = rows[number][:length] if rows is not None else flat[start : start + length]
        start += length
        repeats = sum(one == other for one, other in pairwise(row))
        short += length + repeats > count
    lost = short and not (_argument(call, 6, "zero_infinity") and short < len(lengths))
    return Edge("infeasible-alignment") if lost else None


# After it ran -----------------------------------------------------------------------------------


def _norm(call: Call, out: Tensor, lost: bool) -> Edge | None:
    x = _values(call)
    single = x is not None and x.numel() == out.numel() and call.name in ("std", "var", "std_mean")
    if single and lost and is_finite(x):
        return Edge("norm-of-one")
    return None if out.is_complex() else _at("sqrt-at-zero", out.detach() == 0)


def _normalization(call: Call, out: Tensor, lost: bool) -> Edge | None:
    """Find normalizations over one element, and rows of 0 that go into one with next to no ε."""
    x = _values(call)
    if x is None or not x.numel():
        return None
    name, axis, eps = call.name, -1, 1.0
    if name in ("layer_norm", "rms_norm"):
        shape = _argument(call, 1, "normalized_shape")
        size = prod(shape) if isinstance(shape, tuple | list) else int(shape)
        given = _argument(call, 4 if name == "layer_norm" else 3, "eps")
        eps = given if given is not None else 1e-5
        axis = -len(shape) if isinstance(shape, tuple | list) else -1
        axis = -1 if axis != -1 else axis
    elif name == "group_norm":
        size = x[0].numel() // int(_argument(call, 1, "num_groups"))
    elif name == "instance_norm":
        size = prod(x.shape[2:])
    else:
        axis, size = _axis(call, 2, "dim", 1), 0
        size, eps = x.shape[axis], 0.0
    if size == 1 and (out.numel() > 1 or name != "normalize"):
        return Edge("norm-of-one")
    if eps <= TINY_EPS and bool((x.detach() == 0).all(axis).any()):
        return Edge("zero-vectors")
    return None


def _similarity(call: Call, out: Tensor, lost: bool) -> Edge | None:
    axis = _axis(call, 2, "dim", 1)
    both = (_argument(call, 0, "x1"), _argument(call, 1, "x2"))
    zero = any(isinstance(x, Tensor) and bool((x.detach() == 0).all(axis).any()) for x in both)
    return Edge("zero-vectors") if zero else None


def _softmax(call: Call, out: Tensor, lost: bool) -> Edge | None:
    x = _values(call)
    if not lost or x is None:
        return None
    axis = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", -1)
    empty = (x == -inf).all(axis) if isinstance(axis, int) and x.ndim else (x == -inf).all()
    return Edge("masked-row") if bool(empty.any()) else None


def _attention(call: Call, out: Tensor, lost: bool) -> Edge | None:
    """Find masks that leave rows of attention without any key: some that are NaN, or all of them.

    Of a row without keys most implementations make 0, which is as it should be if the row is
    padding; all rows are not.
    """
    left_out = _left_out(call)
    if left_out is None:
        return None
    empty = left_out.all(-1)
    return Edge("masked-row") if bool(empty.any() if lost else empty.all()) else None


def _left_out(call: Call) -> Tensor | None:
    """Return True for each key that the masks of a call of attention hide from a query."""
    if call.name == "scaled_dot_product_attention":
        mask = _argument(call, 3, "attn_mask")
        if not isinstance(mask, Tensor) or not mask.ndim:
            return None
        return ~mask if mask.dtype is torch.bool else mask == -inf
    more = (_argument(call, 7, "bias_k"), _argument(call, 9, "add_zero_attn"))
    if any(one is not None and one is not False for one in more):
        return None  # there is a key besides
    mask, padding = call.kwargs.get("attn_mask"), call.kwargs.get("key_padding_mask")
    both = [one if one.dtype is torch.bool else one == -inf
            for one in (mask, padding) if isinstance(one, Tensor) and one.ndim]  # fmt: skip
    if len(both) < 2:
        return both[0] if both else None
    if both[0].ndim > 2:  # (B · heads, queries, keys)
        both[0] = both[0].unflatten(0, (-1, int(_argument(call, 4, "num_heads"))))
    keys = both[1] if both[1].ndim > 1 else both[1][None]
    return both[0] | keys[:, None, None]


def _labels(call: Call, out: Tensor, lost: bool) -> Edge | None:
    """Find a mean over no labels, or over classes of weight 0."""
    x, labels = _values(call), _argument(call, 1, "target")
    if not lost or x is None or not isinstance(labels, Tensor):
        return None
    ignored = call.kwargs.get("ignore_index", IGNORED)
    if not labels.is_floating_point() and bool(out.isnan().any()):
        if not bool((labels != ignored).any()):
            return Edge("empty-loss")
        weight = _argument(call, 2, "weight")
        if isinstance(weight, Tensor) and not bool(weight[labels[labels != ignored]].any()):
            return Edge("loss-normalizer")
    axis = 1 if x.ndim > 1 else 0
    if bool((x == -inf).all(axis).any()):
        return Edge("masked-row")
    # The label itself is masked.
    return Edge("loss-domain") if bool(torch.isinf(x).any()) and not bool(x.isnan().any()) else None


def _mean_of_known(call: Call, out: Tensor, lost: bool) -> Edge | None:
    """Find a mean that leaves out what is NaN, of nothing else."""
    x = _values(call)
    return Edge("empty-loss") if lost and x is not None and bool(x.isnan().any()) else None


def _is_of_nothing(call: Call) -> bool:
    given = [one for one in call.tensors if one.is_floating_point()]
    return bool(given) and any(not one.numel() for one in given)


# Arguments --------------------------------------------------------------------------------------


def _argument(call: Call, place: int, name: str) -> Any:
    return call.args[place] if len(call.args) > place else call.kwargs.get(name)


def _axis(call: Call, place: int, name: str, otherwise: int) -> int:
    given = _argument(call, place, name)
    return given if isinstance(given, int) else otherwise


def _values(call: Call) -> Tensor | None:
    """Return the numbers that a call is applied to, if they are real ones."""
    x = call.source
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    return x.detach()


def _is_judged(call: Call) -> bool:
    return not any(
        one.layout is not torch.strided or one.is_meta or one.is_nested for one in call.tensors
    )


def _largest(tensor: Tensor) -> float:
    size = float(tensor.detach().abs().amax()) if tensor.numel() else 0.0
    return 0.0 if isnan(size) else size


def is_finite(values: object) -> bool:
    """Return True if all numbers in tensors are finite."""
    several = (one for one in tensors_in(values) if one.is_floating_point() or one.is_complex())
    dense = (one for one in several if one.layout is torch.strided and not one.is_nested)
    return all(bool(torch.isfinite(one.detach()).all()) for one in dense)


BEFORE: dict[str, Callable[[Call], Edge | None]] = {
    **dict.fromkeys(("sqrt", "rsqrt"), _root),
    **dict.fromkeys(("log", "log2", "log10"), _beyond(0.0)),
    "log1p": _beyond(-1.0),
    **dict.fromkeys(("logit", "special_logit"), _beyond(0.0, 1.0)),
    **dict.fromkeys(
        ("acos", "arccos", "asin", "arcsin", "atanh", "arctanh", "erfinv"), _beyond(-1.0, 1.0)
    ),
    **dict.fromkeys(("acosh", "arccosh"), _beyond(1.0)),
    **dict.fromkeys(("atan2", "arctan2", "hypot"), _both_zero),
    **dict.fromkeys(("xlogy", "special_xlogy"), _xlogy),
    **dict.fromkeys(("pow", "ipow", "float_power"), _power),
    **dict.fromkeys(
        (
            *("div", "divide", "true_divide", "truediv", "itruediv", "idiv", "rdiv", "rtruediv"),
            *("reciprocal", "remainder", "fmod"),
        ),
        _division,
    ),
    "ctc_loss": _alignment,
}
AFTER: dict[str, Callable[[Call, Tensor, bool], Edge | None]] = {
    **dict.fromkeys(
        (
            *("norm", "linalg_norm", "linalg_vector_norm", "linalg_matrix_norm", "vector_norm"),
            *("std", "var", "std_mean", "var_mean", "cdist", "pairwise_distance", "dist"),
        ),
        _norm,
    ),
    **dict.fromkeys(
        ("layer_norm", "rms_norm", "group_norm", "instance_norm", "normalize"), _normalization
    ),
    "cosine_similarity": _similarity,
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "logsumexp", "gumbel_softmax"), _softmax),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), _attention),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _labels),
    **dict.fromkeys(("nanmean", "nanmedian"), _mean_of_known),
}
GROWING = {"exp", "expm1", "exp2", "sinh", "cosh", "prod", "cumprod", "square", "gru", "gru_cell",
           "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell", "rnn_tanh"}  # fmt: skip
POLES = {"logdet", "slogdet", "inverse", "pinverse", "lgamma", "digamma", "polygamma", "tan"}
LOSSES = {"poisson_nll_loss", "gaussian_nll_loss", "kl_div", "binary_cross_entropy"}
