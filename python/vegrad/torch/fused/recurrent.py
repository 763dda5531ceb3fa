"""nn.LSTM, nn.GRU and nn.RNN, run by the passes of vegrad.RNN's core.

A layer of one direction is one node of autograd's graph. The parameters stay the module's own and
where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.torch.fused.conditions import DTYPES, NotFusedError, dtype_of, is_plain_run, refuse
from vegrad.torch.fused.gradients import Node

State: TypeAlias = Tensor | tuple[Tensor, ...] | None
Output: TypeAlias = tuple[Tensor | PackedSequence, State]

_saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)

_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "tanh", "RNN_RELU": "relu"}


class _Batch(NamedTuple):
    """The arguments of one call, as the passes take them."""

    x: Tensor  # (T, B, I), or (B, T, I) if batch_first
    batch_first: bool
    lengths: Array | None  # (B,)
    states: list[Tensor]  # each (layers · directions, B, H); none if the caller gave none
    back: Callable[[Tensor, list[Tensor]], Output]  # makes of output and states what is returned


class _Fused(nn.RNNBase):
    """The forward pass that FusedLSTM, FusedGRU and FusedRNN have in common."""

    _made: dict[tuple[int, torch.dtype], _core.RecurrentLayer]

    def forward(self, input: Tensor | PackedSequence, hx: State = None) -> Output:
        """Return the output and the last states, shaped as torch's modules shape them."""
        batch = None if torch.compiler.is_compiling() else self._batch(input, hx)
        if batch is None:
            found: Output = super().forward(input, hx)
            return found
        directions = 1 + self.bidirectional
        x, ends = batch.x, []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
            outs = []
            for place in range(directions * layer, directions * (layer + 1)):
                out, *end = self._pass(place, x, batch)
                outs.append(out)
                ends.append(end)
            x = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
        return batch.back(x, [torch.stack(states) for states in zip(*ends, strict=True)])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in super().__getstate__().items() if name != "_made"}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._made = {}

    def _pass(self, place: int, x: Tensor, batch: _Batch) -> Sequence[Tensor]:
        """Run one layer in one direction; return the output and the last states."""
        count = 4 if self.bias else 2
        weights: list[Tensor] = self._flat_weights[count * place : count * (place + 1)]
        states = [one[place] for one in batch.states]
        layer = self._made.get((place, x.dtype))
        if layer is None:
            sizes = x.shape[-1], self.hidden_size
            layer = _core.RecurrentLayer(*sizes, _CELLS[self.mode], DTYPES[x.dtype])
            self._made[place, x.dtype] = layer
        reverse = self.bidirectional and place % 2 == 1
        run = _Run(layer, batch.lengths, not batch.batch_first, reverse, len(states))
        if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *states, *weights)):
            outputs: Sequence[Tensor] = _apply(run, x, *states, *weights)
            return outputs
        return run.forward([x, *states, *weights], False)[0]

    def _batch(self, input: Tensor | PackedSequence, hx: State) -> _Batch | None:
        """Return the arguments as the passes take them, or None if they do not fit."""
        self._update_flat_weights()
        pair = self.mode == "LSTM"
        states: list[object] = list(hx) if pair and isinstance(hx, tuple | list) else [hx]
        if hx is None:
            states = []
        elif len(states) != 1 + pair:
            return None
        packed = isinstance(input, PackedSequence)
        x, weights = input.data if packed else input, self._flat_weights
        fits = (
            all(_is_plain(one, x) for one in (x, *states, *weights))
            and x.dtype in DTYPES
            and x.ndim in (2, 3)
            and x.shape[-1] == self.input_size
            and x.numel() > 0
            and [tuple(one.shape) for one in weights] == self._shapes()
            and is_plain_run()
        )
        if not fits:
            return None
        return self._packed(input, states) if packed else self._padded(input, states)

    def _padded(self, x: Tensor, states: list[Tensor]) -> _Batch | None:
        """Return the arguments if x is (T, B, I), (B, T, I) or (T, I), and the states fit to it."""
        single, axis = x.ndim == 2, 0 if self.batch_first else 1
        if any(one.ndim != x.ndim for one in states):
            return None
        if single:
            x, states = x.unsqueeze(axis), [one.unsqueeze(1) for one in states]
        if not self._are_states(states, x.shape[axis]):
            return None

        def back(out: Tensor, ends: list[Tensor]) -> Output:
            if single:
                out, ends = out.squeeze(axis), [one.squeeze(1) for one in ends]
            return out, self._as_one(ends)

        return _Batch(x, self.batch_first, None, states, back)

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

        return _Batch(x, False, lengths.numpy(), states, back)

    def _are_states(self, states: list[Tensor], rows: int) -> bool:
        shape = self.num_layers * (1 + self.bidirectional), rows, self.hidden_size
        return all(one.shape == shape for one in states)

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
    converted to another dtype, for inputs that do not fit) nn.LSTM's own runs.
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
    found = kind.__new__(kind)
    own = ("_modules", "_parameters", "_buffers", "_flat_weights")
    for name, value in vars(module).items():
        if name != "_compiled_call_impl":
            found.__dict__[name] = value.copy() if name in own else value
    found._made = {}
    return found


