"""The zoo: hundreds of networks, healthy and sick, labelled without vegrad, judged by vegrad.

    python bench/zoo                  a whole run: the table, and the misses with their reasons
    python bench/zoo --quick          a smoke run of some specimens
    python bench/zoo --seed 7         another zoo
    python bench/zoo --executor mpi   on other engines than this machine's processes
    python bench/zoo --table          only the table of the specimens examined so far

Every specimen is a line of a .jsonl file; a run that was stopped goes on where it was.

The reference alone gives each specimen its label (`examine.label`). It is healthy if a plain
training of 400 steps reaches the target of its data, no fault was planted, and no layer's δ is more
than 3 decades from the last layer's. It is sick if that training misses the target and either a
fault was planted or some δ is beyond 3 decades. Else it is unclear: counted, but in no figure.
Specimens are drawn until there are enough healthy and enough sick ones.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import (
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from importlib import import_module
from pathlib import Path
from typing import Any, cast

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before NumPy: one process for each core is faster
sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo.examine import STEPS, examine  # noqa: E402
from zoo.families import draw  # noqa: E402
from zoo.table import tables  # noqa: E402

WANTED = 300  # healthy ones, and as many sick ones
BLOCK = 12  # specimens between two counts, so that the number of processes changes nothing
FOLDER = Path(__file__).parents[1] / "zoo-records"


def read(path: Path) -> dict[int, dict[str, Any]]:
    """Read the records of a file by number, without a last line that was cut off."""
    records = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["number"]] = record
    return records


def executor_of(name: str, jobs: int) -> Executor:
    """processes (the default), threads, loky, mpi, or dask:ADDRESS of a scheduler."""
    kind, _, address = name.partition(":")
    if kind == "processes":
        return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    if kind == "threads":
        return ThreadPoolExecutor(jobs)
    if kind == "loky":
        return cast(Executor, import_module("loky").get_reusable_executor(jobs))
    if kind == "mpi":
        return cast(Executor, import_module("mpi4py.futures").MPIPoolExecutor())
    if kind == "dask" and address:
        return cast(Executor, import_module("distributed").Client(address).get_executor())
    raise SystemExit(f"--executor must be {executor_of.__doc__} not {name}")


def counted(records: dict[int, dict[str, Any]], upto: int) -> tuple[int, int]:
    """Count the healthy and the sick ones among the first `upto`."""
    labels = [records[n]["label"] for n in range(upto)]
    healthy = labels.count("healthy")
    return healthy, len(labels) - healthy - labels.count("unclear")


def run(
    seed: int, wanted: int, path: Path, executor: Executor, progress: bool = True
) -> list[dict[str, Any]]:
    """Examine specimens until there are enough of both kinds; keep those already in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records, upto = read(path), 0
    for record in list(records.values()):
        again = json.loads(json.dumps(draw(seed, record["number"])))
        if record["specimen"] != again or record["steps_allowed"] != STEPS:
            raise SystemExit(f"{path} is of another zoo; remove it or name another with --file")
    start, fresh = time.perf_counter(), 0
    with executor, path.open("a") as file:
        if file.tell() and not path.read_text(encoding="utf-8").endswith("\n"):
            file.write("\n")
        while min(counted(records, upto)) < wanted:
            missing = [n for n in range(upto, upto + BLOCK) if n not in records]
            for done in as_completed([executor.submit(examine, draw(seed, n)) for n in missing]):
                record = done.result()
                record["steps_allowed"] = STEPS
                records[record["number"]] = record
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
                fresh += 1
            upto += BLOCK
            healthy, sick = counted(records, upto)
            if progress:
                minutes = (time.perf_counter() - start) / 60
                text = f"{upto} examined ({fresh} now, {minutes:.1f} min): {healthy} healthy, "
                text += f"{sick} sick, of {wanted} each "
                print(f"\r{text}", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return [records[n] for n in range(upto)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="another seed, another zoo (1)")
    parser.add_argument("--quick", action="store_true", help="eight of each kind")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--executor", default="processes", help=executor_of.__doc__)
    parser.add_argument("--file", type=Path, help="of the records (bench/zoo-records/seed-N.jsonl)")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    wanted = 8 if options.quick else WANTED
    kind = "quick" if options.quick else "seed"
    path = options.file or FOLDER / f"{kind}-{options.seed}.jsonl"
    if options.table:
        found = read(path)
        records = [found[n] for n in sorted(found)]
    else:
        try:
            executor = executor_of(options.executor, options.jobs)
            records = run(options.seed, wanted, path, executor)
        except KeyboardInterrupt:
            print(f"\nstopped; the same command goes on from {path}", file=sys.stderr)
            return 130
    print(tables(records, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
