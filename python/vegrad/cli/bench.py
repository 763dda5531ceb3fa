"""`vegrad bench`: the same work in vegrad and in other libraries, timed on this machine."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Iterator
from math import inf

from vegrad import _core
from vegrad.benchmark.limits import AT_LIMIT
from vegrad.benchmark.machine import cores
from vegrad.benchmark.run import Settings, measure
from vegrad.benchmark.timing import Json
from vegrad.cli.options import add_common_options, add_name, positive
from vegrad.cli.terminal import print_json, spinner, width

BUSY = 1.0  # a load above this is mentioned: other work disturbs the timing
LIBRARIES = ("numpy", "torch", "jax", "vegrad")
TITLES = {
    "pass": "forward and backward pass",
    "clip": "clip by the joint norm",
    "adamw": "AdamW, with that clip",
}
WIDE = 78  # of a table with all of its columns


def run(options: argparse.Namespace) -> int:
    """Print the table or JSON of a run, or of its part before Ctrl-C; return 0."""
    settings = _settings(options)
    found: Json = {}
    start = time.perf_counter()
    try:
        with spinner(
            options, f"timing for about {settings.seconds:g} s; Ctrl-C ends it with what is there"
        ):
            measure(settings, found.update)
    except KeyboardInterrupt:
        if not found:
            raise
    found["took_seconds"] = time.perf_counter() - start
    if options.json:
        print_json(found)
    else:
        lines = (textwrap.fill(line, width()) for line in text(found, width()))
        print("\n".join(lines))
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    there = len(cores())
    threads = min(_core.num_threads(), there) if options.threads is None else options.threads
    if not 1 <= threads <= there:
        raise ValueError(
            f"--threads must be between 1 and the {there} cores there are, not {threads}"
        )
    if not 0 < options.seconds < inf:
        raise ValueError(f"--seconds must be above 0 and finite, not {options.seconds:g}")
    return Settings(
        layers=positive("--depth", options.depth),
        width=positive("--width", options.width),
        batch=positive("--batch", options.batch),
        activation=options.activation,
        threads=threads,
        seconds=options.seconds,
    )


# Text ------------------------------------------------------------------------------------------


def text(found: Json, columns: int = 80) -> Iterator[str]:
    """Yield the lines of the description and of the tables, for a terminal of so many columns."""
    network, machine, used = found["network"], found["machine"], found["versions"]
    layers = f"{network['layers']} layer{'s' * (network['layers'] > 1)} of width {network['width']}"
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    yield f"{layers}, {network['activation']}, batch {network['batch']}, float32"
    yield machine["cpu"]
    yield f"{threads} on as many of {machine['cores']} cores, {used['isa']}, {machine['system']}"
    names = [f"{name} {used[name]}" for name in LIBRARIES if used.get(name)]
    yield f"Python {used['python']}, {', '.join(names)}"
    if (machine["load_before"] or 0) > BUSY:
        yield f"other work is running (load {machine['load_before']:.1f}): expect noise"
    yield ""
    yield from _checked(found)
    for work in found["work"]:
        yield ""
        yield from _table(work, network, columns)
    if not found["done"]:
        yield ""
        yield "ended early: these are the figures so far"


def _checked(found: Json) -> Iterator[str]:
    """Say how far the results were from those in float64, before anything was timed."""
    largest = {
        work["name"]: max((row.get("difference") or 0.0 for row in work["rows"]), default=0.0)
        for work in found["work"]
    }
    if any("difference" in row and "left_out" in row for w in found["work"] for row in w["rows"]):
        yield "Before timing all were held to float64; whoever is off is left out below."
        return
    yield (
        "Before timing all were held to float64. Off, relative to an array's largest element: "
        f"loss and gradients {largest['pass']:.0e}, clipped gradients"
        f" {largest['clip']:.0e}, steps {largest['adamw']:.0e}."
    )


def _table(work: Json, network: Json, columns: int) -> Iterator[str]:
    rate = "GFLOP/s" if "flops" in work else "GB/s"
    title = TITLES[work["name"]]
    if "bytes" in work:
        title += f", {2 * network['layers']} arrays"
    yield _row(columns, title, "ms", "× vegrad", rate, "of limit")
    for row in work["rows"]:
        name = row["title"] + (f" ({row['variant']})" if row.get("variant") else "")
        if "left_out" in row:
            yield f"{name}: {row['left_out']}"
            continue
        took = row["median_ms"] or row.get("estimated_ms")
        if took is None:
            yield _row(columns, name, *"––––")
            continue
        guess = "~" if row["median_ms"] is None else ""
        yield _row(
            columns,
            name,
            guess + figure(took),
            "–" if row.get("ratio") is None else guess + figure(row["ratio"]),
            figure(row["gflops" if "flops" in work else "gbytes"]),
            f"{100 * row['share']:.0f} %" if "share" in row else "–",
        )
    if any(row.get("estimated_ms") for row in work["rows"]):
        yield "~ estimated from a small part: too slow for --seconds"
    if "limit_ms" in work:
        yield _limit(work)
        own: Json = next((row for row in work["rows"] if row["name"] == "vegrad"), {})
        if (own.get("share") or 0.0) >= AT_LIMIT:
            yield f"vegrad is at the limit ({100 * AT_LIMIT:.0f} % of it or more)"


def _row(columns: int, name: str, *cells: str) -> str:
    """Write a line of a table; a narrow terminal has no room for the last column."""
    shown = cells if columns >= WIDE else cells[:-1]
    room = min(38, columns - 10 * len(shown))
    name = textwrap.shorten(name, room, placeholder="…")
    return f"{name:<{room}}{''.join(f'{cell:>10}' for cell in shown)}"


def _limit(work: Json) -> str:
    limit = work["limit"]
    if "gflops" in limit:
        shape = f"{limit['batch']}×{limit['width']} by {limit['width']}×{limit['width']}"
        how = f"{figure(limit['gflops'])} GFLOP/s in a product {shape} ({limit['by']})"
    else:
        verbs = {"read": "reading", "write": "writing", "update": "updating"}
        how = ", ".join(
            f"{verb} {figure(limit[kind]['gbytes'])} GB/s ({limit[kind]['by']})"
            for kind, verb in verbs.items()
            if kind in limit
        )
    return f"limit {figure(work['limit_ms'])} ms: {how}"


def figure(value: float) -> str:
    """Write a number with three digits and without an exponent."""
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 1 else f"{value:.3f}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad bench`: the network, and how it is timed."""
    add = parser.add_argument_group("network").add_argument
    add("--depth", type=int, metavar="N", default=50, help="layers with weights (default 50)")
    units = "units of every layer, and inputs (default 64)"
    add("--width", type=int, metavar="N", default=64, help=units)
    add_name(add, "--activation", _core.ACTIVATIONS, "(default tanh)", default="tanh")
    add("--batch", type=int, metavar="ROWS", default=64, help="rows of a pass (default 64)")
    add = parser.add_argument_group("timing").add_argument
    seconds = "time to spend, about; loading and compiling come before (default 6)"
    threads = "threads of every library (default: as many as vegrad's)"
    add("--threads", type=int, metavar="N", help=threads)
    add("--seconds", type=float, metavar="S", default=6.0, help=seconds)
    add_common_options(parser.add_argument_group("output"), files=False)
