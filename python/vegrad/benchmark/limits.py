"""The machine's peak rates, as measured: limits that no work can beat.

A product of matrices and reading, writing or updating memory are timed in each library; the fastest
library sets the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vegrad._core import num_threads
from vegrad.benchmark.peers import Case, NumPy, Torch, Vegrad, installed
from vegrad.benchmark.timing import Call, Json, fastest

AT_LIMIT = 0.92  # share of a measured limit from which on there is nothing left to gain

Found = dict[str, list[Json]]  # the rates measured, as {"products": […], "memory": […]}


def products(rows: int, width: int) -> dict[str, Call]:
    """Return a call by name for a rows × width by width × width product in each library."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((n, width), np.float32) for n in (rows, width))
    out = np.empty((rows, width), np.float32)
    return {
        f"{peer.name} {kind}": peer.product(a, b, kind, out)
        for kind in ("nn", "nt")
        for peer in (NumPy, Torch, Vegrad)
        if installed(peer)
    }


def memory(size: int, kinds: Sequence[str] = ("read", "write")) -> dict[str, dict[str, Call]]:
    """Return calls that read, write or update in place `size` bytes once, by kind and name."""
    block = np.ones(size // 4, np.float32)
    threads = num_threads()
    pool = ThreadPoolExecutor(threads)  # NumPy has one thread only, but several may call it at once

    def together(calls: Sequence[Call]) -> Call:
        def call() -> None:
            waiting = [pool.submit(call) for call in calls[1:]]
            calls[0]()
            for other in waiting:
                other.result()

        return call

    libraries = [peer.traffic(block) for peer in (NumPy, Torch, Vegrad) if installed(peer)]
    parts = [NumPy.traffic(part) for part in np.array_split(block, threads)]
    found: dict[str, dict[str, Call]] = {}
    for kind in kinds:
        found[kind] = {name: call for one in libraries for name, call in one.get(kind, {}).items()}
        if threads > 1:
            for name in parts[0][kind]:
                calls = [part[kind][name] for part in parts]
                found[kind][f"{name} in threads"] = together(calls)
    return found


def product_limits(shapes: Iterable[tuple[int, int]], seconds: float) -> list[Json]:
    """Measure the best rate of any library for products of each (rows, width), in GFLOP/s."""
    found = []
    for m, n in sorted(shapes):
        name, best = fastest(products(m, n), seconds)
        found.append({"batch": m, "width": n, "by": name, "gflops": 2e-9 * m * n * n / best})
    return found


def memory_limits(
    sizes: Iterable[int], seconds: float, kinds: Sequence[str] = ("read", "write")
) -> list[Json]:
    """Measure the best rate of any library for blocks of each size in bytes, in GB/s."""
    found = []
    for size in sizes:
        for kind, calls in memory(size, kinds).items():
            name, best = fastest(calls, seconds)
            found.append({"bytes": size, "kind": kind, "by": name, "gbytes": 1e-9 * size / best})
    return found


def limits(cases: Sequence[Case], seconds: float) -> Found:
    """Measure the limits of passes; those of passes with one row of data are the memory's."""
    shapes = {(case.batch, case.width) for case in cases if case.batch > 1}
    sizes = {
        2 * case.weight_bytes for case in cases if case.batch == 1
    }  # the weights and their gradients
    large = {(1024, 1024), (2048, 2048)} if shapes else set()
    return {
        "products": product_limits(shapes | large, seconds),
        "memory": memory_limits(sizes, seconds),
    }


def peak(found: Iterable[Found], case: Json) -> Json:
    """Return the fastest product that is at least as large as those of a case, or the largest."""
    entries = [entry for limits in found for entry in limits["products"]]

    def size(entry: Json) -> int:
        return int(entry["batch"]) * int(entry["width"]) ** 2

    least = min(size(case), max(map(size, entries)))
    return max((e for e in entries if size(e) >= least), key=lambda entry: float(entry["gflops"]))


def best_rate(found: Iterable[Found], kind: str, size: int) -> Json:
    """Return the best measured rate of reading, writing or updating blocks of this size."""
    entries = [entry for limits in found for entry in limits["memory"]]
    entries = [entry for entry in entries if (entry["kind"], entry["bytes"]) == (kind, size)]
    return max(entries, key=lambda entry: float(entry["gbytes"]))


def traffic_ms(found: Sequence[Found], size: int, block: int, times: Mapping[str, int]) -> float:
    """Return the least time in milliseconds to read, write or update `size` bytes so many times.

    The rates are those of blocks of `block` bytes, which fit in some cache or only in the memory.
    """
    rates = {kind: best_rate(found, kind, block)["gbytes"] for kind in times}
    return float(1e-6 * size * sum(count / rates[kind] for kind, count in times.items()))


def pass_ms(found: Sequence[Found], case: Json) -> float:
    """Return the least time in milliseconds that a pass can take at the measured rates.

    With one row of data there are no products of matrices, and the memory sets the limit: the pass
    reads the weights twice and writes their gradients once.
    """
    if case["batch"] > 1:
        return float(1e-6 * case["flops"] / peak(found, case)["gflops"])
    size = 4 * case["layers"] * case["width"] ** 2
    return traffic_ms(found, size, 2 * size, {"read": 2, "write": 1})
