"""nn.LSTM, nn.GRU and nn.RNN, run by the passes of vegrad.RNN's core.

A layer of one direction is one node of autograd's graph. The parameters stay the module's own and
where they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.torch.fused.conditions import (
    DTYPES,
    NotFusedError,
    as_array,
    as_kind,
    dtype_of,
    is_plain_run,
    refuse,
)
from vegrad.torch.fused.gradients import Node

State: TypeAlias = Tensor | tuple[Tensor, ...] | None
Output: TypeAlias = tuple[Tensor | PackedSequence, State]

_saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)

NAME = "fused recurrent module"
_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "tanh", "RNN_RELU": "relu"}


class _Order(NamedTuple):
    """The order of a batch's axes, and how long its rows are."""

    time_major: bool
    lengths: Array | None  # (B,); None: all are as long as the batch


_STEPS_FIRST, _ROWS_FIRST = _Order(True, None), _Order(False, None)


class _Batch(NamedTuple):
    """The arguments of one call, as the passes take them."""

    x: Tensor  # (T, B, I), or (B, T, I) if not time_major
    order: _Order
    states: list[Tensor]  # each (layers · directions, B, H); none if the caller gave none
    back: Callable[[Tensor, list[Tensor]], Output]  # makes of output and states what is returned


class _Cell(NamedTuple):
    """One layer of one direction, with its weights and the memory that they lie in."""

    layer: _core.RecurrentLayer
    reverse: bool
    weights: list[Tensor]
    arrays: tuple[Array, Array, Array | None, Array | None]

    def forward(
        self, order: _Order, x: Tensor, states: Sequence[Tensor], keep: bool
    ) -> tuple[list[Tensor], object]:
        """Return the output, the last states (1, B, H), and what is kept for the way back."""
        time_major, lengths = order
        h = states[0].contiguous().numpy() if states else None
        c = states[1].contiguous().numpy() if len(states) > 1 else None
        out, last_h, last_c, kept = self.layer.forward(
            x.contiguous().numpy(), lengths, h, c, *self.arrays, time_major, self.reverse, keep
        )
        outputs = [torch.from_numpy(out), torch.from_numpy(last_h[None])]
        if last_c is not None:
            outputs.append(torch.from_numpy(last_c[None]))
        return outputs, kept

    def backward(
        self, kept: object, gradients: Sequence[Tensor | None], states: int, need_dx: bool
    ) -> list[Tensor | None]:
        """Return the gradients of x, as many states as were given, and the weights."""
        d_out, *ends = (None if one is None else as_array(one, NAME) for one in gradients)
        d_h, d_c = (*(None if one is None else one[0] for one in ends), None)[:2]
        found = self.layer.backward(kept, d_out, d_h, d_c, need_dx)
        chosen = *found[: 1 + states], *found[3 : 3 + len(self.weights)]
        return [None if one is None else torch.from_numpy(one) for one in chosen]


class _Bound(NamedTuple):
    """The weights of a module where they lay when they were last looked at."""

    parameters: dict[str, Tensor]  # the module's own dictionary
    own: list[Tensor]
    holders: list[tuple[dict[str, Tensor], str]]
    places: bytes
    cells: list[_Cell]

    def needed(self) -> bytes | None:
        """Return a byte for each weight, 1 if it needs a gradient; None if one was moved."""
        return _core.unmoved(self.own, self.holders, self.places)


