"""Timing of calls in turns: A, B, C, A, B, C, …, so that a slow minute slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from statistics import median, quantiles
from typing import Any, TypeVar

Name = TypeVar("Name", bound=str | int)
Call = Callable[[], object]
Turns = list[list[float]]  # the duration of each call in each turn, in seconds
Json = dict[str, Any]  # figures by name, in plain JSON types


def settle(limit: float = 0.5) -> None:
    """Wait, for `limit` seconds at most, until the threads of the last library stop spinning.

    OpenBLAS's spin for 0.13 s. Linux may count the time of a thread that spins every 4 ms only, so
    that shorter looks would miss it.
    """
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.002:
            return


def one_turn(step: Call, seconds: float, slow: float = 1.0) -> list[float]:
    """Time the calls of one turn, after untimed calls; a slow call is not repeated."""
    durations: list[float] = []
    warming = 0.0
    while warming < seconds / 5:
        start = time.perf_counter()
        step()
        warming += time.perf_counter() - start
    if warming > slow:
        return [warming]
    while sum(durations) < seconds:
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return durations


def interleave(
    tasks: Mapping[Name, Call],
    seconds: float,
    turn: float = 0.05,
    slow: float = 1.0,
    seen: Callable[[dict[Name, Turns]], None] | None = None,
) -> dict[Name, Turns]:
    """Time calls that take turns, and return the durations of each.

    Args:
        tasks: the calls by name.
        seconds: the time to spend on each task.
        turn: the length of a turn in seconds, without untimed calls and the wait before them.
        slow: a task whose call takes longer, in seconds, gets three turns of one call.
        seen: a function that is called with all durations after every round.
    """
    turns: dict[Name, Turns] = {name: [] for name in tasks}
    end = time.perf_counter() + seconds * len(tasks)
    going = list(tasks)
    while going and (time.perf_counter() < end or len(turns[going[0]]) < 3):
        for name in going:
            settle()
            turns[name].append(one_turn(tasks[name], turn, slow))
        going = [name for name in going if len(turns[name]) < 3 or turns[name][-1][0] < slow]
        if seen is not None:
            seen(turns)
    return turns


def fastest(tasks: Mapping[Name, Call], seconds: float) -> tuple[Name, float]:
    """Return name and median seconds of the fastest task; each is timed for about `seconds`."""
    turns = interleave(tasks, seconds, min(0.02, seconds / 3))
    medians = {name: median(chain(*durations)) for name, durations in turns.items()}
    return min(medians.items(), key=lambda item: item[1])


def summary(turns: Sequence[Sequence[float]]) -> Json:
    """Return median and quartiles of all calls in milliseconds, and how many calls there were."""
    durations = [1e3 * duration for turn in turns for duration in turn]
    if len(durations) == 1:
        durations *= 2
    low, middle, high = quantiles(durations, method="inclusive")
    calls = sum(map(len, turns))
    return {
        "median_ms": middle,
        "quartiles_ms": [low, high],
        "calls": calls,
        "turns": len(turns),
    }