class _Run(NamedTuple):
    """One layer of one direction, and how it is to run over one batch."""

    layer: _core.RecurrentLayer
    lengths: Array | None
    time_major: bool
    reverse: bool
    states: int  # the number of states given: 0, 1 (h) or 2 (h, c)

    def forward(self, tensors: Sequence[Tensor], keep: bool) -> tuple[list[Tensor], object]:
        """Return output and last states for x, states and weights, and what was kept."""
        x, *rest = (one.detach().contiguous().numpy() for one in tensors)
        h, c = (*rest[: self.states], None, None)[:2]
        w_ih, w_hh, b_ih, b_hh = (*rest[self.states :], None, None)[:4]
        found = self.layer.forward(
            x, self.lengths, h, c, w_ih, w_hh, b_ih, b_hh, self.time_major, self.reverse, keep
        )
        *arrays, kept = found
        return [torch.from_numpy(one) for one in arrays if one is not None], kept

    def backward(
        self, kept: object, gradients: Sequence[Tensor | None], need_dx: bool
    ) -> list[Tensor | None]:
        """Return the gradients of x, the states and the weights."""
        given = [None if one is None else one.contiguous().numpy() for one in gradients]
        d_out, d_h, d_c = (*given, None)[:3]
        x, *rest = self.layer.backward(kept, d_out, d_h, d_c, need_dx)
        arrays = [x, *rest[: self.states], *rest[2:]]
        return [None if one is None else torch.from_numpy(one) for one in arrays]


class _Pass(Function):
    """One pass in autograd's graph."""

    @staticmethod
    def forward(ctx: Node, run: _Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Whoever has hooks on saved tensors (checkpoints, offloading) wants little to be kept.
        outputs, kept = run.forward(tensors, _saving_hooks(True) is None)
        ctx.run, ctx.kept = run, kept
        ctx.save_for_backward(*tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Node, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, second = ctx.saved_tensors, torch.is_grad_enabled()
        nothing = (None,) * (1 + len(tensors))
        if all(one is None for one in gradients):
            return nothing
        with torch.no_grad():
            kept = ctx.kept or ctx.run.forward(tensors, True)[1]
            if not _keeps_graph():
                ctx.kept = None  # the node itself may live on
            found = ctx.run.backward(kept, gradients, ctx.needs_input_grad[1])
        wanted = ctx.needs_input_grad[1:]  # fewer than were found if there are no biases
        chosen = [one if need else None for one, need in zip(found, wanted, strict=False)]
        if second:
            sources = [*tensors, *(one for one in gradients if one is not None)]
            name = "fused recurrent module"
            chosen = [None if one is None else refuse(name, one, *sources) for one in chosen]
        return None, *chosen


# As in sequential.py: without a search for wrappers that only torch.func makes.
_apply: Callable[..., tuple[Tensor, ...]] = super(Function, _Pass).apply


def _is_plain(tensor: object, x: Tensor) -> bool:
    """Return True for an ordinary tensor in the CPU's memory, of the dtype of x."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and isinstance(tensor, Tensor)
        and tensor.dtype is x.dtype
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )
