"""Listen to the loss: which known losses it calls, with which outputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Signature, signature
from math import nan
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vegrad.flow.data import Compared, KnownLoss
from vegrad.torch.reading.call import Call as FunctionCall
from vegrad.torch.reading.compared import Comparisons
from vegrad.torch.reading.graph import Graph
from vegrad.torch.reading.tensors import is_transformed

Loss: TypeAlias = Callable[..., Any]
KINDS = {
    "mse_loss": "mse",
    "cross_entropy": "cross_entropy",
    "nll_loss": "cross_entropy",
    "binary_cross_entropy_with_logits": "binary_cross_entropy",
    "binary_cross_entropy": "binary_cross_entropy",
}
IGNORED = -100  # PyTorch's default ignore_index
NAMES = ("input", "target", "weight", "size_average", "ignore_index")


@dataclass(frozen=True)
class Call:
    """A call of one of PyTorch's losses."""

    kind: str
    """cross_entropy, binary_cross_entropy or mse."""
    output: Tensor
    target: Tensor
    value: float
    """The loss; nan if it is no mean."""
    level: float
    """The output above which a class of two is meant."""
    ignored: int = IGNORED

    @property
    def labels(self) -> Tensor:
        """The labels that count, in a row; of targets that are no labels, these."""
        if self.target.is_floating_point():
            return self.target.detach()
        flat = self.target.detach().flatten()
        return flat[(flat != self.ignored) & (flat >= 0)]

    @property
    def right(self) -> Tensor | None:
        """True for each answer that counts and is right; None if they are no classes."""
        output, target = self.output.detach(), self.target.detach()
        if self.kind == "binary_cross_entropy":
            same = output.shape == target.shape
            return ((output > self.level) == (target > 0.5)).flatten() if same else None
        if self.kind != "cross_entropy" or target.is_floating_point():
            return None
        hits = output.argmax(1 if output.ndim > 1 else 0) == target
        return hits[(target != self.ignored) & (target >= 0)]


def taking_both(loss_fn: Loss, target: object) -> Loss:
    """Return a loss that is called with a target too, where there is none and it takes none."""
    if target is not None:
        return loss_fn
    taken = loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn
    try:
        parameters = signature(taken)
    except (TypeError, ValueError):  # some built-in functions have none
        return loss_fn
    if _can_take(parameters, 2) or not _can_take(parameters, 1):
        return loss_fn
    return lambda output, _: loss_fn(output)


def _can_take(parameters: Signature, count: int) -> bool:
    try:
        parameters.bind(*range(count))
    except TypeError:
        return False
    return True


class Heard(TorchFunctionMode):
    """Writes down the calls of losses while it is on, and in a graph all that they consist of."""

    def __init__(self, graph: Graph | None = None, target: object = None) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._comparisons = None if graph is None else Comparisons(graph, target)

    @property
    def compared(self) -> Sequence[Compared]:
        """Outputs beside targets, in the order in which they were compared."""
        return () if self._comparisons is None else self._comparisons.found

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name, call = getattr(function, "__name__", ""), FunctionCall(function, args, kwargs or {})
        comparisons = self._comparisons
        if comparisons is None or any(map(is_transformed, call.tensors)):
            out = function(*args, **call.kwargs)
        else:
            comparisons.begins(call)
            out = comparisons.graph.run(call)[0]
            comparisons.ran(call, out)
        if name in KINDS and isinstance(out, Tensor):
            given = dict(zip(NAMES, args, strict=False)) | dict(kwargs or {})
            output, target = given.get("input"), given.get("target")
            if isinstance(output, Tensor) and isinstance(target, Tensor):
                level = 0.5 if name == "binary_cross_entropy" else 0.0
                ignored = given.get("ignore_index", IGNORED)
                ignored = ignored if isinstance(ignored, int) else IGNORED
                mean = given.get("reduction", "mean") == "mean" and out.numel() == 1
                value = float(out.detach()) if mean else nan
                self.calls.append(Call(KINDS[name], output, target, value, level, ignored))
        return out


def known_losses(calls: Sequence[Call]) -> tuple[KnownLoss, ...]:
    """Return the losses that were called, beside what the best constant output would cost."""
    return tuple(KnownLoss(one.kind, one.value, best_constant(one)) for one in calls)


def best_constant(call: Call) -> float:
    """Return the mean loss of the best constant output: variance, or entropy of the classes."""
    values = call.labels
    if not values.numel():
        return nan
    if call.kind == "mse":
        return float(values.double().var(0, correction=0).mean()) if values.ndim else 0.0
    if call.kind == "binary_cross_entropy":
        shares = values.double().mean(0)
        return float((torch.special.entr(shares) + torch.special.entr(1 - shares)).mean())
    if values.is_floating_point():
        axis = min(1, values.ndim - 1)
        shares = values.double().movedim(axis, -1).flatten(0, -2).mean(0)
    else:
        counts = torch.bincount(values.cpu()).double()
        shares = counts / counts.sum()
    return float(torch.special.entr(shares).sum())
