"""Write down which outputs a loss compares with which targets, before they are reduced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan, prod

import torch
from torch import Tensor

from vegrad.flow.data import Compared, Spread
from vegrad.torch.reading.call import Call
from vegrad.torch.reading.graph import Graph
from vegrad.torch.reading.tensors import ByTensor, tensors_in

PAIRS = {
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "multilabel_soft_margin_loss",
    "soft_margin_loss",
    "hinge_embedding_loss",
    "kl_div",
    "poisson_nll_loss",
}
CLASSES = {"cross_entropy", "nll_loss"}
SUBTRACTS = {"sub", "__sub__", "__rsub__", "rsub", "subtract"}
MULTIPLIES = {"mul", "__mul__", "__rmul__", "multiply"}
CHOOSES = {"gather", "__getitem__", "take_along_dim"}
LOGARITHMS = ("log", "log_softmax", "logsigmoid", "clamp", "log1p")
IGNORED = -100  # PyTorch's default ignore_index
PARTS = 64  # quantiles
MOST, LARGE = 1 << 16, 1 << 24  # numbers of which quantiles are taken, and sums over all rows
ROWS, SOME = 8, 64  # at least, of outputs at a bound; of which a look tells that none is there
NEAR = 1e-3  # of 1, to which probabilities add up


class RefusedError(ValueError):
    """A loss does not take what it is given; the message is PyTorch's."""

    def __init__(self, compared: Compared, message: str) -> None:
        super().__init__(message)
        self.compared = compared


class Comparisons:
    """Outputs beside targets, as the calls of a loss show them."""

    def __init__(self, graph: Graph, target: object) -> None:
        self.graph = graph
        self.found: list[Compared] = []
        self._targets: ByTensor[bool] = ByTensor()  # True of those that were given as they are
        for one in tensors_in(target):
            self._targets[one] = True
        self._begun: Compared | None = None  # what the call that runs compares
        self._plain = len(graph.operations) - 1  # the place of the loss

    def begins(self, call: Call) -> None:
        """Look at a call before it runs.

        Raises:
            RefusedError: for labels or probabilities that PyTorch does not take, on some devices
                by ending the process.
        """
        if call.name not in PAIRS:
            return
        found = self._begun = self._pair(call)
        why = "" if found is None else _why_refused(found)
        if found is not None and why:
            raise RefusedError(replace(found, refused=True), why)

    def ran(self, call: Call, out: object) -> None:
        """Note a call that has run."""
        if call.name in PAIRS:
            if self._begun is not None:
                self.found.append(replace(self._begun, value=_mean_of(call, out)))
        elif call.raw in SUBTRACTS | MULTIPLIES | CHOOSES and len(call.args) > 1:
            self._own(call, out)
        if any(self._targets.get(one) is not None for one in call.tensors):
            for one in tensors_in(out):
                if self._targets.get(one) is None:
                    self._targets[one] = False

    def _pair(self, call: Call) -> Compared | None:
        given = dict(zip(("input", "target"), call.args, strict=False)) | dict(call.kwargs)
        output, target = given.get("input"), given.get("target")
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            return None
        if not output.requires_grad:
            if call.name not in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
                return None
            output, target = target, output  # these are symmetric
        return self._compared(call.name, output, target, nan, given)

    def _own(self, call: Call, out: object) -> None:
        """Note a difference of output and target, and logarithms that a target weights or picks."""
        pair = tensors_in(call.args[:3])
        if len(pair) < 2 or not isinstance(out, Tensor):
            return
        output, target = pair[0], pair[-1]
        if not output.requires_grad and call.raw not in CHOOSES:
            output, target = target, output
        if not output.requires_grad:
            return
        name, value, given = "sub", nan, self._targets.get(target) is not None
        if call.raw in SUBTRACTS:
            if not given and not target.requires_grad:
                return
            value = float(out.detach().abs().square().double().mean()) if out.numel() else nan
        else:
            name = "mul" if call.raw in MULTIPLIES else "gather"
            place = self.graph.place_of(output)
            kind = "" if place is None or place < 0 else self.graph.operations[place].kind
            if not given or kind not in LOGARITHMS:
                return
        found = self._compared(name, output, target, value, {})
        if found is not None:
            self.found.append(found)

    def _compared(
        self, name: str, output: Tensor, target: Tensor, value: float, given: Mapping[str, object]
    ) -> Compared | None:
        place, there = self.graph.place_of(output), spread(output)
        ignored = given.get("ignore_index", IGNORED)
        labelled = name in CLASSES and not target.is_floating_point()
        wanted = spread(target[target != ignored] if labelled else target)
        if place is None or there is None or wanted is None:
            return None
        units = 0
        if name in CLASSES and output.ndim:
            units = output.shape[min(1, output.ndim - 1)]
        held, at_bound = _at_bound(output.detach(), target) if labelled and units > 1 else (0, 0.0)
        moving = target.requires_grad
        return Compared(
            name,
            there,
            replace(wanted, shape=tuple(target.shape)),
            place,
            target_place=self.graph.place_of(target) if moving else None,
            value=value,
            given=any(self._targets.get(one) is not None for one in (target, output)[: 1 + moving]),
            plain=self._targets.get(target) is True and place < self._plain,
            units=units,
            sums=_sums(output, there),
            held=held,
            at_bound=at_bound,
            labels=labelled,
        )


