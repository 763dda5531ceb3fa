"""Norms of gradients, also of those on other devices and of those sharded over processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import repeat
from math import inf, nan, sqrt
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vegrad import _core
from vegrad.arrays.checks import FloatArray

BLOCK, MANY = 128, 1 << 12  # elements that are read at a time; of a gradient that is read in part


def is_distributed(tensor: Tensor) -> bool:
    """Return True for a DTensor, of which this process may have a part only."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def norms_of(grads: Sequence[Tensor | None]) -> FloatArray:
    """Return the L2 norm of each gradient, nan for None.

    The norm of a sharded gradient is that of the whole: all its processes must call this.
    """
    if grads and all(map(is_not, grads, repeat(None))):
        try:  # the usual case: all are there, on the CPU
            return _core.norms(grads, 2.0)
        except (TypeError, ValueError):
            pass
    norms = np.full(len(grads), nan)
    places = [place for place, grad in enumerate(grads) if grad is not None]
    present = [grad for grad in grads if grad is not None]
    if not present:
        return norms
    try:
        norms[places] = _core.norms(present, 2.0)
        return norms
    except (TypeError, ValueError):
        pass
    local = [_local(grad) for grad in present]
    elsewhere: list[tuple[int, Tensor]] = []
    for place, grad in zip(places, local, strict=True):
        try:
            norms[place] = _core.norm(grad, 2.0)
        except (TypeError, ValueError):
            if grad.device.type != "meta":
                elsewhere.append((place, torch.linalg.vector_norm(grad)))
    if elsewhere:
        device = elsewhere[0][1].device
        values = torch.stack([one.to(device, torch.float32) for _, one in elsewhere]).tolist()
        for (place, _), value in zip(elsewhere, values, strict=True):
            norms[place] = value
    _sum_over_processes(norms, places, present)
    return norms


def some_norms(
    parameters: Sequence[Tensor], part: int, turn: int, more: int
) -> tuple[float, bytes] | None:
    """Return estimates of the joint norm of gradients and of each one's, from one in `part` blocks.

    Args:
        parameters: those whose gradients are read.
        part: one in so many blocks is read of each gradient that has `MANY` elements of them.
        turn: the number of the step; those after each other read other blocks.
        more: number of nan that follow the norms in the bytes.

    Returns:
        As `_core.Watch.record`; None if a gradient is missing or not plain, or what was read is not
        finite.
    """
    grads, scale = [], np.full(len(parameters) + more, nan)
    for place, one in enumerate(parameters):
        grad = one.grad
        if type(grad) is not Tensor:
            return None
        count, scale[place] = grad.numel(), 1.0
        if count >= MANY * part and grad.is_contiguous():
            rows = count // (BLOCK * part)
            offset = grad.storage_offset() + turn % part * BLOCK
            grad = grad.as_strided((rows, BLOCK), (BLOCK * part, 1), offset)
            scale[place] = sqrt(count / (rows * BLOCK))
        grads.append(grad)
    try:
        scale[: len(grads)] *= _core.norms(grads, 2.0)
    except (TypeError, ValueError):
        return None
    norms = scale[: len(grads)]
    joint = sqrt(float(norms @ norms))
    return (joint, scale.tobytes()) if joint < inf else None


def _local(grad: Tensor) -> Tensor:
    """Return the part of a gradient that is on this process, as a dense real tensor."""
    if is_distributed(grad):
        grad = grad.to_local()
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values()
    return torch.view_as_real(grad) if grad.is_complex() else grad


def _sum_over_processes(norms: FloatArray, places: list[int], grads: list[Tensor]) -> None:
    """Replace the norms of shards by those of the whole gradients, in place.

    Args:
        norms: one entry for each gradient of the model.
        places: the entries of `grads`.
        grads: the gradients that are not None.
    """
    # One sum for all gradients that are sharded along the same axis of the same mesh.
    groups: dict[tuple[Any, int], list[int]] = {}
    for place, grad in zip(places, grads, strict=True):
        if is_distributed(grad):
            for axis, placement in enumerate(grad.placements):
                if placement.is_shard():
                    groups.setdefault((grad.device_mesh, axis), []).append(place)
    for (mesh, axis), chosen in groups.items():
        squares = torch.from_numpy(np.square(norms[chosen])).to(mesh.device_type)
        torch.distributed.all_reduce(squares, group=mesh.get_group(axis))
        norms[chosen] = np.sqrt(squares.cpu().numpy())
