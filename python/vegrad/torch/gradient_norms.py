"""Norms of gradients, also of those on other devices and of those sharded over processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import repeat
from math import nan
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vegrad import _core
from vegrad.arrays.checks import FloatArray


def is_distributed(tensor: Tensor) -> bool:
    """Return True for a DTensor, of which this process may have a part only."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return what of a tensor is on this process: all of it, unless it is a DTensor."""
    return tensor.to_local() if is_distributed(tensor) else tensor


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
    try:
        norms[places] = _core.norms(local, 2.0)
    except (TypeError, ValueError):
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


def _local(grad: Tensor) -> Tensor:
    """Return the part of a gradient that is on this process, as a dense real tensor."""
    grad = local_part(grad)
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
