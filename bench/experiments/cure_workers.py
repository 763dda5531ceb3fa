"""Time a cure with candidates side by side beside the same one after another.

A network of 40 sigmoid layers on digits, whose cure tries several changes; `python
bench/experiments/cure_workers.py --executor loky` on another engine. Outcomes must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import vegrad

ENGINES = ("processes", "loky", "dask", "ray")


@contextmanager
def engine(name: str, workers: int) -> Iterator[Any]:
    """Yield an executor, or a pool, with so many workers."""
    if name == "processes":
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield pool
    elif name == "loky":
        import loky

        yield loky.get_reusable_executor(workers)
    elif name == "dask":
        from dask.distributed import Client

        with Client(n_workers=workers, threads_per_worker=1, dashboard_address=None) as client:
            yield client.get_executor()
    else:
        from ray.util.multiprocessing import Pool

        with Pool(workers) as pool:
            yield pool


def cured(data: vegrad.datasets.Dataset, steps: int, executor: Any = None) -> vegrad.Cure:
    """Cure the network; a goal that no change reaches, so that all are tried."""
    network = vegrad.MLP([64, *[96] * 39, 10], activation="sigmoid", loss="cross_entropy", seed=0)
    target = data.target("cross_entropy")
    return vegrad.cure(
        network, data.x, target, goal=0.999, steps=steps, budget=6, executor=executor
    )


def main() -> None:
    """Print seconds without and with workers, by turns, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", choices=ENGINES, default="processes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    vegrad.set_num_threads(1)
    data = vegrad.datasets.load("digits")
    alone, beside = [], []
    with engine(options.executor, options.workers) as executor:
        cured(data, 20, executor)  # the workers have imported everything
        for _ in range(options.repeats):
            start = time.perf_counter()
            one = cured(data, options.steps)
            middle = time.perf_counter()
            other = cured(data, options.steps, executor)
            alone.append(middle - start)
            beside.append(time.perf_counter() - middle)
            assert (one.patch, one.cost, one.summary) == (other.patch, other.cost, other.summary)
    found = {
        "executor": options.executor,
        "workers": options.workers,
        "cores": len(os.sched_getaffinity(0)),
        "trained": sum(attempt.steps > 0 for attempt in one.attempts),
        "seconds_alone": round(statistics.median(alone), 2),
        "seconds_with_workers": round(statistics.median(beside), 2),
        "gain": round(statistics.median(a / b for a, b in zip(alone, beside, strict=True)), 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
