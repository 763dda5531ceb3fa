"""The loss of a step, put together again from its graph where PyTorch's own function made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from vegrad.torch.models import tensors_in
from vegrad.torch.monitor.loss_graph import kind_of
from vegrad.torch.reading.losses import Call, Loss, best_constant

SCALED = {"mul", "div", "to_copy"}
VIEWS = {"view", "_unsafe_view", "unsafe_view", "reshape_alias", "squeeze", "to_copy", "alias"}
KNOWN: dict[str, Callable[..., Tensor]] = {
    "mse_loss": functional.mse_loss,
    "l1_loss": functional.l1_loss,
    "smooth_l1_loss": functional.smooth_l1_loss,
    "huber_loss": functional.huber_loss,
    "binary_cross_entropy": functional.binary_cross_entropy,
    "binary_cross_entropy_with_logits": functional.binary_cross_entropy_with_logits,
    "nll_loss": functional.nll_loss,
}
TAKE_LOGITS = (
    functional.cross_entropy,
    functional.nll_loss,
    functional.binary_cross_entropy_with_logits,
)
BOUNDED = {"softmax", "log_softmax", "sigmoid", "tanh", "relu", "softplus", "hardtanh", "clamp"}
HELD = {"relu", "hardtanh", "clamp"}
SETTINGS = ("beta", "delta")  # of losses that are square near 0
MOST = 6  # nodes that only pass a loss or an output on


class KnownLoss(NamedTuple):
    """A loss that can be computed again."""

    function: Loss
    target: object
    doubtful: bool = False
    """True if the loss may not fit: an activation made the output, or none did where logarithms of
    probabilities belong; classes are one, or rows sum to 1; output and target are of other
    shapes."""
    guess: Callable[[], float] | None = None
    """Of a loss times -1: what the best constant output costs, without the sign."""


def numbers_of(output: object) -> tuple[int, ...]:
    """Return the numbers of the operations that made a model's outputs, in the order of those."""
    found = (one.grad_fn for one in tensors_in(output))
    return tuple(-1 if node is None else node._sequence_nr() for node in found)


def known_loss(root: Tensor, made: Sequence[int]) -> KnownLoss | None:
    """Return the loss function and the target of a step; None if the graph does not tell them.

    Args:
        root: the loss, whose graph is still there.
        made: the numbers of the operations that made the model's outputs.
    """
    node = root.grad_fn
    if node is None:
        return None
    if len(made) > 1 and node._sequence_nr() in made:
        return KnownLoss(partial(_returned, made.index(node._sequence_nr())), None)
    node = past(node, SCALED, ())
    return None if node is None or len(made) != 1 else _known(node, made)


def doubtful_term(root: Tensor, made: Sequence[int]) -> KnownLoss | None:
    """Return a loss among those that a sum adds up that may not fit, or a cross entropy times -1.

    None if all losses fit.

    Args:
        root: the sum, whose graph is still there.
        made: as `known_loss` takes them.
    """
    ahead = [root.grad_fn]
    for _ in range(2 * MOST):
        node = ahead.pop() if ahead else None
        node = None if node is None else past(node, SCALED, ())
        if node is None:
            continue
        if kind_of(node) == "neg" and node is past(root.grad_fn, SCALED, ()):
            return _flipped(_below(node), made)
        if kind_of(node) == "add":
            ahead += [one for one, _ in node.next_functions]
        elif (found := _known(node, made)) is not None and found.doubtful:
            return found
    return None


def _flipped(below: Node | None, made: Sequence[int]) -> KnownLoss | None:
    """Return a cross entropy of labels times -1, below which there is no end to a training."""
    node = None if below is None else past(below, SCALED, ())
    found = None if node is None else _known(node, made)
    if node is None or found is None or found.doubtful or kind_of(node) != "nll_loss":
        return None
    target = found.target
    assert isinstance(target, Tensor)
    call = Call("cross_entropy", target, target, nan, 0.0)
    return KnownLoss(partial(_negative, found.function), target, True, partial(best_constant, call))


def _negative(loss: Loss, output: object, target: object) -> Tensor:
    negative: Tensor = -loss(output, target)
    return negative


