"""Times norms, clipping and steps over buffers beside PyTorch, NumPy, optax and the memory.

    python bench/buffers.py               the table, on two threads; bench/buffers.json
    python bench/buffers.py --quick       a smoke run
    python bench/buffers.py --markdown    the table of the last complete run, for the README

Everything is measured in one process, bound to as many cores as threads. It needs PyTorch; the line
against optax needs JAX, and takes the same formula written in JAX where optax is not installed.
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import report
from vegrad.benchmark import peers
from vegrad.benchmark.machine import environment
from vegrad.benchmark.timing import fastest, interleave

ELEMENTS = 64 * 2**20
# Clipping changes what it clips. So that every call exceeds its threshold and the elements stay
# of ordinary size, each threshold is this times the last one.
SHRINK = 1 - 2**-16
CLIPPING, EPS = 0.01, 1e-3  # of adaptive clipping
# How far from float64 we may be, and others, PyTorch's norm of 64 Mi elements (it sums them in
# float32 and is off by 0.5 %), and what many timed calls have left
OURS, OTHERS, LARGE, AFTER = 1e-6, 1e-5, 1e-2, 1e-3
MODES = {f"foreach={mode}": mode for mode in (None, True, False)}
OPTAX = importlib.util.find_spec("optax") is not None
LEGEND = "Medians in milliseconds. GB/s: what must cross the memory, over vegrad's time"


@dataclass
class Task:
    """A call to be timed, how far its result was from float64, and which variant it is."""

    call: Callable
    difference: float | None = None
    variant: str | None = None


def winner(variants, settings):
    """The fastest task of {name: task}."""
    calls = {name: task.call for name, task in variants.items()}
    name, _ = fastest(calls, settings["seconds"] / 8)
    return replace(variants[name], variant=name)


def lines(tasks, wanted, settings):
    """Lines of the table: (case, against, asked ratio, our task, theirs, bytes, scale) of each.

    The bytes are those that must cross the memory in our call; their time counts `scale` times.
    """
    turns = interleave({name: task.call for name, task in tasks.items()}, settings["seconds"])
    found = {name: report.summary(task, turns[name]) for name, task in tasks.items()}
    for case, against, asked, ours, theirs, size, scale in wanted:
        entry = {"case": case, "against": against, "asked": asked, "bytes": size, "scale": scale}
        ratio = scale * found[theirs]["median_ms"] / found[ours]["median_ms"]
        yield entry | {"ratio": ratio, "ours": found[ours], "theirs": found[theirs]}


def hold(name, difference, tolerance):
    """The difference, which ends the run if it is too large."""
    if not difference < tolerance:
        sys.exit(f"{name} is off float64 by {difference:.1e}, more than {tolerance:.0e}")
    return float(difference)


def norm64(buffers):
    parts = (part for array in buffers for part in np.array_split(array.ravel(), 64))
    return float(np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in parts)))


def normals(count, shape):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for _ in range(count)]


def reads(array, threads):
    """{name: a task} that reads the array, which must not contain the byte 255, once."""
    import torch

    parts, pool = np.array_split(array, threads), ThreadPoolExecutor(threads)

    def on_each(read):
        """Every thread reads its part, this one the last."""
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


def large(settings):
    """One buffer of 64 Mi elements.

    It lies in NumPy's memory, for PyTorch and in bfloat16 too: there the system gives large pages.
    One more line has a tensor in PyTorch's memory.
    """
    import torch
    import vegrad

    array = np.empty(ELEMENTS, np.float32)
    np.random.default_rng(0).standard_normal(dtype=np.float32, out=array)
    octets = array.view(np.uint8)
    np.minimum(octets, 254, out=octets)  # for memchr; changes some elements' last bits
    shared = torch.from_numpy(array)
    tensor = torch.empty(ELEMENTS).copy_(shared)
    brain = torch.from_numpy(np.empty(ELEMENTS, np.int16)).view(torch.bfloat16).copy_(shared)
    right, right_brain = norm64([array]), norm64(x.float().numpy() for x in brain.split(2**22))

    def norm(name, call, tolerance=OURS, expected=right):
        return Task(call, hold(name, abs(float(call()) / expected - 1), tolerance))

    def torch_norm(tensor):
        total = partial(torch.nn.utils.get_total_norm, [tensor])
        norms = {name: partial(total, foreach=mode) for name, mode in MODES.items()}
        return winner({name: norm(name, norms[name], LARGE) for name in norms}, settings)

    measure = norm("measure", lambda: vegrad.measure(array).total.norm)
    tasks = {
        "norm": norm("norm", lambda: vegrad.norm(array)),
        "get_total_norm": torch_norm(shared),
        "reading": winner(reads(array, settings["threads"]), settings),
        "norm, tensor": norm("norm of a tensor", lambda: vegrad.norm(tensor)),
        "torch, tensor": torch_norm(tensor),
        "measure": replace(measure, call=lambda: vegrad.measure(array)),
        "bfloat16": norm("bfloat16", lambda: vegrad.norm(brain), expected=right_brain),
    }
    case, size, own = "norm of 64 Mi float32", array.nbytes, "the same in PyTorch's memory"
    wanted = [
        (case, "get_total_norm", 1.9, "norm", "get_total_norm", size, 1),
        (own, "get_total_norm", 1.9, "norm, tensor", "torch, tensor", size, 1),
        (case, "reading", 0.9, "norm", "reading", size, 1),
        ("measure of the same", "norm", 0.8, "measure", "norm", size, 1),
        ("norm of 64 Mi bfloat16", "float32, a byte", 0.9, "bfloat16", "norm", size // 2, 0.5),
    ]
    return lines(tasks, wanted, settings)


class Gradients:
    """Buffers that are clipped in place, from `source`, and the threshold of the next call.

    `right(threshold)` yields what one call makes of the source, in float64.
    """

    def __init__(self, source, buffers, start, right, exceeded=True):
        self.source, self.buffers, self.start, self.right = source, buffers, start, right
        self.factor = SHRINK if exceeded else 1
        self.refill()

    def refill(self, start=1):
        self.threshold = start * self.start
        for buffer, array in zip(self.buffers, self.source, strict=True):
            np.copyto(buffer, array)

    def next(self):
        self.threshold *= self.factor
        return self.threshold

    def difference(self, buffers):
        """How far buffers are from what they should be, relative to each one's largest element."""
        pairs = zip(buffers, self.right(self.threshold), strict=True)
        return max(np.abs(got - right).max() / np.abs(right).max() for got, right in pairs)

    def task(self, name, call, tolerance=OTHERS):
        """A task, once it has been seen to clip to half the first threshold as it should."""
        self.refill(0.5)
        call()
        difference = hold(name, self.difference(self.buffers), tolerance)
        self.refill()
        return Task(call, difference)

    def check(self):
        """Ends the run unless the last of many calls has left what it should."""
        hold("what all calls have left", self.difference(self.buffers), AFTER)
        if self.threshold < 1e-3 * self.start:
            sys.exit("so many calls that the gradients have nearly vanished")


def clip(case, count, shape, exceeded, asked, settings):
    """Arrays of NumPy, and the gradients of PyTorch's parameters, by their joint norm.

    PyTorch and vegrad clip the same tensors, in turns.
    """
    import torch
    import vegrad

    source = normals(count, shape)
    norm, size = norm64(source), sum(array.nbytes for array in source)
    parameters = [torch.nn.Parameter(torch.empty(shape)) for _ in source]
    for parameter in parameters:
        parameter.grad = torch.empty(shape)

    def right(threshold):
        return (min(threshold / norm, 1) * np.float64(array) for array in source)

    start = norm if exceeded else 4 * norm
    arrays = Gradients(source, list(map(np.copy, source)), start, right, exceeded)
    tensors = Gradients(source, [x.grad.numpy() for x in parameters], start, right, exceeded)

    def ours(case, grads):
        assert vegrad.clip_by_global_norm_(grads(), case.next()).clipped is exceeded

    def theirs(mode):
        torch.nn.utils.clip_grad_norm_(parameters, tensors.next(), foreach=mode)

    modes = {name: tensors.task(name, partial(theirs, mode)) for name, mode in MODES.items()}
    calls = {"NumPy arrays": partial(ours, arrays, arrays.buffers.copy)}
    calls["tensors"] = partial(ours, tensors, lambda: [one.grad for one in parameters])
    tasks = {name: call.args[0].task(name, call, OURS) for name, call in calls.items()}
    size = (3 if exceeded else 1) * size if size > 1e8 else None  # less stays in a cache
    wanted = [(f"{case}, {x}", "clip_grad_norm_", asked, x, "torch", size, 1) for x in tasks]
    tasks["torch"] = winner(modes, settings)
    yield from lines(tasks, wanted, settings)
    arrays.check()
    tensors.check()


