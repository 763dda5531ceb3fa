"""What the machine can do at best: products of matrices, reading and writing, as measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vegrad._core import num_threads
from vegrad.benchmark.peers import Case, NumPy, Torch, Vegrad, installed
from vegrad.benchmark.peers.problem import Array
from vegrad.benchmark.timing import fastest

Found = dict[str, list[dict[str, Any]]]


def products(rows: int, width: int) -> dict[str, Callable[[], object]]:
    """{name: a call} for a rows × width by width × width product in each library."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((n, width), np.float32) for n in (rows, width))
    out = np.empty((rows, width), np.float32)
    return {
        f"{peer.name} {kind}": peer.product(a, b, kind, out)
        for kind in ("nn", "nt")
        for peer in (NumPy, Torch, Vegrad)
        if installed(peer)
    }


def memory(
    size: int, kinds: Sequence[str] = ("read", "write")
) -> dict[str, dict[str, Callable[[], object]]]:
    """{"read": {name: a call}, …} that reads, writes or updates in place `size` bytes once."""
    block = np.ones(size // 4, np.float32)
    threads = num_threads()
    parts = np.array_split(block, threads)
    pool = ThreadPoolExecutor(threads)  # for NumPy, which has one thread, but lets others work

    def of(peer: Any, array: Array, kind: str) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = getattr(peer, f"{kind}s")(array)
        return calls

    def on_each(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
        def together() -> None:
            waiting = [pool.submit(call) for call in calls[1:]]
            calls[0]()
            for other in waiting:
                other.result()

        return together

    found = {}
    for kind in kinds:
        found[kind] = of(NumPy, block, kind)
        if threads > 1:
            shares = [of(NumPy, part, kind) for part in parts]
            for name in shares[0]:
                found[kind][f"{name} in threads"] = on_each([share[name] for share in shares])
        if installed(Torch):
            found[kind] |= of(Torch, block, kind)
        if kind == "read":
            found[kind] |= Vegrad.reads(block)
    return found


def product_limits(shapes: Iterable[tuple[int, int]], seconds: float) -> list[dict[str, Any]]:
    """The best rate that any library reaches, for each (rows, width); GFLOP/s."""
    found = []
    for m, n in sorted(shapes):
        name, best = fastest(products(m, n), seconds)
        found.append({"batch": m, "width": n, "by": name, "gflops": 2e-9 * m * n * n / best})
    return found


def memory_limits(
    sizes: Iterable[int], seconds: float, kinds: Sequence[str] = ("read", "write")
) -> list[dict[str, Any]]:
    """The best rate that any library reaches, for blocks of each size in bytes; GB/s."""
    found = []
    for size in sizes:
        for kind, calls in memory(size, kinds).items():
            name, best = fastest(calls, seconds)
            found.append({"bytes": size, "kind": kind, "by": name, "gbytes": 1e-9 * size / best})
    return found


def limits(cases: Sequence[Case], seconds: float) -> Found:
    """The limits of passes; with one row of data they are the memory's."""
    shapes = {(case.batch, case.width) for case in cases if case.batch > 1}
    sizes = {2 * case.weight_bytes for case in cases if case.batch == 1}  # W and dW
    large = {(1024, 1024), (2048, 2048)} if shapes else set()
    return {
        "products": product_limits(shapes | large, seconds),
        "memory": memory_limits(sizes, seconds),
    }


def peak(found: Iterable[Found], case: Mapping[str, Any]) -> dict[str, Any]:
    """The best measured product of at least a case's size, or of the largest."""
    entries = [entry for limits in found for entry in limits["products"]]

    def size(entry: Mapping[str, Any]) -> int:
        return int(entry["batch"]) * int(entry["width"]) ** 2

    least = min(size(case), max(map(size, entries)))
    return max((e for e in entries if size(e) >= least), key=lambda entry: float(entry["gflops"]))


def best_rate(found: Iterable[Found], kind: str, size: int) -> dict[str, Any]:
    """The best measured rate of reading, writing or updating blocks of a size."""
    entries = [entry for limits in found for entry in limits["memory"]]
    entries = [entry for entry in entries if (entry["kind"], entry["bytes"]) == (kind, size)]
    return max(entries, key=lambda entry: float(entry["gbytes"]))


def traffic_ms(found: Sequence[Found], size: int, block: int, times: Mapping[str, int]) -> float:
    """The least milliseconds to read, write or update `size` bytes so many times.

    The rates are those of blocks of `block` bytes, which live in some cache or in the memory.
    """
    rates = {kind: best_rate(found, kind, block)["gbytes"] for kind in times}
    return float(1e-6 * size * sum(count / rates[kind] for kind, count in times.items()))


def pass_ms(found: Sequence[Found], case: Mapping[str, Any]) -> float:
    """The least time, in milliseconds, that a pass can take at the measured rates.

    With one data row there is no product of matrices to be fast at: the pass reads the weights
    twice and writes their gradient once.
    """
    if case["batch"] > 1:
        return float(1e-6 * case["flops"] / peak(found, case)["gflops"])
    size = 4 * case["layers"] * case["width"] ** 2
    return traffic_ms(found, size, 2 * size, {"read": 2, "write": 1})
