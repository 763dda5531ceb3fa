"""Operations that may mix the rows of a batch, told by shapes, and the passes that prove it.

A softmax along the first axis, a view where axes should have changed places, and a module that goes
along the first axis make each row's output depend on the others'. So does what is meant to (graphs,
sets), of which nothing is said: only these operations are looked at, and only where the outputs of
some rows do change as other rows stand beside them is there something to say.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.flow.data import Mixing
from vegrad.torch import models
from vegrad.torch.reading.call import Call
from vegrad.torch.reading.tensors import tensors_in
from vegrad.torch.rows import Take, still

SOFTMAX = {"softmax", "log_softmax"}
VIEWS = {"view", "reshape"}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
ATTENTION = "multi_head_attention_forward"
NEAR = 1e-4  # of an output's largest element


def suspected(call: Call, out: object, rows: int, module: str) -> Mixing | None:
    """Return a call that may mix the rows of a batch, by the shapes that it takes and makes."""
    x = call.source
    if rows < 2 or not isinstance(x, Tensor) or not isinstance(out, Tensor):
        return None
    kind = ""
    if call.name in SOFTMAX and _is_over_rows(call, x, rows):
        kind = "softmax"
    elif call.name in VIEWS and _is_view(x.shape, out.shape, rows):
        kind = "view"
    elif _goes_along(call, x, rows):
        kind = "along"
    return Mixing(kind, module, tuple(x.shape), tuple(out.shape)) if kind else None


def _goes_along(call: Call, x: Tensor, rows: int) -> bool:
    """Return True of a recurrent module or attention whose steps or tokens are the rows."""
    if x.ndim != 3 or len(x) != rows or x.shape[1] < 2:
        return False
    recurrent = call.name in RECURRENT and call.args[-1] is False  # batch_first
    return recurrent or call.name == ATTENTION


def _is_over_rows(call: Call, x: Tensor, rows: int) -> bool:
    """Return True of a softmax along the first axis, which PyTorch takes of 3 if none is given."""
    axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    axis = axis if isinstance(axis, int) else 0 if x.ndim in (0, 1, 3) else 1
    return x.ndim > 1 and axis in (0, -x.ndim) and len(x) % rows == 0


def _is_view(before: torch.Size, after: torch.Size, rows: int) -> bool:
    """Return True if a view takes the rows from the first place and another axis there."""
    if len(before) < 3 or len(after) < 3 or before[0] != rows or rows in before[1:]:
        return False
    return after[0] in before[1:] and after[0] > 1 and rows in after[1:]


def proven(
    found: tuple[Mixing, ...], model: Module, take: Take | None, count: int, target: object
) -> tuple[Mixing, ...]:
    """Return those found, if the outputs of rows do depend on the rows beside them.

    The model is copied, and run twice in evaluation mode on as many rows as the batch has: once as
    they are, and once with the first in the place of every other. Where outputs have more axes than
    a number for each row and unit, the first may be time.

    Args:
        found: suspects.
        model: the model.
        take: returns inputs and targets of rows; None if they have none in common.
        count: of all rows.
        target: the loss's.
    """
    if take is None or count < 2:
        return ()
    places = np.arange(count)
    try:
        copy = still(models.copied(model))
        one = _outputs(copy, take(places)[0], count)
        other = _outputs(copy, take(np.where(places % 2, 0, places))[0], count)
    except Exception:  # a model may do anything, also with rows that are alike
        return ()
    if not one or all(_are_same(a[::2], b[::2]) for a, b in zip(one, other, strict=True)):
        return ()
    plain = isinstance(target, Tensor) and all(each.ndim <= 2 for each in (*one, target))
    return tuple(each for each in found if each.kind == "view" or plain)


def _outputs(model: Module, x: object, count: int) -> list[Tensor]:
    with models.untouched(model):
        torch.manual_seed(0)
        made = [one.detach() for one in tensors_in(models.called(model, x))]
    return [one for one in made if one.ndim and len(one) == count and one.is_floating_point()]


def _are_same(one: Tensor, other: Tensor) -> bool:
    size = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(one, other, rtol=0.0, atol=NEAR * size, equal_nan=True)