class _Fused(nn.RNNBase):
    """The forward pass that FusedLSTM, FusedGRU and FusedRNN have in common."""

    _bound: _Bound | None

    def forward(self, input: Tensor | PackedSequence, hx: State = None) -> Output:
        """Return the output and the last states, shaped as torch's modules shape them."""
        batch = None if torch.compiler.is_compiling() else self._batch(input, hx)
        weights = None if batch is None else self._weights()
        if batch is None or weights is None or weights[0].own[0].dtype is not batch.x.dtype:
            found: Output = super().forward(input, hx)
            return found
        bound, needed = weights
        grad = torch.is_grad_enabled() and (
            1 in needed or any(one.requires_grad for one in (batch.x, *batch.states))
        )
        x, ends = batch.x, []
        directions = 1 + self.bidirectional
        for place, cell in enumerate(bound.cells):
            if place % directions == 0:
                if place and self.dropout:
                    x = functional.dropout(x, self.dropout, self.training)
                outs = []
            states = [one[place] for one in batch.states]
            if grad:
                out, *end = _apply(cell, batch.order, x, *states, *cell.weights)
            else:
                out, *end = cell.forward(batch.order, x, states, False)[0]
            outs.append(out)
            ends.append(end)
            if len(outs) == directions:
                x = out if directions == 1 else torch.cat(outs, -1)
        return batch.back(
            x, ends[0] if len(ends) == 1 else list(map(torch.cat, zip(*ends, strict=True)))
        )

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_bound": None}

    def __prepare_scriptable__(self) -> nn.RNNBase:
        kind = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(self.mode, nn.RNN)
        return as_kind(self, kind, ["_bound"])

    def _weights(self) -> tuple[_Bound, bytes] | None:
        """Return where the weights lie, and which need a gradient; None if they do not fit."""
        bound = self._bound
        if bound is not None and bound.parameters is self._parameters:
            needed = bound.needed()
            if needed is not None:
                return bound, needed
        bound = self._bind()
        # Tensors that only pass through (torch.func.functional_call) are not to be held.
        lasting = bound is not None and all(type(one) is nn.Parameter for one in bound.own)
        self._bound = bound if lasting else None
        needed = None if bound is None else bound.needed()
        return None if bound is None or needed is None else (bound, needed)

    @torch.inference_mode(False)
    def _bind(self) -> _Bound | None:
        """Look where the weights lie; return None if the passes cannot read them there."""
        names, directions, count = (
            self._flat_weights_names,
            1 + self.bidirectional,
            2 + 2 * self.bias,
        )
        weights = [self._parameters.get(name) for name in names]
        dtype = getattr(weights[0], "dtype", None)
        own = [one for one in weights if _is_plain(one, dtype) and one.is_contiguous()]
        if dtype not in DTYPES or [tuple(one.shape) for one in own] != self._shapes():
            return None
        cells = []
        for place in range(self.num_layers * directions):
            mine = own[count * place : count * (place + 1)]
            w_ih, w_hh, b_ih, b_hh = (*(one.detach().numpy() for one in mine), None, None)[:4]
            sizes = mine[0].shape[1], self.hidden_size
            layer = _core.RecurrentLayer(*sizes, _CELLS[self.mode], DTYPES[dtype])
            cells.append(_Cell(layer, place % directions == 1, mine, (w_ih, w_hh, b_ih, b_hh)))
        places = struct.pack(f"={len(own)}Q", *map(Tensor.data_ptr, own))
        holders = [(self._parameters, name) for name in names]
        return _Bound(self._parameters, own, holders, places, cells)

    def _batch(self, input: Tensor | PackedSequence, hx: State) -> _Batch | None:
        """Return the arguments as the passes take them, or None if they do not fit."""
        states: list[object] = []
        if hx is not None:
            pair = self.mode == "LSTM"
            states = list(hx) if pair and isinstance(hx, tuple | list) else [hx]
            if len(states) != 1 + pair:
                return None
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input
        dtype = getattr(x, "dtype", None)
        fits = (
            _is_plain(x, dtype)
            and (not states or all(_is_plain(one, dtype) for one in states))
            and x.ndim in (2, 3)
            and x.shape[-1] == self.input_size
            and x.numel() > 0
            and is_plain_run()
        )
        if not fits:
            return None
        return self._packed(input, states) if packed else self._padded(input, states)

    def _padded(self, x: Tensor, states: list[Tensor]) -> _Batch | None:
        """Return the arguments if x is (T, B, I), (B, T, I) or (T, I), and the states fit to it."""
        single, axis = x.ndim == 2, 0 if self.batch_first else 1
        order = _ROWS_FIRST if self.batch_first else _STEPS_FIRST
        if not (single or states):
            return _Batch(x, order, states, self._both)
        if any(one.ndim != x.ndim for one in states):
            return None
        if single:
            x, states = x.unsqueeze(axis), [one.unsqueeze(1) for one in states]
        if not self._are_states(states, x.shape[axis]):
            return None

        def back(out: Tensor, ends: list[Tensor]) -> Output:
            if single:
                out, ends = out.squeeze(axis), [one.squeeze(1) for one in ends]
            return self._both(out, ends)

        return _Batch(x, order, states, back)

    def _packed(self, packed: PackedSequence, states: list[Tensor]) -> _Batch | None:
        """Return the arguments if x is packed; its rows stay in the order that they lie in."""
        _, sizes, order, old_order = packed
        if not self._are_states(states, int(sizes[0])):
            return None
        x, lengths = pad_packed_sequence(PackedSequence(packed.data, sizes))
        if order is not None:
            states = [one.index_select(1, order) for one in states]

        def back(out: Tensor, ends: list[Tensor]) -> Output:
            if old_order is not None:
                ends = [one.index_select(1, old_order) for one in ends]
            data = pack_padded_sequence(out, lengths).data
            return PackedSequence(data, sizes, order, old_order), self._as_one(ends)

        return _Batch(x, _Order(True, lengths.numpy()), states, back)

    def _are_states(self, states: list[Tensor], rows: int) -> bool:
        shape = self.num_layers * (1 + self.bidirectional), rows, self.hidden_size
        return all(one.shape == shape for one in states)

    def _both(self, out: Tensor, ends: list[Tensor]) -> Output:
        return out, self._as_one(ends)

    def _as_one(self, states: list[Tensor]) -> State:
        return tuple(states) if self.mode == "LSTM" else states[0]

    def _shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes that the weights must have."""
        gates = {"LSTM": 4, "GRU": 3}.get(self.mode, 1) * self.hidden_size
        directions = 1 + self.bidirectional
        shapes: list[tuple[int, ...]] = []
        for layer in range(self.num_layers):
            inputs = self.hidden_size * directions if layer else self.input_size
            one = [(gates, inputs), (gates, self.hidden_size), *[(gates,)] * (2 * self.bias)]
            shapes += one * directions
        return shapes


class FusedLSTM(_Fused, nn.LSTM):
    """An nn.LSTM that runs each layer and direction in one pass; `fuse` makes it.

    Where the pass does not fit (under autocast, after the module was moved to another device or
    converted to another dtype, for inputs that do not fit) nn.LSTM's own runs. torch.jit.script
    compiles an nn.LSTM, and leaves it in place of this one in the model that it was given. Of
    gradients it takes one at a time: batches of them (is_grads_batched) are a RuntimeError.
    """


class FusedGRU(_Fused, nn.GRU):
    """An nn.GRU that runs each layer and direction in one pass; see FusedLSTM."""


class FusedRNN(_Fused, nn.RNN):
    """An nn.RNN that runs each layer and direction in one pass; see FusedLSTM."""


FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward, _Fused.forward)


def fused(module: nn.RNNBase) -> nn.RNNBase:
    """Return a module with one of these forward()s as one that runs in passes.

    Raises:
        NotFusedError: if the passes cannot do what the module does.
    """
    if module.proj_size:
        raise NotFusedError(
            f"proj_size must be 0, not {module.proj_size}: there are no projections"
        )
    names = module._flat_weights_names
    if not module._parameters.keys() >= set(names):
        raise NotFusedError(f"{', '.join(names)} must be parameters of the module")
    dtype_of([module._parameters[name] for name in names])
    kind = {"LSTM": FusedLSTM, "GRU": FusedGRU}.get(module.mode, FusedRNN)
    found = as_kind(module, kind, ["_compiled_call_impl"])
    found._bound = None
    return found


class _Pass(Function):
    """One pass in autograd's graph."""

    @staticmethod
    def forward(
        ctx: Node, cell: _Cell, order: _Order, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        states = tensors[: len(tensors) - len(cell.weights)]
        # Whoever has hooks on saved tensors (checkpoints, offloading) wants little to be kept.
        outputs, ctx.kept = cell.forward(order, x, states, _saving_hooks(True) is None)
        ctx.cell, ctx.order = cell, order
        ctx.save_for_backward(x, *tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Node, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            with torch.no_grad():
                found = _Pass.run(ctx, gradients)
            tensors = (*ctx.saved_tensors, *(one for one in gradients if one is not None))
            found = [None if one is None else refuse(NAME, one, *tensors) for one in found]
        else:
            found = _Pass.run(ctx, gradients)
        return None, None, *found

    @staticmethod
    def run(ctx: Node, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of x, the states and the weights, None where none is needed."""
        x, *tensors = ctx.saved_tensors
        cell, kept = ctx.cell, ctx.kept
        states = tensors[: len(tensors) - len(cell.weights)]
        needed = ctx.needs_input_grad[2:]
        if all(one is None for one in gradients):
            return [None] * len(needed)
        if kept is None:
            kept = cell.forward(ctx.order, x, states, True)[1]
        elif not _keeps_graph():
            ctx.kept = None  # the node itself may live on
        found = cell.backward(kept, gradients, len(states), needed[0])
        return [one if need else None for one, need in zip(found, needed, strict=True)]


# As in sequential.py: without a search for wrappers that only torch.func makes.
_apply: Callable[..., tuple[Tensor, ...]] = super(Function, _Pass).apply


def _is_plain(tensor: object, dtype: object) -> TypeGuard[Tensor]:
    """Return True for an ordinary tensor in the CPU's memory, of this dtype."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and isinstance(tensor, Tensor)
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )
