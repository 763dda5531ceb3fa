"""The work of `vegrad bench`, timed in a process of its own.

    python -m vegrad.benchmark SETTINGS

measures, and writes all results so far after every round as one line of JSON. So whoever started
the process may end it at any time and keep what there is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np

from vegrad.arrays.checks import Activation
from vegrad.benchmark import limits, peers
from vegrad.benchmark.machine import cores, environment, machine, versions
from vegrad.benchmark.peers import Buffers, Case, Peer, Problem
from vegrad.benchmark.timing import Call, Json, fastest, interleave, summary

# How far a float32 gradient may be from that of a float64 pass, relative to the largest element of
# its array. Where φ′ jumps, rounding moves an element to the other side of the jump now and then.
LARGEST_DIFFERENCE, WITH_KINKS = 1e-3, 3e-2
SHARES = {"pass": 0.6, "clip": 0.12, "adamw": 0.13, "limits": 0.15}  # of the time to spend
SLOW = 0.25  # a call that takes longer, in seconds, is timed only three times
LISTS_SHARE = 0.15  # a call with Python's lists that takes more of the time is only estimated
LARGEST_BLOCK = 2**28  # bytes, more than any cache holds
# How often the bytes of the weights cross the memory. A pass reads W twice and writes dW. A clip
# reads g, then reads it again and writes it back; AdamW reads g twice and updates w, m and v.
TRAFFIC = {
    "pass": {"read": 2, "write": 1},
    "clip": {"read": 1, "update": 1},
    "adamw": {"read": 2, "update": 3},
}


class EndedError(OSError):
    """The measuring process ended before it was done."""


@dataclass(frozen=True)
class Settings:
    """The network to measure, the number of threads, and about how many seconds to spend."""

    layers: int
    width: int
    batch: int
    activation: Activation
    threads: int
    seconds: float

    @property
    def case(self) -> Case:
        """The network; its weights keep the size of a signal as well as uniform weights can."""
        init = "he_uniform" if self.activation in peers.UNBOUNDED else "glorot_uniform"
        return Case(self.layers, self.width, self.batch, self.activation, init)


@contextmanager
def bound(threads: int) -> Iterator[None]:
    """Bind processes that are started inside to this number of cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores()[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(settings: Settings, seen: Callable[[Json], None]) -> None:
    """Measure in a process of its own, and call `seen` with all results after every round.

    Raises:
        MemoryError: the network is too large.
        EndedError: the process failed, which it explains on stderr, or was killed.
    """
    command = [sys.executable, "-m", "vegrad.benchmark", json.dumps(asdict(settings))]
    # Ctrl-C is for this process only: the other would print a traceback.
    alone: Json = {"process_group": 0}
    if sys.platform == "win32":
        alone = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with bound(settings.threads):
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment(settings.threads),
            **alone,
        )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            found = json.loads(line)
            if found.get("error") == "memory":
                raise MemoryError
            seen(found)
        if process.wait() != 0:
            killed = "was killed: is there enough memory?" if process.returncode == -9 else None
            ended = killed or f"ended with code {process.returncode}"
            raise EndedError(f"the process that measures {ended}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Measuring:
    """One run in the measuring process; `show` is called with `found` whenever there is more."""

    def __init__(self, settings: Settings, show: Callable[[Json], None]) -> None:
        self.settings, self.show, self.limits = settings, show, [_nothing()]
        self.found: Json = {
            "format": 1,
            "done": False,
            "machine": machine(),
            "versions": versions(),
            "network": asdict(settings.case),
            "threads": settings.threads,
            "seconds": settings.seconds,
            "limits": self.limits,
            "work": [],
        }

    def run(self) -> None:
        """Time the pass, the clip and the step, and measure the limits before and after."""
        for peer in filter(peers.installed, peers.PASSES):
            peer.prepare(self.settings.threads)
        case = self.settings.case
        shapes = [shape for _ in range(case.layers) for shape in ((case.width,) * 2, (case.width,))]
        works = [self._pass(case), *self._buffers(Buffers(shapes))]
        self.found["versions"] = versions()
        self.found["work"] = [work for work, _ in works]
        self.show(self.found)
        self._limits()
        for work, tasks in works:
            self._time(work, tasks)
        self.limits.append(_nothing())
        self._limits()
        self.found["done"] = True
        self.show(self.found)

    def _pass(self, case: Case) -> tuple[Json, dict[str, Peer]]:
        problem = Problem(case)
        reference = peers.NumPy(problem, "float64")
        reference.step()
        right = reference.result()
        tolerance = WITH_KINKS if case.activation in peers.KINKED else LARGEST_DIFFERENCE
        work: Json = {"name": "pass", "flops": case.flops, "tolerance": tolerance, "rows": []}
        guess = peers.Lists.expected_seconds(case)
        tasks = self._build(
            work, peers.PASSES, problem, guess, lambda one: peers.largest_difference(one, right)
        )
        return work, tasks

    def _buffers(self, buffers: Buffers) -> Iterator[tuple[Json, dict[str, Peer]]]:
        clipped = peers.right_clipped(buffers)
        # The moves of the weights are compared, as the weights themselves are much larger.
        moved = [a - b for a, b in zip(peers.right_stepped(buffers), buffers.weights, strict=True)]

        def distance(found: Sequence[Any]) -> float:
            pairs = zip(found, buffers.weights, strict=True)
            moves = [np.reshape(np.asarray(got, np.float64), w.shape) - w for got, w in pairs]
            return peers.furthest(moves, moved)

        for name, chosen, difference in (
            ("clip", peers.CLIPS, lambda found: peers.furthest(found, clipped)),
            ("adamw", peers.STEPS, distance),
        ):
            size = (TRAFFIC[name]["read"] + 2 * TRAFFIC[name]["update"]) * buffers.bytes
            work: Json = {"name": name, "bytes": size, "tolerance": LARGEST_DIFFERENCE, "rows": []}
            guess = _guess(chosen[0], buffers)
            yield work, self._build(work, chosen, buffers, guess, difference)

    def _build(
        self,
        work: Json,
        chosen: Sequence[type[Peer]],
        given: Problem | Buffers,
        guess: float,
        difference: Callable[[Any], float],
    ) -> dict[str, Peer]:
        """Return the peers whose first result is close to float64; add rows for all to `work`."""
        tasks = {}
        for peer in chosen:
            row: Json = {"name": peer.name, "title": peer.title, "median_ms": None}
            work["rows"].append(row)
            if not peers.installed(peer):
                row["left_out"] = f"{peer.module} is not installed"
                continue
            if peer.name == "lists" and guess > LISTS_SHARE * self.settings.seconds:
                row["estimated_ms"] = 1e3 * guess
                continue
            one = peer(given)
            one.step()
            off = difference(one.result())
            row["difference"] = off if off < inf else None
            if not off < work["tolerance"]:
                row["left_out"] = f"is off the float64 result by {off:.1e}"
                continue
            _choose_variant(one)
            tasks[peer.name] = one
        return tasks

    def _time(self, work: Json, tasks: dict[str, Peer]) -> None:
        rows = {row["name"]: row for row in work["rows"] if row["name"] in tasks}
        for name, row in rows.items():
            row["variant"] = tasks[name].variant

        def seen(turns: Mapping[str, list[list[float]]]) -> None:
            for name, row in rows.items():
                row.update(summary(turns[name]))
            self._rates()
            self.show(self.found)

        seconds = SHARES[work["name"]] * self.settings.seconds / max(len(tasks), 1)
        calls = {name: one.step for name, one in tasks.items()}
        interleave(calls, seconds, turn=min(0.05, seconds / 4), slow=SLOW, seen=seen)

    def _limits(self) -> None:
        """Measure the limits of all work, and add them to the last entry."""
        case, last = self.settings.case, self.limits[-1]
        seconds = SHARES["limits"] * self.settings.seconds / 60  # about thirty calls, timed twice
        if case.batch > 1:
            size = case.batch * case.width**2
            # Products of squares that are large enough for the best rate of the processor.
            edge = 512 if size <= 512**3 else 1024
            shapes = {(case.batch, case.width)} if size <= edge**3 else set()
            last["products"] = limits.product_limits({*shapes, (edge, edge)}, seconds)
        for name, (block, _) in self._blocks().items():
            last["memory"] += limits.memory_limits([block], seconds, list(TRAFFIC[name]))
        self._rates()
        self.show(self.found)

    def _blocks(self) -> dict[str, tuple[int, int]]:
        """Return for each work the size of all that it uses, and that of the weights, in bytes."""
        weights = self.settings.case.weight_bytes
        buffers = weights + 4 * self.settings.case.layers * self.settings.case.width
        used = {"pass": (2 * weights, weights), "clip": (buffers, buffers)}
        used["adamw"] = (4 * buffers, buffers)
        return {name: (min(block, LARGEST_BLOCK), size) for name, (block, size) in used.items()}

    def _rates(self) -> None:
        """Derive rates, ratios to vegrad and shares of the limit from medians and limits."""
        blocks = self._blocks()
        measured = [entry for entry in self.limits if entry["memory"]]
        network = self.found["network"] | {"flops": self.settings.case.flops}
        for work in self.found["work"]:
            if measured:
                (block, size), times = blocks[work["name"]], TRAFFIC[work["name"]]
                work["limit_ms"] = limits.traffic_ms(measured, size, block, times)
                work["limit"] = {"bytes": block} | {
                    kind: limits.best_rate(measured, kind, block) for kind in times
                }
            if measured and work["name"] == "pass" and network["batch"] > 1:
                products = limits.pass_ms(measured, network)
                # With few rows the memory limits the pass, not the products.
                if products > work["limit_ms"]:
                    work["limit_ms"] = products
                    work["limit"] = limits.peak(measured, network)
            _compare(work)


def _compare(work: Json) -> None:
    ours = next(row["median_ms"] for row in work["rows"] if row["name"] == "vegrad")
    for row in work["rows"]:
        took = row["median_ms"] or row.get("estimated_ms")
        if not took:
            continue
        row["ratio"] = took / ours if ours else None
        if "flops" in work:
            row["gflops"] = 1e-6 * work["flops"] / took
        else:
            row["gbytes"] = 1e-6 * work["bytes"] / took
        if "limit_ms" in work:
            row["share"] = work["limit_ms"] / took


def _nothing() -> limits.Found:
    return {"products": [], "memory": []}


def _choose_variant(peer: Peer) -> None:
    """Set the fastest of the variants of a peer, if it has some."""

    def as_variant(name: str) -> Call:
        def step() -> None:
            peer.variant = name
            peer.step()

        return step

    if peer.variants:
        peer.variant, _ = fastest({name: as_variant(name) for name in peer.variants}, 0.02)


def _guess(peer: type[Peer], buffers: Buffers) -> float:
    """Guess the seconds of a step in Python's lists from a step over a few elements."""
    few = min(20_000, buffers.bytes // 4)
    one = peer(Buffers([(few,)]))
    return timeit.timeit(one.step, number=2) / 2 * (buffers.bytes / 4) / few


def main(argument: str) -> None:
    """Measure in this process; `argument` is Settings as JSON."""

    def show(found: Json) -> None:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)

    try:
        Measuring(Settings(**json.loads(argument)), show).run()
    except MemoryError:
        show({"error": "memory"})
    except BrokenPipeError:  # the process that started this one has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
