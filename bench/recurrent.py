"""Time recurrent layers beside PyTorch, JAX and the machine's best matrix product.

    python bench/recurrent.py               the tables; bench/results/recurrent.json
    python bench/recurrent.py --quick       a smoke run
    python bench/recurrent.py --markdown    the tables of the last complete run, for the docs

For each number of threads one process, bound to as many cores, measures all rows in turns. It needs
PyTorch; the columns of JAX need JAX. `recurrent_cases.py` has the rows and the passes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import report
from recurrent_cases import (
    KEPT,
    ROWS,
    Case,
    autograd_pass,
    last_output,
    network,
    tasks,
    torch_pass,
    vegrad_pass,
)
from vegrad.benchmark import limits, peers
from vegrad.benchmark.machine import environment
from vegrad.benchmark.timing import fastest, interleave

CELLS = ("lstm", "gru", "tanh")
KEPT_BY_FUSE, FLOW_COST, MEMORY, BUSY = 0.85, 0.02, 1.2, 1.8
SIZE = 1024  # of the matrices whose product sets the limit
LEGEND = (
    "Milliseconds of a pass forward and backward; medians, of ratios those of the turns."
    " ×: how many times faster vegrad is than PyTorch with subnormals flushed, PyTorch as it comes"
    " and JAX's scan. share: of the fastest matrix product, timed in the same turns, or (of one"
    " batch row) of the fastest way to read the recurrent weights twice a step from the cache that"
    " holds them; at most: what is left of that if the other products, each over all steps, are as"
    " fast as the fastest matrix product and nothing else takes time. fuse: the share of vegrad's"
    " rate that `vegrad.torch.fuse` keeps; at most: what a node of autograd's graph leaves of it"
    " that does nothing. In brackets: what is asked."
)


# The process that measures


def reading(case, seconds):
    """Return the fastest call that reads the recurrent weights often, and how often it does."""
    often = 200
    block = np.ones(case.weight_bytes // 4, np.float32)
    rows = np.broadcast_to(block, (often, len(block)))
    calls = {"numpy max": partial(rows.max, axis=1)}
    if hasattr(np, "vecdot"):
        calls["numpy vecdot"] = partial(np.vecdot, rows, rows)
    return calls[fastest(calls, seconds)[0]], often


def limit(case, settings):
    """Return a call that the machine does as fast as it can, and how many of it make the pass."""
    seconds = settings["seconds"] / 8
    if case.row.batch == 1:
        call, often = reading(case, seconds)
        return call, 2 * case.row.steps / often
    return limits.products(SIZE, SIZE)[settings["product"]], case.flops / (2 * SIZE**3)


def measure(case, settings):
    """Time a row in every library; return the figures."""
    print(f"  {settings['threads']} thread(s): {case.cell} {case.row.label}", file=sys.stderr)
    made = tasks(case, settings)
    call, often = limit(case, settings)
    calls = {name: task.call for name, task in made.items()}
    calls |= {"limit": call, "autograd": autograd_pass(case)}
    turns = interleave(calls, settings["seconds"])
    medians = {name: [median(turn) for turn in found] for name, found in turns.items()}
    over = {
        name: median(b / a for a, b in zip(medians["vegrad"], found, strict=False))
        for name, found in medians.items()
    }
    found = {
        "label": case.row.label,
        "cell": case.cell,
        "flops": case.flops,
        # of vegrad's time: each other's, and the machine's limit
        "over": over
        | {"limit": often * over["limit"]}
        | {name: 1 / over[name] for name in ("fuse", "autograd")},
        "peers": {name: report.summary(task, turns[name]) for name, task in made.items()},
    }
    if case.row.batch == 1:
        read = often * median(medians["limit"])
        found["at most"] = read / (read + case.flops_of_all_steps / settings["rate"])
    return found


def flow_cost(case, settings):
    """Return what measuring the flow adds to a pass of the core's network, as a share.

    Passes with it and without take turns one by one; what counts is the time of this process.
    """
    _, call = network(case)

    def duration(flow):
        start = time.process_time()
        call(flow)
        return time.process_time() - start

    ratios, end = [], time.perf_counter() + 4 * settings["seconds"]
    for flow in (True, False):
        call(flow)
    while time.perf_counter() < end or len(ratios) < 2:
        first = len(ratios) % 2 == 0
        took = {flow: duration(flow) for flow in (first, not first)}
        ratios.append(took[True] / took[False])
    return median(ratios) - 1


def subnormals(case, settings):
    """Time the default network with a loss of its last output only."""
    calls = {
        "vegrad": network(case, "last")[1],
        "torch": last_output(case, False),
        "torch flushed": last_output(case, True),
    }
    turns = interleave(calls, settings["seconds"])
    return {name: median(one for turn in found for one in turn) for name, found in turns.items()}


def memory(case):
    """Return how the bytes of a workspace grow, and what is there whatever the steps.

    "a step": what each step adds, over what the way back needs of it; "once": bytes; and the whole
    over what the way back needs, for T steps and a quarter of them.
    """
    made, row = network(case)[0], case.row
    windows = row.steps, row.steps // 4
    whole = [made.workspace_bytes(row.batch, row.steps, window) for window in windows]
    listed = [4 * KEPT[case.cell] * window * row.batch * row.hidden for window in windows]
    slope = (whole[0] - whole[1]) / (listed[0] - listed[1])
    found = {str(n): a / b for n, a, b in zip(windows, whole, listed, strict=True)}
    return found | {"a step": slope, "once": whole[0] - slope * listed[0]}


def child(settings):
    """Measure everything in this process and print one JSON object."""
    for peer in filter(peers.installed, (peers.Torch, peers.Jax)):
        peer.prepare(settings["threads"])
    name, best = fastest(limits.products(SIZE, SIZE), settings["seconds"] / 8)
    found = {
        "threads": settings["threads"],
        "product": {"by": name, "gflops": 2e-9 * SIZE**3 / best},
    }
    settings |= {"product": name, "rate": 2 * SIZE**3 / best}
    rows = ROWS[: settings["rows"]]
    found["rows"] = [measure(Case(row, cell), settings) for row in rows for cell in CELLS]
    first = [Case(rows[0], cell) for cell in CELLS]
    found["flow_cost"] = {case.cell: flow_cost(case, settings) for case in first}
    found["memory"] = {case.cell: memory(case) for case in first}
    found["subnormals"] = subnormals(first[0], settings)
    found["versions"] = report.versions()
    print(json.dumps(found))


def busy(settings):
    """Time one library's pass of the first row, alone and beside a process that never waits."""
    peers.Torch.prepare(settings["threads"])
    make = {"vegrad": vegrad_pass, "torch flushed": partial(torch_pass, flush=True)}
    step, found = make[settings["busy"]](Case(ROWS[0], "lstm")), {"idle": [], "busy": []}

    def times():
        end, durations = time.perf_counter() + settings["seconds"] / 3, []
        while time.perf_counter() < end or not durations:
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
    print(json.dumps({name: median(durations) for name, durations in found.items()}))


