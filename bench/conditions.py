"""Measure conditions that the table leaves out: peak memory, a busy core, small calls.

    python bench/conditions.py            everything
    python bench/conditions.py --quick    a smoke run

`bench/run.py` runs this too, and saves the results. Every library gets a process of its own.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import timeit
from statistics import median

import numpy as np

MEMORY_ROW = (8, 2048, 512)  # layers, width, batch
BUSY_ROW = (50, 64, 64)
LIBRARIES = {"vegrad": "vegrad", "torch": "PyTorch", "jax": "JAX"}


# Memory


def vegrad_step(layers, width, x, target):
    """Return a function that makes a pass with vegrad."""
    import vegrad

    network = vegrad.MLP([width] * (layers + 1), seed=0)
    return lambda: network.backward(x, target)


def torch_step(layers, width, x, target):
    """Return a function that makes a pass with PyTorch."""
    import torch

    modules = [torch.nn.Linear(width, width) for _ in range(layers)]
    hidden = [part for module in modules[:-1] for part in (module, torch.nn.Tanh())]
    network = torch.nn.Sequential(*hidden, modules[-1])
    x, target = torch.from_numpy(x), torch.from_numpy(target)

    def step():
        network.zero_grad()
        torch.nn.functional.mse_loss(network(x), target).backward()

    return step


def memory(library):
    """Return the peak resident bytes in three passes, and before the network was built."""
    import resource

    importlib.import_module(library)
    unit = 1 if sys.platform == "darwin" else 1024

    def peak():
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    layers, width, batch = MEMORY_ROW
    random = np.random.default_rng(0)
    x, target = (random.standard_normal((batch, width), np.float32) for _ in range(2))
    before = peak()
    step = {"vegrad": vegrad_step, "torch": torch_step}[library](layers, width, x, target)
    for _ in range(3):
        step()
    return {"bytes": peak(), "before": before}


# A busy core


def busy(library, seconds):
    """Return median milliseconds on two threads, alone and beside a process that never waits."""
    # Not at the top: memory() must load no library but its own.
    from rows import Row
    from vegrad.benchmark import peers

    layers, width, batch = BUSY_ROW
    peer = {"vegrad": peers.Vegrad, "torch": peers.Torch, "jax": peers.Jax}[library]
    if hasattr(peer, "prepare"):
        peer.prepare(2)
    step = peer(peers.Problem(Row(layers, width, batch))).step
    found = {"idle": [], "busy": []}

    def times():
        """Time calls for a sixth of the seconds."""
        end, durations = time.perf_counter() + seconds / 6, []
        while time.perf_counter() < end:
            start = time.perf_counter()
            step()
            durations.append(1e3 * (time.perf_counter() - start))
        return durations

    for _ in range(3):
        times()
        found["idle"] += times()
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.2)
            found["busy"] += times()
        finally:
            other.kill()
            other.wait()
    return {name: median(durations) for name, durations in found.items()}


# Small calls


def calls(seconds):
    """Return the microseconds of calls on one unit and one row, with nothing to compute."""
    import vegrad

    network = vegrad.MLP([1, 1], seed=0)
    x, target = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    tasks = {
        "backward": lambda: network.backward(x, target),
        "forward": lambda: network.forward(x),
        "loss": lambda: network.loss(x, target),
    }
    return {
        name: 1e6
        * median(timeit.repeat(task, number=1000, repeat=max(3, int(300 * seconds))))
        / 1000
        for name, task in tasks.items()
    }


# The process that the user starts


def child(question, library, seconds, threads):
    """Answer one question in a process of its own, bound to as many cores as threads."""
    from vegrad.benchmark.machine import cores, environment

    command = [sys.executable, __file__, "--child", question, library, str(seconds)]

    def bind():
        os.sched_setaffinity(0, cores()[:threads])

    surroundings = {"env": environment(threads)}
    if hasattr(os, "sched_setaffinity"):
        surroundings["preexec_fn"] = bind
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **surroundings)
    return json.loads(done.stdout.splitlines()[-1])


def measure(threads, seconds):
    """Measure everything; return the numbers."""
    here = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    layers, width, batch = MEMORY_ROW
    needed = 4 * layers * (2 * (width + 1) * width + batch * width)
    return {
        "memory": {"row": MEMORY_ROW, "needed": needed}
        | {name: child("memory", name, seconds, threads) for name in here if name != "jax"},
        "busy": {"row": BUSY_ROW}
        | ({name: child("busy", name, seconds, 2) for name in here} if threads > 1 else {}),
        "calls": child("calls", "vegrad", seconds, threads),
    }


def sentences(found):
    """Put the numbers into sentences."""
    row = "×".join(map(str, found["memory"]["row"]))
    needed = found["memory"]["needed"]
    peaks = [
        f"{title} {found['memory'][name]['bytes'] / 1e6:.0f} MB"
        f" ({found['memory'][name]['bytes'] / needed:.2f}×)"
        for name, title in LIBRARIES.items()
        if name in found["memory"]
    ]
    yield (
        f"Peak resident memory of {row}, beside the {needed / 1e6:.0f} MB of parameters, gradients"
        f" and activations: {', '.join(peaks)}."
    )
    row = "×".join(map(str, found["busy"]["row"]))
    ratios = [
        f"{title} {found['busy'][name]['busy'] / found['busy'][name]['idle']:.2f}×"
        f" ({found['busy'][name]['idle']:.2f} → {found['busy'][name]['busy']:.2f} ms)"
        for name, title in LIBRARIES.items()
        if name in found["busy"]
    ]
    if ratios:
        yield f"{row} on two threads with another process busy on one core: {', '.join(ratios)}."
    spent = ", ".join(f"{name} {value:.1f} µs" for name, value in found["calls"].items())
    yield f"A call with nothing to compute: {spent}."


def main():
    """Measure and print, or answer one question as a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        question, library, seconds = options.child
        answer = {
            "memory": lambda: memory(library),
            "busy": lambda: busy(library, float(seconds)),
            "calls": lambda: calls(float(seconds)),
        }[question]()
        return print(json.dumps(answer))
    from vegrad.benchmark.machine import cores

    for sentence in sentences(measure(min(2, len(cores())), 0.3 if options.quick else 6)):
        print(sentence)


if __name__ == "__main__":
    main()
