"""The rows that a network is trained on, and batches of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, FloatArray
from vegrad.networks.sequences import Cuts


@dataclass(frozen=True)
class Batch:
    """Some rows, as the passes of a network take them."""

    x: Array
    target: Array
    lengths: npt.NDArray[np.int64] | None = None
    """Of sequences; None if they have none, or are all of the same length."""
    rows: Array | None = None
    """The numbers of these rows among all; None if they are all."""
    count: int = 0
    """How many rows there are in all, if these have numbers."""

    def prints(self) -> dict[str, str]:
        """Return a print of each array, by which others are told apart."""
        found = {"x": print_of(self.x), "target": print_of(self.target)}
        return found if self.lengths is None else found | {"lengths": print_of(self.lengths)}


class Rows:
    """Inputs x (N, …) and targets (N, …), of which each step of a training takes some rows."""

    cuts: Cuts | None = None
    """A truncation at random, with whose draws a checkpoint has to go on."""

    windows = 1
    """The most steps that are taken on a batch."""

    lengths: npt.NDArray[np.int64] | None = None
    """Of sequences; None if they have none, or are all of the same length."""

    def __init__(self, x: Array, target: Array) -> None:
        self.x, self.target = x, target

    def __len__(self) -> int:
        return len(self.x)

    @property
    def settings(self) -> Mapping[str, object]:
        """Settings that must be the same where a training goes on, as plain JSON types."""
        return {"rows": len(self)}

    @property
    def wanted(self) -> Array:
        """All the targets that count, a row or step each."""
        return self.target

    def prints(self) -> dict[str, str]:
        """Return a print of each array, by which other data are told apart."""
        return {"x": print_of(self.x), "target": print_of(self.target)}

    def take(self, rows: Array, *, whole: bool = False) -> Batch:
        """Return these rows for a look at the network: all of them that there is, if `whole`."""
        return Batch(self.x[rows], self.target[rows], rows=rows, count=len(self))

    def broken(self) -> Array:
        """Return the numbers of the rows with values that are not finite."""
        bad = ~np.isfinite(self.x).reshape(len(self), -1).all(axis=1)
        bad |= ~np.isfinite(self.target).reshape(len(self), -1).all(axis=1)
        return np.flatnonzero(bad)

    def steps(self, order: Array, batch_size: int) -> npt.NDArray[np.int64]:
        """Return the number of steps that are taken on each batch of rows in this order."""
        return np.ones(-(-len(order) // batch_size), np.int64)

    def shares(self, order: Array, batch_size: int) -> FloatArray:
        """Return how much each step counts in the mean over rows: 1 for the one with most."""
        starts = np.arange(0, len(order), batch_size)
        if self.windows == 1 and self.lengths is None:  # all rows count alike
            sizes = np.minimum(batch_size, len(order) - starts)
            return np.asarray(sizes / sizes[0])
        counts = [
            self.counted(order[start : start + batch_size], window)
            for start, windows in zip(starts, self.steps(order, batch_size), strict=True)
            for window in range(windows)
        ]
        return np.array(counts) / max(counts)

    def counted(self, rows: Array, window: int) -> int:
        """Return the number of targets that some rows have in a step's window."""
        return len(rows)


def print_of(array: Array) -> str:
    """Return the shape and kind of an array, with a checksum of its content.

    Of a memory map, which may be larger than memory, there is none.
    """
    what = f"{array.dtype}{list(array.shape)}"
    if isinstance(array, np.memmap):
        return what
    return f"{what} (checksum {zlib.crc32(np.ascontiguousarray(array).data):08x})"