# The tables


def asked(row):
    """Return what is asked of a row: the shares for one and two threads, and the ratios."""
    shape = next(one for one in ROWS if one.label == row["label"])
    return shape.shares, {
        "torch flushed": shape.over_torch[row["cell"]],
        "jax": shape.over_jax,
        "fuse": KEPT_BY_FUSE,
    }


def table(run):
    """Yield the lines of a run's table, in markdown."""
    others = {"torch flushed": "× flushed", "torch": "× as it comes", "jax": "× JAX"}
    lines = [["T, B, I, H", "cell", "vegrad", "GF/s", "share", *others.values(), "fuse"]]
    for row in run["rows"]:
        ms, found = row["peers"]["vegrad"]["median_ms"], row["over"]
        shares, wanted = asked(row)
        line = [row["label"], row["cell"], f"{ms:#.3g}", f"{1e-6 * row['flops'] / ms:.1f}"]
        most = f", at most {100 * row['at most']:.0f}" if "at most" in row else ""
        line.append(f"{100 * found['limit']:.0f} % ({100 * shares[run['threads'] > 1]:.0f}{most})")
        for name in others:
            least = f" ({wanted[name]:g})" if name in wanted and run["threads"] == 1 else ""
            line.append(f"{found[name]:.2f}{least}" if name in found else "–")
        most = f", at most {100 * found['autograd']:.0f}" if "autograd" in found else ""
        lines.append([*line, f"{100 * found['fuse']:.0f} % ({100 * wanted['fuse']:.0f}{most})"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * n if i < 2 else "-" * (n - 1) + ":" for i, n in enumerate(widths)])
    for line in lines:
        yield "| " + " | ".join(map("{:{}{}}".format, line, "<<>>>>>>>", widths)) + " |"


def shortfalls(results):
    """Yield a sentence for each thing that was asked and does not hold."""
    for run in results["runs"]:
        where = f"{report.threads_text(run)}, "
        for row in run["rows"]:
            name, (shares, wanted) = f"{where}{row['cell']} {row['label']}: ", asked(row)
            got, least = row["over"]["limit"], shares[run["threads"] > 1]
            if got < least:
                most = f", {100 * row['at most']:.0f} % possible" if "at most" in row else ""
                yield f"{name}{100 * got:.0f} % of the limit, {100 * least:.0f} % asked{most}"
            for other, value in row["over"].items():
                single = run["threads"] == 1 or other == "fuse"
                if other in wanted and single and value < wanted[other]:
                    most = row["over"].get("autograd", 1) if other == "fuse" else np.inf
                    possible = f", {most:.2f} possible" if most < wanted[other] else ""
                    yield f"{name}{other} {value:.2f}, {wanted[other]:g} asked{possible}"
        for cell, cost in run["flow_cost"].items():
            if cost > FLOW_COST:
                yield f"{where}{cell}: the flow costs {100 * cost:.1f} %"
        for cell, found in run["memory"].items():
            most = max(value for name, value in found.items() if name != "once")
            if most > MEMORY:
                yield f"{where}{cell}: memory is {most:.2f} of what is listed"
    beside = results["busy"].get("vegrad")
    if beside and beside["busy"] > BUSY * beside["idle"]:
        yield f"beside a busy process vegrad takes {beside['busy'] / beside['idle']:.2f}×"


