"""Write down a pass as a graph: each operation, where it ran, and the size of what it made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, isfinite, log2, nan

import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.flow.data import Mixing
from vegrad.flow.reading import INPUT, MAPS, Operation
from vegrad.torch.models import size_log2
from vegrad.torch.reading.attention import apart, flatness
from vegrad.torch.reading.call import ADDS, BATCH_NORM, VIEWS, Call
from vegrad.torch.reading.edges import Edge, after, before, is_finite
from vegrad.torch.reading.factors import Factors
from vegrad.torch.reading.mixing import suspected
from vegrad.torch.reading.tensors import ByTensor, is_signal, tensors_in
from vegrad.torch.reading.values import Values

SAFE = 1e-15, 1e15  # between these, squares in float32 neither underflow nor overflow
PARALLEL = 0.95  # of their size, which rows have in common, from which they may be parallel
LEAST_FEATURES = 8  # of rows that may count as parallel


@dataclass
class Graph:
    """The operations of a pass on what comes from its inputs and parameters."""

    names: dict[int, str]
    """Names of the parameters by id."""
    buffers: frozenset[int] = frozenset()
    """The buffers by id."""
    operations: list[Operation] = field(default_factory=list)
    """In the order in which they ran."""
    variances: dict[int, float] = field(default_factory=dict)
    """log2 of the batch's variance where running ones stood in, by the id of the running ones."""
    outputs: Callable[[int, Tensor, bool, bool], None] | None = None
    """Called with the place and the output of each operation, whether it is a layer's, and whether
    it is a sum's."""
    end: int = -1
    """The place of the loss, after which those within it stand; -1 while the model runs."""
    strangers: dict[int, nn.Parameter] = field(default_factory=dict)
    """Parameters by id that the model uses and does not have."""
    mixing: list[Mixing] = field(default_factory=list)
    """Calls that may mix the rows of the batch."""
    rows: int = 0
    """Of the first input."""
    reached: set[int] | None = None
    """The leaves, by id, that a way leads back to from the loss; None if that is not known."""

    def __post_init__(self) -> None:
        self._made_by: ByTensor[int] = ByTensor()
        self.values = Values(self._made_by, {*self.names, *self.buffers})
        self.factors = Factors()
        self._views: ByTensor[str] = ByTensor()  # parameters seen through views of them
        self._running: list[str] = []
        self._is_given_lost = False

    def _name(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter, or of the one that a tensor is a view of."""
        return self.names.get(id(tensor)) or self._views.get(tensor)

    def place_of(self, tensor: Tensor) -> int | None:
        """Return the place of the operation that made a tensor; INPUT of inputs, None of others."""
        return self._made_by.get(tensor)

    def begin(self, inputs: list[Tensor]) -> None:
        """Take in the tensors that the model is given."""
        for one in inputs:
            self._made_by[one] = INPUT
        self._is_given_lost = any(map(_is_lost, inputs))
        self.factors.begin(inputs)
        self.rows = len(inputs[0]) if inputs and inputs[0].ndim else 0

    def end_model(self, target: object = None) -> None:
        """Put the loss in its place: what runs from now on runs within it, on this target."""
        self.end = len(self.operations)
        self.operations.append(Operation("loss", "loss", (self.end - 1,)))
        self.values.give(target)

    def end_loss(self, *losses: Tensor) -> None:
        """Leave out what ran within the loss after it was made, and note what leads to it."""
        places = {place for one in losses if (place := self._made_by.get(one)) is not None}
        if not places:
            return
        del self.operations[max(*places, self.end) + 1 :]
        within = {n for one in self.operations[self.end + 1 :] for n in one.below if n < self.end}
        below = within if max(places) > self.end else places
        self.operations[self.end] = replace(self.operations[self.end], below=tuple(sorted(below)))

    @contextmanager
    def following(self, model: Module) -> Iterator[None]:
        """Note which module of the model each operation runs in."""
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(_Enter(self._running, name)))
            hooks.append(module.register_forward_hook(_Leave(self._running), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def run(
        self, call: Call, factors: Sequence[Tensor] | None = None
    ) -> tuple[object, list[Tensor], int | None]:
        """Run a call, and append it unless it has nothing to do with inputs and parameters.

        Args:
            call: what is called.
            factors: those of its tensors that `Factors.of` returns, if that is known.

        Returns:
            What it returned, the tensors therein, and its place if it was appended.
        """
        parameters = tuple(name for one in call.tensors if (name := self._name(one)) is not None)
        below = [self._made_by.get(one) for one in call.tensors]
        ours = bool(parameters) or below.count(None) < len(below)
        edge = before(call) if ours or self.values.knows(call) else None
        if factors is None:
            factors = self.factors.of(call)
        multiplied = tuple(map(self._made_by.get, factors))
        out = call.function(*call.args, **call.kwargs)
        made = tensors_in(out)
        self.factors.made(call, made, bool(parameters))
        place = self._ran(call, made, edge, parameters, below)
        if multiplied and place is not None:
            self.operations[place] = replace(self.operations[place], factors=multiplied)
        return out, made, place

    def _ran(
        self,
        call: Call,
        made: list[Tensor],
        edge: Edge | None,
        parameters: tuple[str, ...],
        below: list[int | None],
    ) -> int | None:
        """Append a call that was run; `below` are the places at which its tensors were made."""
        given = call.tensors if call.name.startswith("embedding") else call.signals
        places = below if len(given) == len(below) else map(self._made_by.get, given)
        known = {one for one in places if one is not None}
        if self.end < 0:
            self.strangers |= _strangers(call, below, self.names)
        if not made or not (parameters or known):
            self.values.pass_on(call, made, edge)
            return None
        if call.name in VIEWS and len(parameters) == 1 and not known:
            for one in made:
                self._views[one] = parameters[0]
        return self._append(call, made, edge, parameters, known)

    def _append(
        self,
        call: Call,
        made: list[Tensor],
        edge: Edge | None,
        parameters: tuple[str, ...],
        known: set[int],
    ) -> int:
        """Append a call with the sizes of what it has made; return its place."""
        place, out = len(self.operations), made[0]
        path = parameters[0].rpartition(".")[0] if parameters else self.module
        rms = flat = alike = keys = nan
        numbers = is_signal(out) and out.layout is torch.strided
        measured = call.name not in VIEWS and numbers
        if measured:
            rms = rms_log2(out)
            flat, alike, keys = flatness(call, out), shared(out, rms), apart(call)
        if call.name == "batch_norm":
            self.variances |= _variance(call)
        mixing = suspected(call, out, self.rows, self.module) if self.end < 0 else None
        self.mixing += [] if mixing is None else [mixing]
        lost = not rms < inf if measured else numbers and self._carries(out, known)
        edge = edge or (after(call, out, lost) if measured else None)
        cause = edge.cause if edge is not None else ""
        if lost and edge is None:
            several = [self.operations[n] for n in known if n != INPUT]
            cause = self.values.cause(call, made, rms, several)
        elif not lost and _cuts(call, made):
            ended = call.kind in ("detach", "get") or not torch.is_grad_enabled()
            cause = "detached" if ended else "no-derivative"
        if edge is not None:
            self.values.at_edge(place, edge)
        for one in made:
            self._made_by[one] = place
        self.operations.append(
            Operation(
                call.kind,
                path,
                tuple(sorted(known)),
                parameters,
                rms,
                flat=flat,
                alike=alike,
                keys=keys,
                lost=lost,
                edge=cause,
            )
        )
        if self.outputs is not None and measured:
            in_model = self.end < 0
            self.outputs(place, out, in_model and call.name in MAPS, in_model and call.raw in ADDS)
        return place

    def _carries(self, out: Tensor, known: set[int]) -> bool:
        """Return True if a view of what is not finite is not finite either."""
        lost = any(self.operations[n].lost for n in known if n != INPUT) and not is_finite(out)
        return lost or (self._is_given_lost and INPUT in known and _is_lost(out))

    @property
    def module(self) -> str:
        """The path of the module that runs at the moment."""
        return self._running[-1] if self._running else ""

    def with_deltas(self, sizes: dict[int, float]) -> list[Operation]:
        """Return the operations with δ, which is inf where it is not finite."""
        hidden, found = self.values.hidden(self.operations), list[Operation]()
        for place, one in enumerate(self.operations):
            size = sizes.get(place, nan)
            delta = size if size == size else inf if place in sizes else nan
            if delta == delta or place in hidden:
                edge = "where-branch" if place in hidden else one.edge
                one = replace(one, delta_log2=delta, edge=edge)
            found.append(one)
        return found


def _is_lost(given: Tensor) -> bool:
    """Return True of data that no network can take; those that are -inf may be a mask."""
    unknown = given.is_meta or given.is_nested or given.layout is not torch.strided
    if unknown or not is_signal(given):
        return False
    values = given.detach()
    return bool((values.isnan() | (values == inf)).any())


def _strangers(
    call: Call, below: Sequence[int | None], names: Collection[int]
) -> dict[int, nn.Parameter]:
    """Return parameters that a call trains and the model does not have, by id."""
    found = {}
    for one, place in zip(call.tensors, below, strict=True):
        if place is not None or not one.requires_grad or id(one) in names:
            continue
        if isinstance(one, nn.Parameter) and torch.is_grad_enabled():
            found[id(one)] = one
    return found


def _variance(call: Call) -> dict[int, float]:
    """Return log2 of the batch's own variance where running statistics stand in, by their id."""
    given = dict(zip(BATCH_NORM, call.args, strict=False)) | dict(call.kwargs)
    running, x = given.get("running_var"), given["input"].detach()
    if running is None or given.get("training"):
        return {}
    own = x.double().var([n for n in range(x.ndim) if n != 1], correction=0).mean()
    return {id(running): log2(float(own)) if 0 < own < inf else nan}


def _cuts(call: Call, made: list[Tensor]) -> bool:
    """Return True if something that a gradient could come back to goes in, and it ends there."""
    comes = any(one.requires_grad for one in call.tensors)
    return comes and not any(one.requires_grad for one in made)


class _Enter:
    def __init__(self, running: list[str], name: str) -> None:
        self.running, self.name = running, name

    def __call__(self, module: Module, args: object) -> None:
        self.running.append(self.name)


class _Leave:
    def __init__(self, running: list[str]) -> None:
        self.running = running

    def __call__(self, module: Module, args: object, output: object) -> None:
        if self.running:
            self.running.pop()


def rms_log2(tensor: Tensor) -> float:
    """Return log2 of the root mean square of the elements: -inf of zeros, nan where one is."""
    count = tensor.numel()
    if not count:
        return -inf
    values = tensor.detach()
    if values.dtype is torch.float32 or values.is_complex():
        size = float(torch.linalg.vector_norm(values))
        if SAFE[0] < size < SAFE[1]:
            return log2(size) - log2(count) / 2
    size = size_log2(values)
    return size - log2(count) / 2 if isfinite(size) else size


def shared(tensor: Tensor, rms: float) -> float:
    """Return the share of the size of a tensor that its mean over rows has.

    Where that is nearly all of it, rows are taken without their sizes, in which alone they may
    differ: nodes of a graph that have been averaged are alike but for their degrees.
    """
    if tensor.ndim < 2 or len(tensor) < 2 or not -inf < rms < inf:
        return nan
    mean = rms_log2(tensor.detach().mean(0))
    share = min(float(2.0 ** (mean - rms)), 1.0)
    if share < PARALLEL or tensor[0].numel() < LEAST_FEATURES or tensor.is_complex():
        return share
    rows = tensor.detach().flatten(1)
    rows = rows if rows.dtype is torch.float64 else rows.float()
    rows = torch.nn.functional.normalize(rows, dim=1, eps=1e-30)
    return max(share, min(float(rows.mean(0).norm()), 1.0))
