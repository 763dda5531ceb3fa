"""The parts that the programs timing buffers, steps, epochs and PyTorch have in common.

A program makes `Task`s (calls whose results were held to float64), picks the fastest variant of
each library with `winner`, and times them in turns with `lines`, which yields the lines of its
table. `main` starts the program again as a child process bound to some cores, lets it measure, and
prints and saves what the child found.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import report
from vegrad.benchmark import limits
from vegrad.benchmark.machine import environment
from vegrad.benchmark.timing import fastest, interleave

ELEMENTS = 64 * 2**20  # of the one large buffer
# Largest relative differences from float64: of vegrad; of the others; of PyTorch's norm of 64 Mi
# elements (it sums them in float32 and is off by 0.5 %); of what many timed calls have left.
OURS, OTHERS, LARGE, AFTER = 1e-6, 1e-5, 1e-2, 1e-3
MODES = {f"foreach={mode}": mode for mode in (None, True, False)}
OPTAX = importlib.util.find_spec("optax") is not None
LEGEND = "Medians in milliseconds. GB/s: what must cross the memory, over vegrad's time"


@dataclass
class Task:
    """A call to time, how far its result was from float64, and the name of its variant."""

    call: Callable
    difference: float | None = None
    variant: str | None = None


def winner(variants, settings):
    """Return the fastest task of {name: task}."""
    calls = {name: task.call for name, task in variants.items()}
    name, _ = fastest(calls, settings["seconds"] / 8)
    return replace(variants[name], variant=name)


def lines(tasks, wanted, settings):
    """Time all tasks in turns; yield a line of the table for each entry of `wanted`.

    An entry is (case, against, asked ratio, our task, their task, bytes, scale). The bytes are
    those that must cross the memory in our call; the time of their task counts `scale` times.
    """
    turns = interleave({name: task.call for name, task in tasks.items()}, settings["seconds"])
    found = {name: report.summary(task, turns[name]) for name, task in tasks.items()}
    for case, against, asked, ours, theirs, size, scale in wanted:
        entry = {"case": case, "against": against, "asked": asked, "bytes": size, "scale": scale}
        ratio = scale * found[theirs]["median_ms"] / found[ours]["median_ms"]
        yield entry | {"ratio": ratio, "ours": found[ours], "theirs": found[theirs]}


def hold(name, difference, tolerance):
    """Return the difference; end the run if it is too large."""
    if not difference < tolerance:
        sys.exit(f"{name} is off float64 by {difference:.1e}, more than {tolerance:.0e}")
    return float(difference)


def normals(count, shape):
    """Draw `count` float32 arrays of normal numbers, the same at every call."""
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for _ in range(count)]


def reads(array, threads):
    """Make {name: task} of all ways to read the array once; it must not contain the byte 255."""
    import torch

    parts, pool = np.array_split(array, threads), ThreadPoolExecutor(threads)

    def on_each(read):
        """Let every thread read its part; the calling thread reads the last one."""
        waiting = [pool.submit(read, part) for part in parts[:-1]]
        read(parts[-1])
        for other in waiting:
            other.result()

    tensor = torch.from_numpy(array)
    calls = {"torch.sum": tensor.sum, "torch.dot": partial(torch.dot, tensor, tensor)}
    calls |= {"numpy.sum": partial(on_each, np.sum), "numpy.max": partial(on_each, np.max)}
    calls |= {"numpy.dot": partial(np.dot, array, array)}
    calls |= {"numpy.dot each": partial(on_each, lambda part: np.dot(part, part))}
    if os.name == "posix":
        memchr = ctypes.CDLL(None).memchr  # ctypes releases the GIL
        memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        calls["memchr"] = partial(on_each, lambda x: memchr(x.ctypes.data, 255, x.nbytes))
    return {name: Task(call) for name, call in calls.items()}


def rated(entry):
    """Return the ratio of a line, and the one asked, as they are shown."""
    asked, ratio = entry["asked"], entry["ratio"]
    ratios = [f"{100 * x:.0f} %" if asked < 1 else f"{x:.2f}×" for x in (ratio, asked)]
    if asked < 1 and ratio >= limits.AT_LIMIT:
        ratios[0] = f"at the limit, {ratios[0]}"
    return ratios


def conditions(results):
    """Describe where a run was made, and of what."""
    used, names = results["versions"], ("numpy", "torch", "jax", "optax", "vegrad")
    parts = [report.threads_text(results), results["machine"]["cpu"], used.get("isa", "?")]
    return ", ".join(
        [*parts, results["date"], *(f"{name} {used[name]}" for name in names if used.get(name))]
    )


def aligned(rows, texts):
    """Yield rows as those of a table in markdown, of which the first columns are texts."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * n if i < texts else "-" * (n - 1) + ":" for i, n in enumerate(widths)]
    sides = "<" * texts + ">" * (len(widths) - texts)
    for row in [rows[0], rule, *rows[1:]]:
        yield "| " + " | ".join(map("{:{}{}}".format, row, sides, widths)) + " |"