def _known(node: Node, made: Sequence[int]) -> KnownLoss | None:
    """Return the loss function that a node is of, if it takes one of a model's outputs."""
    function = KNOWN.get(kind_of(node))
    if function is None:
        return None
    target, weight = getattr(node, "_saved_target", None), getattr(node, "_saved_weight", None)
    if not isinstance(target, Tensor):
        return None
    more: dict[str, object] = {} if weight is None else {"weight": weight}
    more |= {name: getattr(node, f"_saved_{name}") for name in SETTINGS
             if hasattr(node, f"_saved_{name}")}  # fmt: skip
    below = _below(node)
    if function is functional.nll_loss:
        ignored = getattr(node, "_saved_ignore_index", -100)
        more["ignore_index"] = ignored if ignored < 1 << 63 else ignored - (1 << 64)
        if (
            below is not None
            and kind_of(below) == "log_softmax"
            and below._sequence_nr() not in made
        ):
            function, below = functional.cross_entropy, _below(below)
    end = None if below is None else past(below, VIEWS, made)
    spread = end is not None and kind_of(end) == "expand" and end._sequence_nr() not in made
    if spread and end is not None:
        target, below = _before_expansion(target), _below(end)
        end = None if below is None else past(below, VIEWS, made)
    if end is not None and (shaped := _shaped(function, end, made)) is not None:
        place = made.index(shaped.of)
        return KnownLoss(partial(_loss, shaped.loss, more, spread, place), target.detach(), True)
    if end is None or end._sequence_nr() not in made:
        return None
    raw = function is functional.nll_loss and kind_of(end) != "log_softmax"
    classes = function in (functional.cross_entropy, functional.nll_loss)
    bounded = kind_of(end) in BOUNDED - ({"log_softmax"} if classes else set())
    if kind_of(end) == "log_softmax" and (below := _below(end)) is not None:
        logits = past(below, VIEWS, ())
        bounded |= logits is not None and kind_of(logits) in HELD
    doubtful = bounded or raw or spread or (classes and (_is_single(node) or _is_over_rows(end)))
    place = made.index(end._sequence_nr())
    return KnownLoss(partial(_loss, function, more, spread, place), target.detach(), doubtful)


class _Shaped(NamedTuple):
    """A loss of probabilities that are made of a model's output after it."""

    of: int
    """The number of the operation that made the output."""
    loss: Callable[..., Tensor]


def _shaped(function: Callable[..., Tensor], end: Node, made: Sequence[int]) -> _Shaped | None:
    """Return a loss that takes logits, or logarithms, of what a softmax or sigmoid has made."""
    below, kind = _below(end), kind_of(end)
    known = function in TAKE_LOGITS and kind in ("softmax", "sigmoid")
    if known and kind == "sigmoid" and below is not None:  # of whatever shape
        below = past(below, VIEWS, made)
    if not known or below is None or below._sequence_nr() not in made:
        return None
    axis = getattr(end, "_saved_dim", None)
    if kind == "softmax" and axis is None:
        return None

    def loss(output: Tensor, target: Tensor, **more: object) -> Tensor:
        signed = 0 if axis is None else axis if axis < 1 << 63 else axis - (1 << 64)
        probabilities = output.sigmoid() if kind == "sigmoid" else output.softmax(signed)
        return function(probabilities, target, **more)

    return _Shaped(below._sequence_nr(), loss)


def _before_expansion(target: Tensor) -> Tensor:
    """Return a target as it was before it was brought to the shape of an error."""
    found = target
    for axis, stride in enumerate(target.stride()):
        if stride == 0:
            leads = found.ndim == target.ndim - axis
            found = found[0] if leads else found.narrow(axis - target.ndim, 0, 1)
    return found


def towards(output: object, delta: Tensor) -> Tensor:
    """Return a stand-in for a loss that is not known: its gradient at the output is this δ."""
    first = next(one for one in tensors_in(output) if one.is_floating_point())
    return (first * delta.to(first.dtype)).sum()


def _loss(
    function: Callable[..., Tensor],
    more: Mapping[str, object],
    spread: bool,
    place: int,
    output: object,
    target: Tensor,
) -> Tensor:
    """Return the mean loss of outputs that are brought into the target's shape.

    Those that the loss itself has spread over another shape stay as they are. Of several outputs
    that in its place is taken.
    """
    one = list(tensors_in(output))[place]
    if target.is_floating_point():
        given = one.to(target.dtype) if one.dtype != target.dtype else one
        if not spread and given.shape != target.shape and given.numel() == target.numel():
            given = given.reshape(target.shape)
    else:
        given = one
        if target.ndim == 1 and one.ndim > 2:
            given = one.reshape(-1, one.shape[-1])
    return function(given, target, **more)


def _is_single(node: Node) -> bool:
    """Return True of a loss over one class."""
    output = getattr(node, "_saved_self", None)
    return isinstance(output, Tensor) and output.ndim > 1 and output.shape[1] == 1


def _is_over_rows(node: Node) -> bool:
    """Return True of a log_softmax over the first of several axes."""
    axis, made = getattr(node, "_saved_dim", None), getattr(node, "_saved_result", None)
    if kind_of(node) != "log_softmax" or axis is None or not isinstance(made, Tensor):
        return False
    return made.ndim > 1 and axis in (0, (1 << 64) - made.ndim)  # as unsigned numbers


def _returned(place: int, output: object, target: object) -> Tensor:
    return list(tensors_in(output))[place]


def past(node: Node, kinds: set[str], made: Sequence[int]) -> Node | None:
    """Return the first node that is more than a view or a factor."""
    now: Node | None = node
    for _ in range(MOST):
        if now is None or now._sequence_nr() in made or kind_of(now) not in kinds:
            return now
        now = _below(now)
    return None


def _below(node: Node) -> Node | None:
    """Return the only node below one; None if there are several."""
    below = [one for one, _ in node.next_functions if one is not None]
    return below[0] if len(below) == 1 else None
