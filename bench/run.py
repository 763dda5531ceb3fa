"""Time the same forward and backward pass in Python lists, NumPy, PyTorch, JAX and vegrad.

    python bench/run.py                 the table, on one thread and on two
    python bench/run.py --all           also the rows that take longer, diagnoses.py and buffers.py
    python bench/run.py --quick         a smoke run
    python bench/run.py --markdown      the tables of the last complete run, for docs/benchmarks.md

Every number of threads gets a process of its own, bound to as many cores. A complete run is saved
in bench/results/.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median

import conditions
import numpy as np
import report
from rows import ROWS
from vegrad.benchmark import peers
from vegrad.benchmark.limits import limits
from vegrad.benchmark.machine import environment
from vegrad.benchmark.timing import interleave

LARGEST_DIFFERENCE = 1e-3  # of a float32 gradient from a float64 pass, after up to 100 layers


# The process that measures, with one number of threads


def build(row, chosen, lists_seconds):
    """Make the peers that take part in a row, after checking their gradients against float64."""
    problem = peers.Problem(row)
    reference = peers.NumPy(problem, np.float64)
    reference.step()
    built = {}
    for peer in chosen:
        too_slow = peer is peers.Lists and peer.expected_seconds(row) > lists_seconds
        if too_slow or (peer is peers.TorchFlushed and not row.flushed):
            continue
        built[peer.name] = one = peer(problem)
        one.step()
        one.difference = peers.largest_difference(one.result(), reference.result())
        if not one.difference < LARGEST_DIFFERENCE:
            sys.exit(f"{row.label}: {one.title} is off the float64 pass by {one.difference:.1e}")
    return built


def measure(row, chosen, settings):
    """Measure one row of the table."""
    print(f"  {settings['threads']} thread(s): {row.label}", file=sys.stderr, flush=True)
    built = build(row, chosen, settings["lists_seconds"])
    turns = interleave({name: peer.step for name, peer in built.items()}, settings["seconds"])
    entries = {name: report.summary(peer, turns[name]) for name, peer in built.items()}
    result = {**asdict(row), "label": row.label, "flops": row.flops, "peers": entries}
    if {"vegrad", "vegrad-noflow"} <= set(turns):
        pairs = zip(turns["vegrad"], turns["vegrad-noflow"], strict=False)
        result["flow_cost"] = median(median(a) / median(b) for a, b in pairs) - 1
    return result


def child(settings):
    """Measure everything in this process and print one JSON object."""
    rows = [row for row in ROWS if row.label in settings["rows"]]
    chosen = [peer for peer in peers.PEERS if peer.name in settings["peers"]]
    for peer in filter(peers.installed, peers.PEERS):
        if hasattr(peer, "prepare"):
            peer.prepare(settings["threads"])
    seconds = settings["limit_seconds"]
    result = {"threads": settings["threads"], "limits": [limits(rows, seconds)]}
    result["rows"] = [measure(row, chosen, settings) for row in rows]
    result["limits"].append(limits(rows, seconds))
    print(json.dumps(result | {"versions": report.versions()}))


# The process that the user starts


def run(settings):
    """Start a process that measures with a number of threads; return its results."""

    def bind():
        os.sched_setaffinity(0, report.cores()[: settings["threads"]])

    command = [sys.executable, __file__, "--child", json.dumps(settings)]
    surroundings = {"env": environment(settings["threads"])}
    if hasattr(os, "sched_setaffinity"):
        surroundings["preexec_fn"] = bind
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **surroundings)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    labels, names = [row.label for row in ROWS], [peer.name for peer in peers.PEERS]
    add = parser.add_argument
    add("--rows", nargs="+", choices=labels, help="only these rows")
    add("--peers", nargs="+", choices=names, help="only these peers")
    add("--threads", nargs="+", type=int, help="numbers of threads (1 2)")
    add("--all", action="store_true", help="also the rows that take longer")
    add("--seconds", type=float, default=4, help="for each peer on each row (%(default)s)")
    add("--quick", action="store_true", help="a smoke run, too short to be believed")
    add("--output", type=Path, help="folder for the results (bench/results)")
    add("--markdown", action="store_true", help="print the saved results, run nothing")
    add("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.complete = not (options.quick or options.rows or options.threads or options.peers)
    options.peers = options.peers or names
    return parser, options


def main():
    """Run the benchmark, or print the saved table."""
    parser, options = arguments()
    if options.child:
        return child(json.loads(options.child))
    folder = options.output or report.RESULTS
    if options.markdown:
        return print(report.markdown(report.load(folder / "results.json")))
    cores = report.cores()
    threads = options.threads or range(1, min(2, len(cores)) + 1)
    if not all(1 <= n <= len(cores) for n in threads):
        parser.error(f"--threads must be between 1 and the {len(cores)} cores there are")
    for peer in peers.PEERS:
        if not peers.installed(peer) and peer.name in options.peers:
            print(f"{peer.title} is left out: the module {peer.module} is not installed")
            options.peers.remove(peer.name)
    if not options.peers:
        parser.error("nobody is left to run")
    settings = {
        "rows": options.rows or [row.label for row in ROWS if options.all or not row.more],
        "peers": options.peers,
        "seconds": 0.2 if options.quick else options.seconds,
        "limit_seconds": 0.03 if options.quick else 0.2,
        "lists_seconds": 1 if options.quick else 20,  # a longer row gets a dash
    }
    results = report.description() | {"settings": settings}
    results["runs"] = [run(settings | {"threads": n}) for n in threads]
    if options.complete:
        results["conditions"] = conditions.measure(max(threads), options.seconds)
    print(report.text(results))
    if options.output or options.complete:
        report.save(results, folder)
    if options.complete and options.all:
        where = ["--output", str(options.output)] if options.output else []
        here = Path(__file__)
        subprocess.run([sys.executable, here.with_name("diagnoses.py")])
        buffers = here.with_name("buffers.py")
        sys.exit(subprocess.run([sys.executable, buffers, *where]).returncode)


if __name__ == "__main__":
    main()
