"""What the machine can do at best: products of matrices, reading and writing, as measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vegrad.peers import Case, NumPy, Torch, Vegrad, installed
from vegrad.timing import fastest

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


def memory(size: int) -> dict[str, dict[str, Callable[[], object]]]:
    """{"read": {name: a call}, "write": …} that reads, or writes, `size` bytes once."""
    block = np.ones(size // 4, np.float32)
    reads, writes = NumPy.reads(block) | Vegrad.reads(block), NumPy.writes(block)
    if installed(Torch):
        reads |= Torch.reads(block)
        writes |= Torch.writes(block)
    return {"read": reads, "write": writes}


def product_limits(shapes: Iterable[tuple[int, int]], seconds: float) -> list[dict[str, Any]]:
    """The best rate that any library reaches, for each (rows, width); GFLOP/s."""
    found = []
    for m, n in sorted(shapes):
        name, best = fastest(products(m, n), seconds)
        found.append({"batch": m, "width": n, "by": name, "gflops": 2e-9 * m * n * n / best})
    return found


def memory_limits(sizes: Iterable[int], seconds: float) -> list[dict[str, Any]]:
    """The best rate that any library reaches, for blocks of each size in bytes; GB/s."""
    found = []
    for size in sizes:
        for kind, calls in memory(size).items():
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
    """The best measured rate of reading or writing blocks of a size."""
    entries = [entry for limits in found for entry in limits["memory"]]
    entries = [entry for entry in entries if (entry["kind"], entry["bytes"]) == (kind, size)]
    return max(entries, key=lambda entry: float(entry["gbytes"]))


def traffic_ms(found: Sequence[Found], size: int, block: int, reads: int, writes: int) -> float:
    """The least milliseconds to read and write `size` bytes so often, as blocks of a size are."""
    read, write = (best_rate(found, kind, block)["gbytes"] for kind in ("read", "write"))
    return float(1e-6 * size * (reads / read + writes / write))


def pass_ms(found: Sequence[Found], case: Mapping[str, Any]) -> float:
    """The least time, in milliseconds, that a pass can take at the measured rates.

    With one data row there is no product of matrices to be fast at: the pass reads the weights
    twice and writes their gradient once.
    """
    if case["batch"] > 1:
        return float(1e-6 * case["flops"] / peak(found, case)["gflops"])
    size = 4 * case["layers"] * case["width"] ** 2
    return traffic_ms(found, size, 2 * size, 2, 1)
