"""The same work beside other libraries, timed in a process of its own: what `vegrad bench` shows.

    python -m vegrad.benchmark SETTINGS

measures, and writes all that it has after every round as one line of JSON. So whoever started it
may end it at any time and keep what is there.
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

from vegrad.benchmark import limits, peers
from vegrad.benchmark.machine import cores, environment, machine, versions
from vegrad.benchmark.peers import Buffers, Case, Problem
from vegrad.benchmark.timing import fastest, interleave, summary

Json = dict[str, Any]

# How far a float32 gradient may be from a float64 pass, relative to the largest of its array. Where
# φ′ jumps, rounding moves an element to the other side now and then.
LARGEST_DIFFERENCE, WITH_KINKS = 1e-3, 3e-2
SHARES = {"pass": 0.6, "clip": 0.12, "adamw": 0.13, "limits": 0.15}  # of the seconds
SLOW = 0.25  # seconds of a call that is timed three times and no more
LISTS_SHARE = 0.15  # of the seconds: a longer call of Python's lists is estimated, not timed
LARGEST_BLOCK = 2**28  # bytes: beyond every cache
# How often bytes as many as the weights' cross the memory. A pass reads W twice and writes dW. A
# clip reads g, then reads it and writes it back; AdamW reads g twice and does so with w, m and v.
TRAFFIC = {
    "pass": {"read": 2, "write": 1},
    "clip": {"read": 1, "update": 1},
    "adamw": {"read": 2, "update": 3},
}


class EndedError(OSError):
    """The process that measures ended before it was done."""


@dataclass(frozen=True)
class Settings:
    """What is measured, on how many threads, and how long about."""

    layers: int
    width: int
    batch: int
    activation: str
    threads: int
    seconds: float

    @property
    def case(self) -> Case:
        """The network. Its weights keep a signal's size as well as uniform ones can."""
        init = "he_uniform" if self.activation in peers.UNBOUNDED else "glorot_uniform"
        return Case(self.layers, self.width, self.batch, self.activation, init)


# The process that the command starts -----------------------------------------------------------


@contextmanager
def bound(threads: int) -> Iterator[None]:
    """Bind what is started here to as many cores, where the system can."""
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
    """Measure in a process of its own; `seen` gets all that there is after every round.

    Raises:
        MemoryError: the network is too large.
        EndedError: the process ended by itself, which it says on stderr, or was killed.
    """
    command = [sys.executable, "-m", "vegrad.benchmark", json.dumps(asdict(settings))]
    alone: dict[str, Any] = {"process_group": 0}  # Ctrl-C is ours: it shall not end at a traceback
    if sys.platform == "win32":
        alone = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with bound(settings.threads):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            env=environment(settings.threads), **alone,
        )  # fmt: skip
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


# The process that measures ---------------------------------------------------------------------