def in_jax(axis):
    """A function (gradients, weights) by optax, or by its formula, for units along an axis."""
    import jax

    if OPTAX:
        rule = importlib.import_module("optax").adaptive_grad_clip(CLIPPING, EPS, axis=axis)
        return lambda grads, weights: rule.update(grads, rule.init(weights), weights)[0]

    def clip(grad, weight):
        norm, size = (jax.numpy.linalg.norm(x, axis=axis, keepdims=True) for x in (grad, weight))
        return grad * (CLIPPING * size.clip(EPS) / norm.clip(1e-6)).clip(max=1)

    return partial(jax.tree.map, clip)


def jax_task(case, weights, turned, donated):
    """Weights lie (in, out) if turned; gradients are clipped in place if donated.

    The threshold is a constant: the work is the same whether a row exceeds it or not.
    """
    import jax

    turn = (lambda array: np.asarray(array).T) if turned else np.asarray
    grads, weights = (
        [jax.device_put(np.array(turn(x), order="C")) for x in arrays]
        for arrays in (case.source, weights)
    )
    program = jax.jit(in_jax(0 if turned else 1), donate_argnums=(0,) if donated else ())
    kept, place = {"in": grads}, "in" if donated else "out"

    def call():
        kept[place] = jax.block_until_ready(program(kept["in"], weights))

    call()
    case.threshold = CLIPPING
    return Task(call, hold("adaptive, JAX", case.difference(map(turn, kept[place])), OTHERS))


def adaptive(settings):
    """100 weights of 512 by 512; every row of their gradients exceeds its threshold."""
    import vegrad

    source = normals(100, (512, 512))
    weights = [array / np.float32(512**0.5) for array in reversed(source)]

    def right(clipping):
        for pair in zip(source, weights, strict=True):
            norm, size = (np.linalg.norm(np.float64(x), axis=1, keepdims=True) for x in pair)
            yield pair[0] * np.minimum(1, clipping * np.maximum(size, EPS) / norm)

    case = Gradients(source, list(map(np.copy, source)), CLIPPING, right)

    def ours():
        grads, clipping = list(case.buffers), case.next()
        assert vegrad.adaptive_clip_(grads, list(weights), clipping, eps=EPS).clipped

    def theirs(norms):
        clipping = case.next()
        for grad, weight in zip(case.buffers, weights, strict=True):
            norm, limit = norms(grad), clipping * np.maximum(norms(weight), EPS)
            factor = np.where(norm > limit, limit / np.maximum(norm, 1e-6), np.float32(1))
            np.multiply(grad, factor[:, None], out=grad)

    norms = {"einsum": lambda x: np.sqrt(np.einsum("ij,ij->i", x, x))}
    norms["vecdot"] = lambda x: np.sqrt(np.vecdot(x, x))  # since NumPy 2.0
    names = (name for name in norms if hasattr(np, name))
    variants = {name: case.task(name, partial(theirs, norms[name])) for name in names}
    tasks, asked = {"vegrad": case.task("adaptive_clip_", ours, OURS)}, {"NumPy": 4}
    if peers.installed(peers.Jax):
        title = "optax, jit" if OPTAX else "JAX, jit"
        programs = {
            f"turned={kind[0]}, donated={kind[1]}": jax_task(case, weights, *kind)
            for kind in product((False, True), repeat=2)
        }
        tasks[title], asked[title] = winner(programs, settings), 1.5
    case.refill()
    tasks["NumPy"] = winner(variants, settings)
    name, size = "adaptive clipping, 100 of 512×512", 3 * sum(array.nbytes for array in source)
    wanted = [(name, other, least, "vegrad", other, size, 1) for other, least in asked.items()]
    yield from lines(tasks, wanted, settings)
    case.check()


# The process that measures, and the one that the user starts


def child(settings):
    """Measures everything in this process, and prints one JSON object."""
    from epochs import epochs  # these need what is above
    from steps import steps

    for peer in filter(peers.installed, (peers.Torch, peers.Jax)):
        peer.prepare(settings["threads"])
    found = list(large(settings))
    found += clip("clip, 100 of 512×512", 100, (512, 512), True, 1.45, settings)
    found += clip("the same, not reached", 100, (512, 512), False, 2.7, settings)
    found += clip("clip, 300 of 1000", 300, (1000,), True, 10, settings)
    found += clip("clip, 2000 of 100", 2000, (100,), True, 10, settings)
    found += adaptive(settings)
    found += steps(settings)
    found += epochs(settings)
    optax = {"optax": importlib.metadata.version("optax") if OPTAX else None}
    print(json.dumps({"lines": found, "versions": report.versions() | optax}))


def table(results):
    """The table in markdown, which a terminal shows well too."""
    rows = [["case", "against", "vegrad", "GB/s", "other", "ratio", "asked"]]
    for entry in results["lines"]:
        ours, theirs, asked = entry["ours"]["median_ms"], entry["theirs"], entry["asked"]
        other = f"{entry['scale'] * theirs['median_ms']:#.3g}"
        rate = f"{1e-6 * entry['bytes'] / ours:.1f}" if entry["bytes"] else "–"
        ratios = (f"{100 * x:.0f} %" if asked < 1 else f"{x:.2f}×" for x in (entry["ratio"], asked))
        against = entry["against"] + (f" ({theirs['variant']})" if theirs["variant"] else "")
        rows.append([entry["case"], against, f"{ours:#.3g}", rate, other, *ratios])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * n if i < 2 else "-" * (n - 1) + ":" for i, n in enumerate(widths)])
    used, names = results["versions"], ("numpy", "torch", "jax", "optax", "vegrad")
    parts = [report.threads_text(results), results["machine"]["cpu"], used.get("isa", "?")]
    parts += [results["date"], *(f"{name} {used[name]}" for name in names if used.get(name))]
    yield f"{LEGEND}; {', '.join(parts)}.\n"
    for row in rows:
        yield "| " + " | ".join(map("{:{}{}}".format, row, "<<>>>>>", widths)) + " |"


def main(script=__file__, doc=__doc__, measure=child):
    """Runs a script's child on as many cores as threads; prints and saves its table."""
    script = Path(script).resolve()
    name = script.with_suffix(".json").name
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run, too short to be believed")
    add("--threads", type=int, help="number of threads (2)")
    add("--output", type=Path, help=f"folder for {name}")
    add("--markdown", action="store_true", help="print the saved results, run nothing")
    add("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure(json.loads(options.child))
    folder = options.output or script.parent
    if options.markdown:
        return print("\n".join(table(report.load(folder / name))))
    cores = report.cores()
    threads = min(2, len(cores)) if options.threads is None else options.threads
    if not 1 <= threads <= len(cores):
        parser.error(f"--threads must be between 1 and the {len(cores)} cores there are")
    settings = {"threads": threads, "seconds": 0.2 if options.quick else 4}  # for each call
    results = report.description() | settings
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[:threads])  # which the child inherits
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
        folder.mkdir(parents=True, exist_ok=True)
        saved = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(saved)


if __name__ == "__main__":
    main()
