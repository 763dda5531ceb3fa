"""Time norms, clipping and steps over buffers beside PyTorch, NumPy, optax and the memory.

    python bench/buffers.py               the table, on two threads; bench/results/buffers.json
    python bench/buffers.py --quick       a smoke run
    python bench/buffers.py --markdown    the last complete run, for docs/benchmarks.md

One process, bound to as many cores as threads, measures everything. It needs PyTorch; the line
against optax needs JAX, and times the same formula written in JAX where optax is not installed.
"""

import importlib
import json
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product

import numpy as np
import report
from common import (
    AFTER,
    ELEMENTS,
    LARGE,
    MODES,
    OPTAX,
    OTHERS,
    OURS,
    Task,
    hold,
    lines,
    main,
    normals,
    reads,
    winner,
)
from epochs import epochs
from steps import steps
from vegrad.benchmark import peers

# Clipping changes the gradients it clips. So that every call exceeds its threshold and the elements
# stay of ordinary size, each threshold is this times the last one.
SHRINK = 1 - 2**-16
CLIPPING, EPS = 0.01, 1e-3  # of adaptive clipping


def norm64(buffers):
    """Compute the joint norm in float64, a part of each buffer at a time."""
    parts = (part for array in buffers for part in np.array_split(array.ravel(), 64))
    return float(np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in parts)))


def large(settings):
    """Yield the lines about one buffer of 64 Mi elements.

    The buffer lies in memory that NumPy allocated, also for PyTorch and in bfloat16, because the
    system gives large pages there. One more line has a tensor in PyTorch's memory.
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
    """Buffers that are clipped in place, filled from `source`, and the next call's threshold.

    `right(threshold)` yields the result of one call on the source, in float64.
    """

    def __init__(self, source, buffers, start, right, exceeded=True):
        self.source, self.buffers, self.start, self.right = source, buffers, start, right
        self.factor = SHRINK if exceeded else 1
        self.refill()

    def refill(self, start=1):
        """Fill the buffers from the source and begin again at `start` times the first threshold."""
        self.threshold = start * self.start
        for buffer, array in zip(self.buffers, self.source, strict=True):
            np.copyto(buffer, array)

    def next(self):
        """Return the threshold of the next call."""
        self.threshold *= self.factor
        return self.threshold

    def difference(self, buffers):
        """Return the largest error of any buffer, relative to its own largest element."""
        pairs = zip(buffers, self.right(self.threshold), strict=True)
        return max(np.abs(got - right).max() / np.abs(right).max() for got, right in pairs)

    def task(self, name, call, tolerance=OTHERS):
        """Make a task of a call, after checking that it clips to half the first threshold."""
        self.refill(0.5)
        call()
        difference = hold(name, self.difference(self.buffers), tolerance)
        self.refill()
        return Task(call, difference)

    def check(self):
        """End the run unless the last of many calls has left the right gradients."""
        hold("what all calls have left", self.difference(self.buffers), AFTER)
        if self.threshold < 1e-3 * self.start:
            sys.exit("so many calls that the gradients have nearly vanished")


def clip(case, count, shape, exceeded, asked, settings):
    """Yield the lines about clipping NumPy arrays and PyTorch gradients by their joint norm.

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
    size = (3 if exceeded else 1) * size if size > 1e8 else None  # smaller ones stay in a cache
    wanted = [(f"{case}, {x}", "clip_grad_norm_", asked, x, "torch", size, 1) for x in tasks]
    tasks["torch"] = winner(modes, settings)
    yield from lines(tasks, wanted, settings)
    arrays.check()
    tensors.check()


def in_jax(axis):
    """Return optax's clip(gradients, weights), or its formula, for units along an axis."""
    import jax

    if OPTAX:
        rule = importlib.import_module("optax").adaptive_grad_clip(CLIPPING, EPS, axis=axis)
        return lambda grads, weights: rule.update(grads, rule.init(weights), weights)[0]

    def clip(grad, weight):
        norm, size = (jax.numpy.linalg.norm(x, axis=axis, keepdims=True) for x in (grad, weight))
        return grad * (CLIPPING * size.clip(EPS) / norm.clip(1e-6)).clip(max=1)

    return partial(jax.tree.map, clip)


def jax_task(case, weights, turned, donated):
    """Make a task of adaptive clipping in JAX.

    Weights are stored (in, out) if turned; gradients are clipped in place if donated. The threshold
    is a constant: the work is the same whether a row exceeds it or not.
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
    """Yield the lines about 100 weights of 512 by 512, whose gradients all exceed their limits."""
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


def child(settings):
    """Measure everything in this process and print one JSON object."""
    for peer in filter(peers.installed, (peers.Torch, peers.Jax)):
        peer.prepare(settings["threads"])
    found = list(large(settings))
    found += clip("clip, 100 of 512×512", 100, (512, 512), True, 1.45, settings)
    found += clip("the same, not reached", 100, (512, 512), False, 2.7, settings)
    found += clip("clip, 300 of 1000", 300, (1000,), True, 15, settings)
    found += clip("clip, 2000 of 100", 2000, (100,), True, 15, settings)
    found += adaptive(settings)
    found += steps(settings)
    found += epochs(settings)
    optax = {"optax": version("optax") if OPTAX else None}
    print(json.dumps({"lines": found, "versions": report.versions() | optax}))


if __name__ == "__main__":
    main(__file__, __doc__, child)
