"""Points handed out to the workers of an executor; outcomes as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import dataclass
from os import PathLike
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

from vegrad import _core
from vegrad.arrays.shown import SCREEN, visible
from vegrad.sweeps.pool import OfPool, Pool, check_executor, is_pool
from vegrad.sweeps.record import Numbers, Record

P = TypeVar("P")
Result = tuple[Numbers | None, str]  # what was measured, or why nothing was

IN_FLIGHT = 256  # points that wait at an executor, so that a million are not pickled at once


class Promise(Protocol):
    """A `concurrent.futures.Future` or its like, as `submit` returns it."""

    def result(self) -> Result:
        """Return what the function has returned, or raise what it has raised."""

    def add_done_callback(self, function: Callable[[Promise], object], /) -> object:
        """Call the function once there is a result."""

    def cancel(self) -> object:
        """Take it back, if it has not begun."""


@runtime_checkable
class Executor(Protocol):
    """Anything with the `submit` of `concurrent.futures.Executor`.

    The standard library's, `dask.distributed.Client.get_executor()`, `mpi4py.futures` and
    `loky.get_reusable_executor()` are such.
    """

    def submit(self, function: Callable[..., Result], /, *arguments: object) -> Promise:
        """Have the function called by a worker."""


class SweepError(RuntimeError):
    """The executor takes no more points; what had come is in the file, if one was given."""


@dataclass(frozen=True)
class Outcome(Generic[P]):
    """The numbers of a point by name, or the reason why there are none."""

    point: P
    numbers: Numbers | None
    problem: str = ""


def spread(
    measure: Callable[[P], Numbers],
    points: Sequence[P],
    *,
    about: dict[str, object],
    executor: Executor | Pool | None = None,
    file: str | PathLike[str] | None = None,
) -> Iterator[Outcome[P]]:
    """Measure at every point; yield the outcomes as they come.

    A point that raises an exception does not end the sweep: its outcome has the problem. Workers in
    processes of their own compute with one thread each. The numbers do not depend on who measures
    them as long as `measure` takes all that it needs from its point.

    Args:
        measure: returns numbers by name. For workers in other processes it must be importable.
        points: frozen dataclasses of plain numbers and names, all different.
        about: what else the numbers depend on, in plain JSON types; a file with another is refused.
        executor: None measures here, one point after another.
        file: gets a line for each point that was measured. Points that it has already are not
            measured again; those that failed are.

    Raises:
        TypeError, ValueError: before anything is measured: the executor has no `submit`, or the
            file is another sweep's.
        SweepError: the executor broke down; its message says how far it came.
        OSError: the file cannot be written.
    """
    workers = cast(Executor | None, OfPool(executor) if is_pool(executor) else executor)
    if workers is not None:
        check_executor(workers)
    with Record(file, about) as record:
        known = [record.read(point) for point in points]
        for point, numbers in zip(points, known, strict=True):
            if numbers is not None:
                yield Outcome(point, numbers)
        left = [p for p, numbers in zip(points, known, strict=True) if numbers is None]
        come = _here(measure, left) if workers is None else _there(measure, left, workers, file)
        for outcome in come:
            if outcome.numbers is not None:
                record.write(outcome.point, outcome.numbers)
            yield outcome


def _here(measure: Callable[[P], Numbers], points: Sequence[P]) -> Iterator[Outcome[P]]:
    for point in points:
        yield Outcome(point, *_measured(measure, point, os.getpid()))


def _there(
    measure: Callable[[P], Numbers],
    points: Sequence[P],
    executor: Executor,
    file: str | PathLike[str] | None,
) -> Iterator[Outcome[P]]:
    ready = SimpleQueue[tuple[P, Promise]]()
    waiting = dict[P, Promise]()
    rest, come = iter(points), 0
    try:
        while come < len(points):
            while len(waiting) < IN_FLIGHT and (point := next(rest, None)) is not None:
                promise = executor.submit(_measured, measure, point, os.getpid())
                waiting[point] = promise
                promise.add_done_callback(lambda done, point=point: ready.put((point, done)))  # type: ignore[misc]
            point, promise = ready.get()
            del waiting[point]
            yield Outcome(point, *_result(promise))
            come += 1
    except (BrokenExecutor, RuntimeError) as error:
        kept = (
            f"; {visible(os.fspath(file), SCREEN)} has these: the same call goes on from there"
            if file
            else ""
        )
        why = f"{type(error).__name__}: {error}".split("\n")[0]
        raise SweepError(
            f"the executor died after {come} of {len(points)} points{kept} ({why})"
        ) from error
    finally:
        for promise in waiting.values():
            promise.cancel()


def _result(promise: Promise) -> Result:
    """Return the result; of a worker that was lost with its point alone, the reason."""
    try:
        return promise.result()
    except BrokenExecutor:
        raise
    except (Exception, CancelledError) as error:
        return None, f"{type(error).__name__}: {error}"


def _measured(measure: Callable[[P], Numbers], point: P, owner: int) -> Result:
    """Measure at a point, in a worker; a worker in a process of its own takes one thread."""
    if os.getpid() != owner:
        _core.set_num_threads(1)
    try:
        return measure(point), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