def table(results):
    """Yield the lines of the table, in markdown that also reads well in a terminal."""
    rows = [["case", "against", "vegrad", "GB/s", "other", "ratio", "asked"]]
    for entry in results["lines"]:
        ours, theirs = entry["ours"]["median_ms"], entry["theirs"]
        other = f"{entry['scale'] * theirs['median_ms']:#.3g}"
        rate = f"{1e-6 * entry['bytes'] / ours:.1f}" if entry["bytes"] else "–"
        against = entry["against"] + (f" ({theirs['variant']})" if theirs["variant"] else "")
        rows.append([entry["case"], against, f"{ours:#.3g}", rate, other, *rated(entry)])
    yield f"{LEGEND}; {conditions(results)}.\n"
    yield from aligned(rows, 2)


def beside(several):
    """Yield the lines of a table of several machines' results, in markdown."""
    names = [re.sub(r"\(.*?\)| Processor", "", one["machine"]["cpu"]).strip() for one in several]
    yield "Medians in milliseconds, and how many times faster vegrad is."
    yield from (f"{name}: {conditions(one)}." for name, one in zip(names, several, strict=True))
    yield ""
    heads = [head for name in names for head in (f"{name}, ms", "ratio")]
    rows = [["case", "against", *heads, "asked"]]
    for entries in zip(*(one["lines"] for one in several), strict=True):
        first = entries[0]
        if any(
            (one["case"], one["against"]) != (first["case"], first["against"]) for one in entries
        ):
            sys.exit("these results have not the same lines")
        each = [
            text for one in entries for text in (f"{one['ours']['median_ms']:#.3g}", rated(one)[0])
        ]
        rows.append([first["case"], first["against"], *each, rated(first)[1]])
    yield from aligned(rows, 2)


def arguments(doc, name):
    """Parse the command line of a program whose results are called `name`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run, too short to be believed")
    add("--threads", type=int, help="number of threads (2)")
    add("--output", type=Path, help=f"folder for {name} (bench/results)")
    add("--markdown", action="store_true", help="print the saved results, run nothing")
    add("--beside", type=Path, nargs="+", help="folders of results to print beside these")
    add("--child", help=argparse.SUPPRESS)
    return parser, parser.parse_args()


def main(script, doc, measure):
    """Run a program: `measure` in a child on as many cores as threads; print and save its table."""
    script = Path(script).resolve()
    name = script.with_suffix(".json").name
    parser, options = arguments(doc, name)
    if options.child:
        return measure(json.loads(options.child))
    folder = options.output or report.RESULTS
    if options.beside:
        several = [report.load(one / name) for one in (folder, *options.beside)]
        return print("\n".join(beside(several)))
    if options.markdown:
        return print("\n".join(table(report.load(folder / name))))
    cores = report.cores()
    threads = min(2, len(cores)) if options.threads is None else options.threads
    if not 1 <= threads <= len(cores):
        parser.error(f"--threads must be between 1 and the {len(cores)} cores there are")
    settings = {"threads": threads, "seconds": 0.2 if options.quick else 4}  # for each call
    results = report.description() | settings
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[:threads])  # the child inherits this
    command = [sys.executable, str(script), "--child", json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(threads))
    if done.returncode:
        sys.exit(done.returncode)
    results |= json.loads(done.stdout.splitlines()[-1])
    print("\n".join(table(results)))
    for entry in results["lines"]:
        if entry["ratio"] < entry["asked"]:
            print(f"less than asked: {entry['case']}, against {entry['against']}")
    if options.output or not (options.quick or options.threads):
        report.write(results, folder / name)
