"""Norms of gradients wherever they lie: on other devices, in parts on other processes."""

from __future__ import annotations

import sys
from itertools import repeat
from math import nan
from operator import is_not
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vegrad import _core


def is_distributed(tensor: Any) -> bool:
    """Whether it is a DTensor, of which this process may have a part only."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def norms_of(grads: list[Tensor | None]) -> npt.NDArray[np.float64]:
    """The L2 norm of each gradient, nan for None. Shards' norms are summed over their processes."""
    if grads and all(map(is_not, grads, repeat(None))):
        try:  # as it mostly is
            return _core.norms(grads, 2.0)
        except (TypeError, ValueError):
            pass
    norms = np.full(len(grads), nan)
    places = [place for place, grad in enumerate(grads) if grad is not None]
    present: list[Any] = [grads[place] for place in places]
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


def _local(grad: Any) -> Tensor:
    """What of it is here, as a dense tensor."""
    if is_distributed(grad):
        grad = grad.to_local()
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values()
    return torch.view_as_real(grad) if grad.is_complex() else grad


def _sum_over_processes(norms: npt.NDArray[np.float64], places: list[int], grads: Any) -> None:
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