def sentences(results):
    """Yield what is measured beside the rows."""
    for run in results["runs"]:
        costs = ", ".join(f"{cell} {100 * cost:+.1f} %" for cell, cost in run["flow_cost"].items())
        cold = {name: 1e3 * seconds for name, seconds in run["subnormals"].items()}
        yield (
            f"On {report.threads_text(run)} measuring the flow adds {costs}; the default LSTM with"
            f" a loss of its last output takes {cold['vegrad']:#.3g} ms, in PyTorch"
            f" {cold['torch']:#.3g} ms as it comes and {cold['torch flushed']:#.3g} ms flushed."
        )
    parts = [
        f"{name} {found['busy'] / found['idle']:.2f}×"
        f" ({found['idle']:#.3g} → {found['busy']:#.3g} ms)"
        for name, found in results["busy"].items()
    ]
    if parts:
        yield (
            f"The LSTM of {ROWS[0].label} on two threads with another process busy on one core:"
            f" {', '.join(parts)}."
        )
    for run in results["runs"]:
        parts = []
        for cell, found in run["memory"].items():
            of_steps = (f"{found[n]:.2f} ({n} steps)" for n in found if n.isdigit())
            part = " ".join([cell, *of_steps])
            if "once" in found:
                part += f", {found['a step']:.2f} + {1e-6 * found['once']:.2f} MB"
            parts.append(part)
        yield (
            f"On {report.threads_text(run)} the memory of a pass over what the way back needs, and"
            f" that of a step beside what is there but once: {'; '.join(parts)}."
        )


def text(results):
    """Yield the lines of all tables, and of what stands below them."""
    used, names = results["runs"][0]["versions"], ("numpy", "torch", "jax", "vegrad")
    parts = [results["machine"]["cpu"], used.get("isa", "?"), results["date"]]
    parts += [f"{name} {used[name]}" for name in names if used.get(name)]
    yield f"{LEGEND} {', '.join(parts)}."
    for run in results["runs"]:
        best = run["product"]
        yield ""
        yield (
            f"{report.threads_text(run).capitalize()}; the fastest product of matrices of {SIZE} by"
            f" {SIZE}: {best['gflops']:.0f} GF/s ({best['by']}):"
        )
        yield ""
        yield from table(run)
    yield ""
    yield from sentences(results)


# The process that the user starts


def run(settings):
    """Start a process that measures with a number of threads; return its results."""
    command = [sys.executable, __file__, "--child", json.dumps(settings)]

    def bind():
        os.sched_setaffinity(0, report.cores()[: settings["threads"]])

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
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run, too short to be believed")
    add("--threads", nargs="+", type=int, help="numbers of threads (1 2)")
    add("--output", type=Path, help="folder for recurrent.json (bench/results)")
    add("--markdown", action="store_true", help="print the saved results, run nothing")
    add("--child", help=argparse.SUPPRESS)
    return parser, parser.parse_args()


def main():
    """Run the benchmark, or print the saved tables."""
    parser, options = arguments()
    if options.child:
        settings = json.loads(options.child)
        return busy(settings) if settings["busy"] else child(settings)
    folder = options.output or report.RESULTS
    if options.markdown:
        return print("\n".join(text(report.load(folder / "recurrent.json"))))
    cores = report.cores()
    threads = options.threads or range(1, min(2, len(cores)) + 1)
    if not all(1 <= n <= len(cores) for n in threads):
        parser.error(f"--threads must be between 1 and the {len(cores)} cores there are")
    if not peers.installed(peers.Jax):
        print("JAX is left out: it is not installed")
    settings = {"seconds": 0.1 if options.quick else 1, "busy": None}
    settings |= {"rows": 1 if options.quick else len(ROWS)}
    settings |= {"turned": [False] if options.quick else [False, True]}
    results = report.description() | {"settings": settings}
    results["runs"] = [run(settings | {"threads": n}) for n in threads]
    names = ("vegrad", "torch flushed") if max(threads) > 1 else ()
    results["busy"] = {name: run(settings | {"threads": 2, "busy": name}) for name in names}
    print("\n".join(text(results)))
    for sentence in shortfalls(results):
        print(f"less than asked: {sentence}")
    if options.output or not (options.quick or options.threads):
        report.write(results, folder / "recurrent.json")


if __name__ == "__main__":
    main()
