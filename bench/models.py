"""Repeat the figures of `vegrad.torch` on public models, for whoever has the libraries.

    python bench/models.py                     all of it: about an hour on two cores
    python bench/models.py --only "timm|gru"   some architectures
    python bench/models.py --quick             a smoke run of a handful, two faults each
    python bench/models.py --resume            go on where a run was stopped
    python bench/models.py --markdown          the tables of the last complete run

Each architecture is examined in a process of its own, with a limit of time, two at once. A library
that is not installed is left out, and the run says so. Only a complete run writes into
`bench/results/`. What is measured, and how: `bench/README.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report
import torch
from architectures import figures, graphs, language, plain, vision  # noqa: F401
from architectures.examine import FAULTS, examine
from architectures.registry import MAKE
from vegrad.benchmark.machine import environment

LIMIT = 300  # seconds for one record
QUICK = (
    r"plain/(encoder|gru|squeeze_excite)|RobertaForMaskedLM|mobilenetv3_small_050|BasicUNet$|GATv2"
)
RECORDS = Path(__file__).parent / "zoo-records" / "models.jsonl"
Record = dict[str, Any]


def work() -> None:
    """Examine what standard input names; write a line of JSON for each record."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no record
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    asked = json.loads(sys.stdin.read())
    for record in examine(asked["name"], asked["done"], asked["faults"]):
        print(json.dumps(record), file=lines, flush=True)


def watched(name: str, done: list[Record], faults: int) -> tuple[list[Record], Record | None]:
    """Examine an architecture in a process; return its records, and what it did when it died."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(1),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"name": name, "done": done, "faults": faults}))
    process.stdin.close()
    records: list[Record] = []
    begun: Record = {"begins": ""}
    start = time.monotonic()
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    for line in process.stdout:
        timer.cancel()
        timer = threading.Timer(LIMIT, process.kill)
        timer.start()
        start, record = time.monotonic(), json.loads(line)
        if "begins" in record:
            begun = record
        else:
            records.append(record)
    timer.cancel()
    if process.wait() == 0:
        return records, None
    why = "took too long" if time.monotonic() - start >= LIMIT else f"exit {process.returncode}"
    died = {"model": name, "fault": begun["begins"], "crash": f"the process died: {why}"}
    return records, died | {"findings": []} | ({"cure": True} if "cure" in begun else {})


def examined(name: str, done: list[Record], faults: int, file: Path) -> list[Record]:
    """Examine an architecture, again from where a process died; write the records as they come."""
    found = list(done)
    while True:
        fresh, died = watched(name, found, faults)
        fresh += [died] if died is not None else []
        found += fresh
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(record) + "\n" for record in fresh)
        for record in fresh:
            print(figures.line(record), flush=True)
        if died is None or died["fault"] == "":
            return found


def read(file: Path) -> list[Record]:
    """Read the records of a run that was stopped, without a last line that was cut off."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", default="", metavar="REGEX", help="architectures by name")
    add("--quick", action="store_true", help="a smoke run of a handful")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="a line for each record")
    add("--resume", action="store_true", help="keep the records of a run that was stopped")
    add("--markdown", action="store_true", help="print the last complete run, run nothing")
    add("--list", action="store_true", help="print the architectures, run nothing")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    if options.markdown:
        return print(figures.tables(report.load(options.json or report.RESULTS / "models.json")))
    pattern = options.only or (QUICK if options.quick else ".")
    names = [name for name in MAKE if re.search(pattern, name)]
    if options.list:
        return print("\n".join(names))
    results = report.description() | {"versions": report.versions() | figures.libraries()}
    options.records.parent.mkdir(parents=True, exist_ok=True)
    done = read(options.records) if options.resume else []
    options.records.write_text("".join(json.dumps(one) + "\n" for one in done), encoding="utf-8")
    faults = 2 if options.quick else FAULTS

    def one(name: str) -> list[Record]:
        own = [record for record in done if record["model"] == name]
        return examined(name, own, faults, options.records)

    with ThreadPoolExecutor(2) as pool:
        results["records"] = [record for found in pool.map(one, names) for record in found]
    text = figures.tables(results)
    print(text)
    if options.json:
        report.write(results, options.json)
    elif not options.only and not options.quick:
        report.write(results, report.RESULTS / "models.json")
        (report.RESULTS / "models.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