def spread(tensor: Tensor) -> Spread | None:
    """Return where the elements of a tensor lie; None if there are none, or they are no numbers."""
    values = tensor.detach()
    if values.is_complex() or not values.numel() or values.layout is not torch.strided:
        return None
    floats = values.flatten()
    if floats.numel() <= MOST or not values.is_floating_point():
        floats = floats.double()
    low, high = (float(one) for one in torch.aminmax(floats))
    std, mean = (float(one) for one in torch.std_mean(floats, correction=0))
    some = floats[:: max(1, floats.numel() // MOST)].double().sort().values
    steps = torch.linspace(0, len(some) - 1, min(PARTS, len(some))).round().long()
    return Spread(
        tuple(values.shape),
        low,
        high,
        mean,
        std,
        tuple(some[steps.to(some.device)].tolist()),
        whole=bool((some == some.round()).all()),
    )


def _sums(output: Tensor, there: Spread) -> tuple[bool, bool]:
    """Return over which axes probabilities, or those that these are logarithms of, sum to 1."""
    values = output.detach()
    if values.ndim < 2 or min(values.shape[:2]) < 2:
        return False, False
    logarithms = there.low < 0 and there.high <= 0
    if not logarithms and (there.low < 0 or there.high > 1 + NEAR):
        return False, False

    def ones(axis: int, rows: int) -> bool:
        some = values[:rows].double()
        some = some.exp() if logarithms else some
        return bool(((some.sum(axis) - 1).abs() < NEAR).all())

    few = max(2, MOST // max(values[0].numel(), 1))
    over_units = ones(1, few) or (values.ndim > 2 and ones(-1, few))
    return over_units, not over_units and values.numel() <= LARGE and ones(0, len(values))


def _mean_of(call: Call, out: object) -> float:
    """Return the loss that a call has made, if it is a mean; else nan."""
    mean = dict(call.kwargs).get("reduction", "mean") == "mean"
    is_number = isinstance(out, Tensor) and out.numel() == 1
    return float(out.detach()) if mean and is_number and isinstance(out, Tensor) else nan


def _at_bound(output: Tensor, labels: Tensor) -> tuple[int, float]:
    """Return how many classes are at the lower bound of outputs in all rows, or in their own.

    The bound is the lowest output of all, or one that several of a row have, as under a
    log-softmax. The second is the share of rows in which their own class is there.
    """
    rows = output.movedim(1, -1).flatten(0, -2) if output.ndim > 1 else output[None]
    own = labels.detach().flatten()
    known = (own >= 0) & (own < rows.shape[1])
    if len(own) != len(rows) or known.sum() < ROWS:
        return 0, 0.0
    rows, own = rows[known], own[known]
    held, share = 0, 0.0
    for every in (max(1, len(own) // SOME), 1):  # some rows nearly always tell that none is there
        some, classes, low = rows[::every], own[::every, None].long(), rows.min()
        there = some == some.amin(-1, keepdim=True)
        there &= (there.sum(-1, keepdim=True) > 1) | (some == low)
        held = int(there.all(0)[own.unique()].sum())
        share = float(there.gather(1, classes).double().mean())
        if every == 1 or not (held or share):
            break
    return held, share


def _why_refused(found: Compared) -> str:
    """Return why a loss does not take an output and a target, in PyTorch's words; "" if it does."""
    output, target = found.output, found.target
    if found.function in CLASSES and len(target.shape) == len(output.shape) - 1:
        if not found.labels:
            return "expected scalar type Long but found Float"
        if target.low < 0 or target.high >= found.units:
            return f"Target {target.low if target.low < 0 else target.high:.0f} is out of bounds."
    if found.function == "binary_cross_entropy" and prod(output.shape) == prod(target.shape):
        if output.low < 0 or output.high > 1:
            return "all elements of input should be between 0 and 1"
        if target.low < 0 or target.high > 1:
            return "all elements of target should be between 0 and 1"
    return ""
