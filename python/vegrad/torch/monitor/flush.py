"""A measurement of what subnormal numbers cost a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from vegrad.arrays.checks import as_count


def flush_gain(step: Callable[[], object], repeats: int) -> float:
    """Return how many times faster `step()` is with torch.set_flush_denormal(True).

    The setting and PyTorch's number of threads are as before afterwards.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.
    """
    repeats = as_count("repeats", repeats, 1)
    if not callable(step):
        raise TypeError(f"step must be a function that does a step, not {type(step).__name__}")
    flushed = float(torch.tensor(5e-324, dtype=torch.float64) * 1) == 0.0
    times: dict[bool, list[float]] = {False: [], True: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(2 * repeats + 2):
            torch.set_flush_denormal(bool(turn % 2))
            start = time.perf_counter()
            step()
            if turn > 1:
                times[bool(turn % 2)].append(time.perf_counter() - start)
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads)
    return median(times[False]) / median(times[True])
