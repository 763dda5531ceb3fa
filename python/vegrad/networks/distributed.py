"""One training by several processes: each passes over its part of every batch.

The gradients of a network lie in one block of memory, which is summed over the processes in place
by one call before each step. All processes clip and step by the same sum, so that their weights,
records and findings stay equal; what is for a person's eyes comes from rank 0 alone.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import nan
from time import perf_counter
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray
from vegrad.arrays.measurement import norms
from vegrad.networks.rows import Batch, Rows
from vegrad.networks.slopes import compared, copies

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


class Core(Protocol):
    """The part of the core's network that takes a step."""

    def parameters(self) -> dict[str, Array]:
        """Return views of the parameters."""

    def gradients(self) -> dict[str, Array]:
        """Return views of the gradients."""

    def backward(self, x: object, target: object, flow: bool, layers: int) -> float | None:
        """Run one pass."""


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
        own = {"x": _print_of(rows.x), "target": _print_of(rows.target), **more}
        if batch is not None:
            own |= {
                "validation x": _print_of(batch.x),
                "validation target": _print_of(batch.target),
            }
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


def _print_of(array: Array) -> str:
    """Return the shape and kind of an array, with a checksum of its content."""
    total = zlib.crc32(np.ascontiguousarray(array).data)
    return f"{array.dtype}{list(array.shape)} (checksum {total:08x})"


class DistributedTrainer:
    """Steps on batches, of each of which this process passes over its part.

    It is to `Optimizer` what the core's `Trainer` is.

    Args:
        core: of the network, whose weights are changed.
        rows: all the data.
        batch_size: rows of a step, of all processes together.
        group: the processes.
    """

    def __init__(self, core: Core, rows: Rows, batch_size: int, group: Group) -> None:
        self.core, self.rows, self.batch_size, self.group = core, rows, batch_size, group
        self.parameters, self.gradients = core.parameters(), core.gradients()
        self.layers = len(self.parameters) // 2
        self.block = block_of(list(self.gradients.values()))
        self.done = self.taken = 0
        self.gradient_sizes: FloatArray = np.full(self.layers, nan)
        """log2 of the norms of the weights' gradients in the last step of the last run, before the
        clip; that of the network itself knows of its own part alone."""
        self._clipped: _core.Clipped | None = None

    @property
    def clipped(self) -> _core.Clipped:
        """Result of the clip in the last step."""
        assert self._clipped is not None
        return self._clipped

    def run(
        self,
        optimizer: _core.Optimizer,
        order: npt.NDArray[np.int64],
        rates: FloatArray,
        records: FloatArray,
        seconds: float,
        gauge: tuple[int, int],
        *request: object,
    ) -> None:
        """Take a step for each record, until there are none or `seconds` are over."""
        self.done = self.taken = 0
        start, size = perf_counter(), self.batch_size
        while self.done < len(records):
            rows = order[self.done * size : (self.done + 1) * size]
            look = bool(gauge[1] and self.done % gauge[1] == gauge[0])
            rate = float(rates[self.taken])
            loss = self._pass(rows, True)
            records[self.done, 0] = loss
            if self.done == len(records) - 1:
                self.gradient_sizes = self._sizes()
            before = (copies(self.parameters), copies(self.gradients)) if look else None
            taken = optimizer.step(self.parameters, self.gradients, rate, *request)  # type: ignore[arg-type]
            self._clipped = taken
            looked: tuple[float, ...] = (nan,) * 4
            if before is not None:
                after = self._pass(rows, False)
                looked = after, *compared(self.parameters, self.gradients, *before)
            records[self.done] = loss, taken.norm, taken.coefficient, rate, *looked
            self.taken += not taken.skipped
            self.done += 1
            if perf_counter() - start >= seconds:
                return

    def _sizes(self) -> FloatArray:
        with np.errstate(divide="ignore"):
            return np.log2(norms([g for name, g in self.gradients.items() if "weight" in name]))

    def _pass(self, rows: Array, flow: bool) -> float:
        """Return the loss of these rows over all processes, and leave its gradients everywhere."""
        own = np.array_split(rows, self.group.size)[self.group.rank]
        total = np.zeros(1)
        if len(own):
            share = len(own) / len(rows)
            x, target = self.rows.x[own], self.rows.target[own]
            loss = self.core.backward(x, target, flow, self.layers)
            assert loss is not None
            total[0] = share * loss
            if share != 1.0:
                self.block *= self.block.dtype.type(share)
        else:
            self.block[:] = 0
        self.group.add(self.block)
        self.group.add(total)
        return float(total[0])


def block_of(arrays: Sequence[Array]) -> Array:
    """Return the memory in which a network's arrays lie one after another, as one flat array.

    Between them is a little room, up to the next cache line.
    """
    starts = [int(array.__array_interface__["data"][0]) for array in arrays]
    last = starts[-1] + arrays[-1].nbytes
    ends = [start + one.nbytes for start, one in zip(starts, arrays, strict=True)]
    gaps = [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)]
    assert all(0 <= gap < 64 for gap in gaps), "the core keeps its gradients in one block"
    count = (last - starts[0]) // arrays[0].itemsize
    return np.lib.stride_tricks.as_strided(arrays[0].ravel(), (count,))
