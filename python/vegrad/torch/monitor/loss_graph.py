"""The operations of a loss, read from its autograd graph: which of them is at an edge.

A backward pass frees what its graph has saved as it goes. `kept` holds it until the pass is over,
for the few operations next to the loss that can make what is not finite; `blamed` looks at it once
something was not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node as Graph

MOST = 16  # operations that are walked, from the loss on
MANY = 400  # of them that are walked once one is to blame
HIDES = {"where", "masked_fill", "nansum", "masked_scatter", "index", "masked_select"}
_NAMES: dict[str, str] = {}


@dataclass(frozen=True)
class Node:
    """An operation of a loss, with what it has saved for the backward pass."""

    kind: str
    order: int
    """Its place among all operations, in the order in which they ran."""
    saved: Mapping[str, object]
    with_constant: bool
    """True if an operand of the operation below it needs no gradient, as a target."""
    graph: Graph


@dataclass(frozen=True)
class Blame:
    """An operation of the loss that is at an edge."""

    cause: str
    operation: str


def kept(roots: Sequence[object], *, lost: bool, most: int = MOST) -> list[Node]:
    """Return the operations next to a loss that may be at an edge, with what they have saved.

    Args:
        roots: what the backward pass begins with.
        lost: True if the loss is not finite; else only those are kept that can make a gradient that
            is not finite of one that is.
        most: operations to look at.
    """
    found: list[Node] = []
    ahead = [root.grad_fn for root in roots if isinstance(root, Tensor)]
    seen: set[Graph] = set()
    while ahead and len(seen) < most:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = _NAMES.get(name := node.name()) or _kind(name)
        if kind in MAPS:
            continue
        if (names := SAVED.get(kind)) is not None and (lost or kind not in LOST):
            try:
                saved = {name: getattr(node, f"_saved_{name}", None) for name in names}
            except RuntimeError:  # a graph that is freed already, or kept elsewhere
                continue
            constant = kind in POWERS and _has_constant(node)
            found.append(Node(kind, node._sequence_nr(), saved, constant, node))
        ahead += [one for one, _ in node.next_functions]
    return found


def at_risk(nodes: Sequence[Node]) -> bool:
    """Return True if such operations can make a gradient that is not finite of a finite loss."""
    kinds = {node.kind for node in nodes}
    return bool(kinds & (RISKY if kinds.isdisjoint(HIDES) else SAVED.keys())) or any(
        isinstance(power := node.saved.get("exponent"), float) and power % 1 for node in nodes
    )


def blamed(nodes: Sequence[Node], is_lost: bool, is_nan: bool = True) -> Blame | None:
    """Return the first operation, in the order in which they ran, that is at an edge.

    Args:
        nodes: of `kept`.
        is_lost: True if the loss itself is not finite, False if only its gradient is not.
        is_nan: True if the loss is NaN, False if it is infinite.
    """
    in_order = sorted(nodes, key=lambda node: node.order)
    for node in in_order:
        cause = _edges(node, is_lost, is_nan)
        if not cause:
            continue
        later = (one for one in in_order if one.kind in HIDES and one.order > node.order)
        if not is_lost and cause != "nonfinite-target" and any(_hides(one, node) for one in later):
            cause = "where-branch"
        return Blame(cause, node.kind)
    return None


def _edges(node: Node, is_lost: bool, is_nan: bool) -> str:
    """Return the cause for which a node is at an edge, "" if it is at none."""
    saved, kind = node.saved, node.kind
    x, result = saved.get("self"), saved.get("result")
    if _any(saved.get("target"), torch.isnan) or (node.with_constant and _any(x, torch.isnan)):
        return "nonfinite-target"
    if kind in DOMAIN:
        return "loss-domain" if _any(x, DOMAIN[kind]) else ""
    if kind in RESULTS:
        return next((cause for test, cause in RESULTS[kind] if _any(result, test)), "")
    if kind == "div":
        return _division(saved.get("other"), is_nan)
    if kind == "pow":
        return _power(x, saved.get("exponent"))
    if kind in ("softmax", "log_softmax"):
        return "masked-row" if is_lost and _some_rows(result, saved.get("dim")) else ""
    if kind == "ctc_loss":
        return "infeasible-alignment" if _any(saved.get("result0"), torch.isinf) else ""
    of_nothing = _any(saved.get("total_weight"), _is_zero) or saved.get("self_sym_numel") == 0
    return "empty-loss" if of_nothing else ""


def _hides(mask: Node, node: Node) -> bool:
    """Return True if a where() or the like takes none of the elements that are at an edge."""
    edge, ways = _at_edge(node), [one for one, _ in mask.graph.next_functions]
    taken = [_taken(mask, n, edge) for n, one in enumerate(ways) if _leads(one, node.graph)]
    known = [one for one in taken if one is not None]
    if edge is None or not known or len(known) < len(taken):
        return False
    for one in known:
        # Rows of which a sum was taken before it.
        rows = one.ndim < edge.ndim and one.shape == edge.shape[: one.ndim]
        one = one.reshape(*one.shape, *(1,) * (edge.ndim - one.ndim)) if rows else one
        try:
            if bool((edge & one).any()):
                return False
        except RuntimeError:  # of shapes that are not known to be of the same elements
            return False
    return True


def _at_edge(node: Node) -> Tensor | None:
    """Return True for each element at which an operation or its derivative is not finite."""
    x, result = node.saved.get("self"), node.saved.get("result")
    if node.kind in RESULTS and isinstance(result, Tensor):
        tests = [test(result.detach()) for test, _ in RESULTS[node.kind]]
        return next((one for one in tests if bool(one.any())), None)
    if node.kind == "div":
        x = node.saved.get("other")
    if not isinstance(x, Tensor):
        return None
    return DOMAIN.get(node.kind, _not_positive if node.kind == "pow" else _is_zero)(x.detach())


def _taken(mask: Node, way: int, edge: Tensor | None) -> Tensor | None:
    """Return True for each element that a where() or the like takes from one of its inputs."""
    saved = mask.saved.get("condition", mask.saved.get("mask"))
    if isinstance(saved, Tensor):
        inside = mask.kind == "masked_select" or (mask.kind == "where") == (way == 0)
        return saved.detach() if inside else ~saved.detach()
    if isinstance(x := mask.saved.get("self"), Tensor):
        return ~x.detach().isnan()
    if edge is None or not isinstance(places := mask.saved.get("indices"), tuple | list):
        return None
    try:
        taken = torch.zeros_like(edge)
        taken[tuple(slice(None) if one is None else one for one in places)] = True
    except (IndexError, RuntimeError):
        return None
    return taken


def _leads(start: Graph | None, end: Graph) -> bool:
    """Return True if a gradient comes from one operation to another."""
    ahead, seen = [start], set[Graph]()
    while ahead and len(seen) < MANY:
        node = ahead.pop()
        if node is end:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [one for one, _ in node.next_functions]
    return False


def _some_rows(result: object, axis: object) -> bool:
    """Return True if some rows of a softmax are NaN, and not all."""
    if not isinstance(result, Tensor) or not isinstance(axis, int):
        return False
    rows = torch.isnan(result.detach()).all(axis if axis < 1 << 63 else axis - (1 << 64))
    return bool(rows.any()) and not bool(rows.all())


def _division(other: object, is_nan: bool) -> str:
    if not isinstance(other, Tensor) or not _any(other, _is_zero):
        return ""
    if other.numel() > 1:
        return "zero-division"
    return "empty-loss" if is_nan else "loss-normalizer"


def _power(x: object, exponent: object) -> str:
    if not isinstance(exponent, float | int):
        return ""
    if exponent < 0 and _any(x, _is_zero):
        return "zero-division"
    if exponent % 1 and _any(x, lambda one: one < 0):
        return "loss-domain"
    return "sqrt-at-zero" if 0 < exponent < 1 and _any(x, _is_zero) else ""


def _is_zero(one: Tensor) -> Tensor:
    return one == 0


def _any(tensor: object, test: Callable[[Tensor], Tensor]) -> bool:
    return isinstance(tensor, Tensor) and bool(test(tensor.detach()).any())


def _has_constant(node: Graph) -> bool:
    """Return True if the operation below takes something that needs no gradient."""
    below = [one for one, _ in node.next_functions if one is not None]
    return any(
        _kind(one.name()) in ("sub", "add", "mul")
        and any(further is None for further, _ in one.next_functions)
        for one in below
    )


def kind_of(node: Graph) -> str:
    """Return the name of an operation: log_softmax of LogSoftmaxBackward0."""
    return _kind(node.name())


def _kind(name: str) -> str:
    """Return the name of an operation: log_softmax of LogSoftmaxBackward0."""
    if name not in _NAMES:
        plain = re.sub(r"(2D)?Backward\d*$", "", name.rpartition("::")[2])
        _NAMES[name] = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower()
    return _NAMES[name]


def _outside(one: Tensor) -> Tensor:
    return one.abs() >= 1


def _not_positive(one: Tensor) -> Tensor:
    return one <= 0


DOMAIN: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("log", "log2", "log10"), _not_positive),
    "log1p": lambda one: one <= -1,
    "logit": lambda one: (one <= 0) | (one >= 1),
    "acosh": lambda one: one <= 1,
    **dict.fromkeys(("acos", "asin", "atanh", "erfinv"), _outside),
}
RESULTS: dict[str, tuple[tuple[Callable[[Tensor], Tensor], str], ...]] = {
    "sqrt": ((_is_zero, "sqrt-at-zero"), (torch.isnan, "loss-domain")),
    "rsqrt": ((torch.isinf, "sqrt-at-zero"), (torch.isnan, "loss-domain")),
    "std": ((_is_zero, "sqrt-at-zero"), (torch.isnan, "norm-of-one")),
    "reciprocal": ((torch.isinf, "zero-division"),),
    "exp": ((torch.isinf, "overflow"),),
}
SAVED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(DOMAIN, ("self",)),
    **dict.fromkeys(RESULTS, ("result",)),
    **dict.fromkeys(("softmax", "log_softmax"), ("result", "dim")),
    **dict.fromkeys(("nll_loss",), ("total_weight",)),
    **dict.fromkeys(
        (
            *("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy"),
            *("binary_cross_entropy_with_logits", "kl_div", "soft_margin_loss"),
        ),
        ("target",),
    ),
    "where": ("condition",),
    **dict.fromkeys(("masked_fill", "masked_scatter", "masked_select"), ("mask",)),
    "nansum": ("self",),
    "index": ("indices",),
    "div": ("other",),
    "pow": ("self", "exponent"),
    "abs": ("self",),
    "mean": ("self_sym_numel",),
    "ctc_loss": ("result0",),
}
RISKY = {*DOMAIN, *RESULTS, "div"}
LOST = {"nll_loss", "softmax", "log_softmax", "mean", "ctc_loss"}
POWERS = {"pow", "abs"}
MAPS = {"addmm", "mm", "bmm", "baddbmm", "convolution", "native_layer_norm", "native_batch_norm"}
MAPS |= {"embedding", "accumulate_grad", "native_group_norm", "linear", "mkldnn_linear", "t"}
