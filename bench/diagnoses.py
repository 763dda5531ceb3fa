"""Time what a diagnosis costs beside its passes, an import beside NumPy's, and a file's reading.

    python bench/diagnoses.py            all of it: about a minute
    python bench/diagnoses.py --quick    a smoke run: few calls, a small file

Everything is the process's own time, the least of several calls in turns, so that other work on the
machine counts little. `python bench/models.py` counts the passes of `vegrad.torch.diagnose`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import vegrad

DEPTHS, WIDTH, BATCH = (10, 50, 200), 64, 256
ASKED = {10: 8, 50: 25, 200: 100}  # milliseconds of a diagnosis
BESIDE = 3  # milliseconds beside the passes, without theory
IMPORT, READ = 0.04, 1.3  # seconds beside NumPy's import; times the reader's time


def least(calls, rounds):
    """Return the least milliseconds of each call, by name, in turns."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def own_networks(rounds):
    """Yield a line for each depth: a pass, a diagnosis without theory and with it."""
    random = np.random.default_rng(0)
    for depth in DEPTHS:
        network = vegrad.MLP([WIDTH] * (depth + 1), seed=0)
        x, target = (random.standard_normal((BATCH, WIDTH), np.float32) for _ in range(2))
        found = least(
            {
                "pass": lambda network=network, x=x, target=target: network.backward(x, target),
                "plain": lambda network=network, x=x, target=target: vegrad.diagnose(
                    network, x, target, theory=False
                ),
                "theory": lambda network=network, x=x, target=target: vegrad.diagnose(
                    network, x, target
                ),
            },
            rounds,
        )
        one = found["pass"]  # which tells of batches drawn from it too
        yield (
            f"{depth} × {WIDTH}, batch {BATCH}: a pass {one:.2f} ms; diagnosed in "
            f"{found['theory']:.1f} ms (asked {ASKED[depth]}); without theory "
            f"{found['plain'] - one:.1f} ms beside the pass (asked {BESIDE})"
        )


def spent(*arguments, rounds):
    """Return the least processor's seconds of a Python process, of several.

    What it compiles is kept, as pip keeps what it has installed: a source tree may lie where
    nothing is.
    """
    took = []
    with tempfile.TemporaryDirectory() as compiled:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(rounds + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took[1:])  # the first compiles


def imports(rounds):
    """Return a line about `import vegrad` beside `import numpy`."""
    numpy, ours = (spent("-c", f"import {name}", rounds=rounds) for name in ("numpy", "vegrad"))
    return f"import numpy {numpy:.3f} s, import vegrad {ours - numpy:+.3f} s (asked +{IMPORT})"


def reading(rows, rounds):
    """Return a line about `vegrad diagnose --data` of a file, beside the readers' own time."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "table.csv")
        table = random.standard_normal((rows, 201))
        table[:, -1] = table[:, 0] > 0
        names = ",".join(f"c{n}" for n in range(200)) + ",y"
        np.savetxt(path, table, "%.6g", delimiter=",", header=names, comments="")
        readers = {
            "numpy.loadtxt": f"import numpy; numpy.loadtxt({path!r}, delimiter=',', skiprows=1)"
        }
        if find_spec("pandas"):
            readers["pandas.read_csv"] = f"import pandas; pandas.read_csv({path!r})"
        found = {name: spent("-c", code, rounds=rounds) for name, code in readers.items()}
        command = "-m", "vegrad", "diagnose", "--data", path, "--target", "y"
        ours = spent(*command, rounds=rounds)
    told = ", ".join(f"{name} {took:.2f} s" for name, took in found.items())
    ratio = ours / min(found.values())
    return f"{rows} × 200: {told}; diagnosed in {ours:.2f} s, {ratio:.2f} times (asked {READ})"


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    quick = parser.parse_args().quick
    for line in own_networks(1 if quick else 12):
        print(line, flush=True)
    print(imports(2 if quick else 10), flush=True)
    print(reading(2000 if quick else 100_000, 1 if quick else 2))


if __name__ == "__main__":
    main()
