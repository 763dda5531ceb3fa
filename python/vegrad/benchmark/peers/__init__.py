"""The same work in each library, written as its users would write it.

A pass computes the loss and the gradients of all weights and biases, and leaves them in memory; the
gradient with respect to the data is not asked for. A clip scales gradients by their joint norm, in
place. A step of AdamW clips first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array
from vegrad.benchmark.peers.activations import KINKED, UNBOUNDED
from vegrad.benchmark.peers.jax import Jax
from vegrad.benchmark.peers.lists import Lists, ListsAdamW, ListsClip
from vegrad.benchmark.peers.numpy import NumPy, NumPyAdamW, NumPyClip
from vegrad.benchmark.peers.own import (
    Vegrad,
    VegradAdamW,
    VegradClip,
    VegradFloat64,
    VegradWithoutFlow,
)
from vegrad.benchmark.peers.problem import (
    Buffers,
    Case,
    Peer,
    Problem,
    Result,
    right_clipped,
    right_stepped,
)
from vegrad.benchmark.peers.torch import (
    Torch,
    TorchAdamW,
    TorchClip,
    TorchFlushed,
    VegradTensorsAdamW,
    VegradTensorsClip,
)

__all__ = [
    "CLIPS",
    "KINKED",
    "PASSES",
    "PEERS",
    "STEPS",
    "UNBOUNDED",
    "Buffers",
    "Case",
    "Jax",
    "Lists",
    "NumPy",
    "Peer",
    "Problem",
    "Torch",
    "TorchFlushed",
    "Vegrad",
    "VegradFloat64",
    "VegradWithoutFlow",
    "furthest",
    "installed",
    "largest_difference",
    "right_clipped",
    "right_stepped",
]

PEERS: tuple[type[Peer], ...] = (
    Lists,
    NumPy,
    Torch,
    TorchFlushed,
    Jax,
    VegradWithoutFlow,
    VegradFloat64,
    Vegrad,
)
PASSES: tuple[type[Peer], ...] = (Lists, NumPy, Torch, Jax, Vegrad)
CLIPS: tuple[type[Peer], ...] = (ListsClip, NumPyClip, TorchClip, VegradTensorsClip, VegradClip)
STEPS: tuple[type[Peer], ...] = (
    ListsAdamW,
    NumPyAdamW,
    TorchAdamW,
    VegradTensorsAdamW,
    VegradAdamW,
)


def installed(peer: type[Peer]) -> bool:
    """Return True if the module that a peer needs is installed."""
    return peer.module is None or importlib.util.find_spec(peer.module) is not None


def largest_difference(result: Result, reference: Result) -> float:
    """Return how far a pass is from the reference, relative to each gradient's largest element.

    Elements below the normal range of float32 do not count, as some libraries flush them to zero.
    """
    (loss, gradients), (right_loss, right_gradients) = result, reference
    got = [array for pair in gradients for array in pair]
    right = [array for pair in right_gradients for array in pair]
    return max(abs(loss - right_loss) / abs(right_loss), furthest(got, right))


def furthest(found: Sequence[npt.ArrayLike], right: Sequence[Array]) -> float:
    """Return the largest difference of arrays or flat lists, relative to their largest elements."""
    worst = 0.0
    floor = 1e5 * np.finfo(np.float32).tiny
    for got, wanted in zip(found, right, strict=True):
        array = np.asarray(got, np.float64)
        if array.size != wanted.size or not np.isfinite(array).all():
            return inf
        off = np.abs(array.reshape(wanted.shape) - wanted).max()
        worst = max(worst, float(off / (np.abs(wanted).max() + floor)))
    return worst
