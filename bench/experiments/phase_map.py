"""A map of where tanh networks train, by whatever engine is there: Schoenholz et al. 2017.

    python bench/experiments/phase_map.py                          processes of this machine
    python bench/experiments/phase_map.py dask                     four workers of Dask
    mpiexec -n 5 python -m mpi4py.futures bench/experiments/phase_map.py mpi

Every engine gives the same numbers: the last line is a checksum of them. The picture is that of
docs/how-to/machines.md.
"""

import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from vegrad import theory

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "phase-map.png"
SIGMAS, DEPTHS, BIAS = np.linspace(0.8, 2.2, 15), [5, 10, 20, 30, 40, 60, 80], 0.05**0.5


def engine(name: str, stack: ExitStack):
    """Return the executor of this name, which ends with the stack."""
    if name == "dask":
        distributed = import_module("distributed")
        cluster = distributed.LocalCluster(
            n_workers=4, threads_per_worker=1, dashboard_address=None
        )
        client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        return client.get_executor()
    if name == "mpi":
        return stack.enter_context(import_module("mpi4py.futures").MPIPoolExecutor())
    return stack.enter_context(ProcessPoolExecutor(mp_context=get_context("spawn")))


def main() -> None:
    """Measure, print and draw the map."""
    start = time.perf_counter()
    with ExitStack() as stack:
        found = theory.phase_map(
            "tanh",
            SIGMAS.tolist(),
            BIAS,
            DEPTHS,
            64,
            data=load_digits(return_X_y=True),
            steps=400,
            draws=2,
            executor=engine(sys.argv[1] if len(sys.argv) > 1 else "processes", stack),
        )
    found.plot(PICTURE)
    print(found)
    numbers = found.gain_log2.tobytes() + found.accuracy.tobytes()
    print(f"{found.gain_log2.size} points, {time.perf_counter() - start:.0f} s, ", end="")
    print(f"checksum {zlib.crc32(numbers):08x}")


if __name__ == "__main__":
    main()
