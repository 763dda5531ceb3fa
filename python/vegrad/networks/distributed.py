"""One training by several processes: each passes over its part of every batch.

The gradients of a network lie in one block of memory, which is summed over the processes in place
by one call before each step. All processes clip and step by the same sum, so that their weights,
records and findings stay equal; what is for a person's eyes comes from rank 0 alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Protocol, TypeVar

import numpy as np

from vegrad.arrays.checks import Array, FloatArray
from vegrad.arrays.measurement import norms
from vegrad.networks.rows import Batch, Rows

T = TypeVar("T")
NAMES = ("Get_rank", "Get_size", "Allreduce", "allgather", "bcast", "Bcast")


class Comm(Protocol):
    """An intracommunicator of mpi4py, or anything with these methods of one."""

    def Get_rank(self) -> int:  # noqa: N802  # MPI's names
        """Return this process's number, from 0 on."""

    def Get_size(self) -> int:  # noqa: N802
        """Return the number of processes."""

    def Allreduce(self, sent: object, received: Array) -> object:  # noqa: N802
        """Add an array up over the processes; each gets the sum."""

    def Bcast(self, array: Array) -> object:  # noqa: N802
        """Give all processes the array of rank 0."""

    def allgather(self, value: T) -> list[T]:
        """Return the values of all processes."""

    def bcast(self, value: T) -> T:
        """Return the value of rank 0."""


class Group:
    """The processes of one training.

    Raises:
        TypeError: `comm` is no communicator.
    """

    def __init__(self, comm: Comm) -> None:
        missing = [name for name in NAMES if not callable(getattr(comm, name, None))]
        if missing:
            raise TypeError(
                "comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, "
                f"not {type(comm).__name__}, which has no {missing[0]}"
            )
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self._in_place: object = getattr(sys.modules[type(comm).__module__], "IN_PLACE", None)

    def add(self, block: Array) -> None:
        """Add an array up over the processes, in place."""
        if self.size > 1:
            sent = block.copy() if self._in_place is None else self._in_place
            self.comm.Allreduce(sent, block)

    def check(self, rows: Rows, batch: Batch | None, more: Mapping[str, object]) -> None:
        """Raise ValueError on every rank unless all were given the same.

        Each takes all rows; which of a batch it passes over follows from its rank.
        """
        own = {**rows.prints(), **rows.settings, **more}
        if batch is not None:
            own |= {f"validation {name}": text for name, text in batch.prints().items()}
        everyone = self.comm.allgather(own)
        for rank, other in enumerate(everyone):
            for name, first in everyone[0].items():
                if other.get(name) != first:
                    raise ValueError(
                        f"{name} must be the same on all ranks, but is {first} on rank 0 and "
                        f"{other.get(name)} on rank {rank}: each takes all rows, and fit splits "
                        "every batch among them"
                    )

    def share(self, arrays: Mapping[str, Array]) -> None:
        """Give all processes the arrays of rank 0."""
        for array in arrays.values():
            self.comm.Bcast(array)

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone; all return what it returned, or raise an error.

        Raises:
            RuntimeError: on the other ranks, if it raised one on rank 0.
        """
        answer: tuple[T | None, str] = (None, "")
        error: BaseException | None = None
        if self.rank == 0:
            try:
                answer = function(), ""
            except BaseException as raised:
                error, answer = raised, (None, f"{type(raised).__name__}: {raised}")
        result, problem = self.comm.bcast(answer)
        if error is not None:
            raise error
        if problem:
            raise RuntimeError(f"rank 0 has raised {problem}")
        return result  # type: ignore[return-value]

    def asked(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return a function that is called on rank 0 alone, and answers the same on all."""
        return lambda *arguments: self.first(lambda: function(*arguments) is True)


class SharedGradients:
    """The gradients of a network that several processes make together, each of its part.

    They lie in one block of memory, which one call sums up.

    Args:
        gradients: views of the network's memory.
        group: the processes.
    """

    def __init__(self, gradients: Mapping[str, Array], group: Group) -> None:
        self.group, self.block = group, block_of(list(gradients.values()))
        self._weights = [array for name, array in gradients.items() if "weight" in name]
        self._norms = np.full(len(self._weights), nan)

    @property
    def sizes(self) -> FloatArray:
        """log2 of the norms of the weights' gradients at the last `measure`.

        What the network itself knows is of this process's part alone.
        """
        with np.errstate(divide="ignore"):
            sizes: FloatArray = np.log2(self._norms)
        return sizes

    def measure(self) -> None:
        """Measure the norms of the weights' gradients, before a clip."""
        self._norms = norms(self._weights)

    def own(self, rows: Array) -> Array:
        """Return the part of some rows that is this process's."""
        return np.array_split(rows, self.group.size)[self.group.rank]

    def add(self, loss: float | None, share: float) -> float:
        """Make the gradients those of all processes, and return the loss of all.

        Args:
            loss: of this process's part; None if it has none, whatever the gradients are then.
            share: its part of the whole, from 0 to 1.
        """
        total = np.zeros(1)
        if loss is None or not share:
            self.block[:] = 0
        else:
            total[0] = share * loss
            if share != 1.0:
                self.block *= self.block.dtype.type(share)
        self.group.add(self.block)
        self.group.add(total)
        return float(total[0])


def block_of(arrays: Sequence[Array]) -> Array:
    """Return the memory in which a network's arrays lie one after another, as one flat array.

    Between them is a little room, up to the next cache line, or of recurrent networks 512 bytes.
    """
    starts = [int(array.__array_interface__["data"][0]) for array in arrays]
    last = starts[-1] + arrays[-1].nbytes
    ends = [start + one.nbytes for start, one in zip(starts, arrays, strict=True)]
    gaps = [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)]
    assert all(0 <= gap < 512 for gap in gaps), "the core keeps its gradients in one block"
    count = (last - starts[0]) // arrays[0].itemsize
    return np.lib.stride_tricks.as_strided(arrays[0].ravel(), (count,))