class Measuring:
    """One run. `found` is what it has; `show` is called whenever there is more."""

    def __init__(self, settings: Settings, show: Callable[[Json], None]) -> None:
        self.settings, self.show, self.limits = settings, show, [_nothing()]
        self.found: Json = {
            "format": 1, "done": False, "machine": machine(), "versions": versions(),
            "network": asdict(settings.case), "threads": settings.threads,
            "seconds": settings.seconds, "limits": self.limits, "work": [],
        }  # fmt: skip

    def run(self) -> None:
        """The pass, the clip and the step, and the machine's limits before and after."""
        for peer in (peers.Torch, peers.Jax):
            if peers.installed(peer):
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

    def _pass(self, case: Case) -> tuple[Json, dict[str, Any]]:
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

    def _buffers(self, buffers: Buffers) -> Iterator[tuple[Json, dict[str, Any]]]:
        clipped = peers.right_clipped(buffers)
        # How far the weights went is compared: they themselves are much larger than a step.
        moved = [a - b for a, b in zip(peers.right_stepped(buffers), buffers.weights, strict=True)]

        def distance(found: Sequence[Any]) -> float:
            pairs = zip(found, buffers.weights, strict=True)
            return peers.furthest([_like(got, start) - start for got, start in pairs], moved)

        works: tuple[tuple[str, Any, Callable[[Any], float]], ...] = (
            ("clip", peers.CLIPS, lambda found: peers.furthest(found, clipped)),
            ("adamw", peers.STEPS, distance),
        )
        for name, chosen, difference in works:
            times = TRAFFIC[name]["read"] + 2 * TRAFFIC[name]["update"]
            work: Json = {"name": name, "bytes": times * buffers.bytes,
                          "tolerance": LARGEST_DIFFERENCE, "rows": []}  # fmt: skip
            guess = _guess(chosen[0], buffers)
            yield work, self._build(work, chosen, buffers, guess, difference)

    def _build(
        self,
        work: Json,
        chosen: Sequence[Any],
        given: Problem | Buffers,
        guess: float,
        difference: Callable[[Any], float],
    ) -> dict[str, Any]:
        """The peers that take part, after their first result was held to float64; rows for all."""
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
            tasks[peer.name] = self._fastest(one)
        return tasks

    def _fastest(self, one: Any) -> Any:
        """The peer, as the fastest of its variants."""
        variants: Mapping[str, Any] = getattr(one, "variants", {})
        if variants:

            def as_variant(name: str) -> Callable[[], object]:
                def step() -> None:
                    one.variant = name
                    one.step()

                return step

            one.variant, _ = fastest({name: as_variant(name) for name in variants}, 0.02)
        return one

    def _time(self, work: Json, tasks: dict[str, Any]) -> None:
        rows = {row["name"]: row for row in work["rows"] if row["name"] in tasks}
        for name, row in rows.items():
            row["variant"] = getattr(tasks[name], "variant", None)

        def seen(turns: Mapping[str, list[list[float]]]) -> None:
            for name, row in rows.items():
                row.update(summary(turns[name]))
            self._rates()
            self.show(self.found)

        seconds = SHARES[work["name"]] * self.settings.seconds / max(len(tasks), 1)
        calls = {name: one.step for name, one in tasks.items()}
        interleave(calls, seconds, turn=min(0.05, seconds / 4), slow=SLOW, seen=seen)

    def _limits(self) -> None:
        """Measure the limits of all three, into the last entry."""
        case, last = self.settings.case, self.limits[-1]
        seconds = SHARES["limits"] * self.settings.seconds / 60  # thirty calls, twice
        if case.batch > 1:
            size = case.batch * case.width**2
            edge = 512 if size <= 512**3 else 1024  # large enough for the processor's best rate
            shapes = {(case.batch, case.width)} if size <= edge**3 else set()
            last["products"] = limits.product_limits({*shapes, (edge, edge)}, seconds)
        for name, (block, _) in self._blocks().items():
            last["memory"] += limits.memory_limits([block], seconds, list(TRAFFIC[name]))
        self._rates()
        self.show(self.found)

    def _blocks(self) -> dict[str, tuple[int, int]]:
        """Bytes of a block as large as all that a work uses, and of the weights or gradients."""
        weights = self.settings.case.weight_bytes
        buffers = weights + 4 * self.settings.case.layers * self.settings.case.width
        used = {"pass": (2 * weights, weights), "clip": (buffers, buffers)}
        used["adamw"] = (4 * buffers, buffers)
        return {name: (min(block, LARGEST_BLOCK), size) for name, (block, size) in used.items()}

    def _rates(self) -> None:
        """What follows from medians and limits: rates, ratios to vegrad, shares of the limit."""
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
                if products > work["limit_ms"]:  # else there are too few rows to be fast at them
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


def _like(found: Any, start: Any) -> Any:
    """Found as an array of float64 of the same shape."""
    return np.asarray(found, np.float64).reshape(start.shape)


def _guess(peer: Any, buffers: Buffers) -> float:
    """Seconds of a step in Python's lists, from one over a few elements."""
    few = min(20_000, buffers.bytes // 4)
    one = peer(Buffers([(few,)]))
    return timeit.timeit(one.step, number=2) / 2 * (buffers.bytes / 4) / few


def main(argument: str) -> None:
    """What the process does."""

    def show(found: Json) -> None:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)

    try:
        Measuring(Settings(**json.loads(argument)), show).run()
    except MemoryError:
        show({"error": "memory"})
    except BrokenPipeError:  # whoever started this has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
