"""Measure what lets little through: flat activations, rows of attention that see one key, or all.

Attention is PyTorch's own, or a softmax over the last axis of three or more.
"""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from vegrad.torch.reading.call import ATTENTION, Call

# Outputs of activations at and beyond which the derivative is below 5 % of its largest.
BENDS = {
    "relu": (0.0, inf),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0127, 0.9873),
    "tanh": (-0.9747, 0.9747),
}
LEAST_KEYS = 4  # of attention that is looked at
SHARP = 0.99  # of its weight on one key, a row of attention counts as flat
SOME = 2  # samples that are looked at
MASKED = -1e4  # what is lower is a mask, and no product of query and key


def flatness(call: Call, out: Tensor) -> float:
    """Return the share of an output that is flat, for activations and attention."""
    limits = BENDS.get(call.name)
    if limits is None:
        return _sharpness(call, out)
    values = out.detach()
    low, high = limits
    return float(((values <= low) | (values >= high)).double().mean()) if values.numel() else nan


def _sharpness(call: Call, out: Tensor) -> float:
    """Return the share of attention's rows with nearly all weight on one of several keys."""
    if call.name in ATTENTION and len(call.args) > 1:
        query, key = (one.detach()[:2].float() for one in call.args[:2])
        if query.shape[:-2] != key.shape[:-2]:
            return nan
        logits = query @ key.mT * (call.kwargs.get("scale") or query.shape[-1] ** -0.5)
        if call.kwargs.get("is_causal"):
            above = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(above, -inf)
        out = logits.softmax(-1)
    elif call.name != "softmax" or out.ndim < 3:
        return nan
    if out.shape[-1] < LEAST_KEYS or not out.numel():
        return nan
    return float((out.detach().amax(-1) > SHARP).double().mean())


def apart(call: Call) -> float:
    """Return the share of their size by which the keys of attention differ; nan of other calls.

    Of a softmax it is the products with the keys that are compared, where no mask hides them.
    """
    if call.name in ATTENTION and len(call.args) > 1:
        keys, axis = call.args[1].detach()[:SOME], -2
    elif call.name == "multi_head_attention_forward" and call.args[1].ndim > 2:
        keys, axis = call.args[1].detach()[:, :SOME], 0
    elif call.name == "softmax" and _axis(call) == -1 and isinstance(call.source, Tensor):
        keys, axis = call.source.detach()[:SOME], -1
        if keys.ndim < 3:
            return nan
    else:
        return nan
    if keys.ndim < 2 or keys.shape[axis] < LEAST_KEYS or not keys.numel():
        return nan
    shown = keys > MASKED
    keys = keys.float().where(shown, 0.0)
    mean = keys.sum(axis, keepdim=True) / shown.sum(axis, keepdim=True).clamp(min=1)
    size = float(keys.norm())
    return float((keys - mean).where(shown, 0.0).norm()) / size if 0 < size < inf else nan


def _axis(call: Call) -> int | None:
    """Return the axis of a softmax, -1 of the last."""
    axis = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if not isinstance(axis, int) or not isinstance(call.source, Tensor):
        return None
    return -1 if axis in (-1, call.source.ndim - 1) else axis
