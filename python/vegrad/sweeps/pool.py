"""Pools of workers with `apply_async`, as `multiprocessing.Pool` and Ray's, taken as executors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeGuard, TypeVar

from vegrad.arrays.shown import shown

T = TypeVar("T")


class Pool(Protocol):
    """A `multiprocessing.Pool`, a `ray.util.multiprocessing.Pool`, or their like."""

    def apply_async(
        self,
        function: Callable[..., object],
        arguments: tuple[object, ...],
        named: dict[str, object],
        callback: Callable[[T], object],
        error_callback: Callable[[BaseException], object],
        /,
    ) -> object:
        """Have the function called by a worker, and what comes of it told to a callback."""


class OfPool:
    """An executor whose workers are a pool's. What it was given cannot be taken back."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def submit(self, function: Callable[..., T], /, *arguments: object) -> Future[T]:
        """Have the function called by a worker."""
        future = Future[T]()
        future.set_running_or_notify_cancel()
        ends = future.set_result, future.set_exception
        self._pool.apply_async(function, arguments, {}, *ends)
        return future


def is_pool(value: object) -> TypeGuard[Pool]:
    """Return True of a pool that is no executor."""
    named = (callable(getattr(value, name, None)) for name in ("submit", "apply_async"))
    return tuple(named) == (False, True)


def check_executor(executor: object) -> None:
    """Raise TypeError unless it has `submit`."""
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor must have submit(), as concurrent.futures.ProcessPoolExecutor has, or be a "
            f"pool with apply_async(), not be {shown(executor)}"
        )
