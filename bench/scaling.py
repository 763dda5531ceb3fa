"""Measure how the pass of vegrad scales over threads, depth, width and batch.

    python bench/scaling.py             the table, scaling.json and scaling.png in bench/results
    python bench/scaling.py --quick     a smoke run

One dimension is varied at a time. Each shape is timed on each number of threads in turns, in one
process, with the flow on, in float32, with tanh hidden layers and Glorot weights. Two things are
asked: the time of a multiply-add stays within LIMIT of the best over depth, and no shape is slower
with more threads than with fewer by over SLOWER.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from statistics import median

import report
from vegrad.benchmark.timing import interleave

LIMIT, SLOWER = 2.0, 1.10
MOST_BYTES = 4e9  # of weights, gradients and activations: larger shapes are left out


@dataclass(frozen=True)
class Shape:
    """The shape of a network and its batch."""

    layers: int
    width: int
    batch: int

    @property
    def multiply_adds(self):
        """Multiply-adds of the products: outputs and weight gradients, L - 1 input gradients."""
        return (3 * self.layers - 1) * self.batch * self.width**2

    @property
    def bytes(self):
        """Bytes of weights, gradients and activations."""
        return 4 * self.layers * self.width * (2 * self.width + self.batch)


def powers(first, last):
    """Return the powers of two from first to last."""
    return [2**n for n in range(first.bit_length() - 1, last.bit_length())]


DEPTHS = (10, 20, 50, 100, 200, 500, 1000)
SWEEPS = {  # name: (what is varied, shapes)
    "depth, 64 wide, batch 64": ("layers", [Shape(n, 64, 64) for n in DEPTHS]),
    "depth, 256 wide, batch 128": ("layers", [Shape(n, 256, 128) for n in DEPTHS]),
    "depth, 128 wide, batch 1": ("layers", [Shape(n, 128, 1) for n in DEPTHS]),
    "width, 10 deep, batch 64": ("width", [Shape(10, n, 64) for n in powers(8, 4096)]),
    "width, 10 deep, batch 1": ("width", [Shape(10, n, 1) for n in powers(8, 4096)]),
    "batch, 20 deep, 64 wide": ("batch", [Shape(20, 64, n) for n in powers(1, 4096)]),
    "batch, 10 deep, 512 wide": ("batch", [Shape(10, 512, n) for n in powers(1, 4096)]),
}


def measure(shape, threads, seconds):
    """Time a shape; return {number of threads: median milliseconds}."""
    import numpy as np
    import vegrad

    random = np.random.default_rng(0)
    network = vegrad.MLP([shape.width] * (shape.layers + 1), seed=0)
    x, target = (random.standard_normal((shape.batch, shape.width), np.float32) for _ in range(2))

    def on(count):
        def step():
            vegrad.set_num_threads(count)
            network.backward(x, target)

        return step

    turns = interleave({count: on(count) for count in threads}, seconds, turn=0.03)
    return {count: 1e3 * median(chain(*durations)) for count, durations in turns.items()}


def findings(results):
    """Yield a sentence for each thing that was asked and does not hold."""
    for name, sweep in results["sweeps"].items():
        for row in sweep["rows"]:
            counts = sorted(row["ms"], key=int)
            for few, many in pairwise(counts):
                ratio = row["ms"][many] / row["ms"][few]
                if ratio > SLOWER:
                    yield f"{name}: {row[sweep['axis']]} takes {ratio:.2f}× with {many} threads"
        if sweep["axis"] != "layers":
            continue
        for count in map(str, results["threads"]):
            times = {
                row["layers"]: row["ms"][count] / row["multiply_adds"] for row in sweep["rows"]
            }
            worst = max(times, key=times.get)
            ratio = times[worst] / min(times.values())
            verdict = f"{ratio:.2f}× of the best at depth {worst}, {count} thread(s)"
            if ratio > LIMIT:
                yield f"{name}: a multiply-add takes {verdict}"


def text(results):
    """Yield a line for each shape: milliseconds, and picoseconds for one multiply-add."""
    yield "milliseconds, and picoseconds for one multiply-add, on " + ", ".join(
        f"{count} thread" + "s" * (count > 1) for count in results["threads"]
    )
    for name, sweep in results["sweeps"].items():
        yield f"\n{name}"
        for row in sweep["rows"]:
            times = "   ".join(
                f"{report.figure(ms):>6} ms {1e9 * ms / row['multiply_adds']:7.1f} ps"
                for ms in row["ms"].values()
            )
            yield f"{row[sweep['axis']]:>6}   {times}"
    yield ""
    yield from findings(results) or ()


def picture(results, path):
    """Draw nanoseconds for one multiply-add over each sweep, a line for each thread count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sweeps = results["sweeps"]
    sheet, panels = pyplot.subplots(2, (len(sweeps) + 1) // 2, figsize=(14, 6.4), squeeze=False)
    colours = ["#1f6f8b", "#e07a5f", "#e9b44c", "#81b29a", "#6d597a"]
    for panel, (name, sweep) in zip(panels.flat, sweeps.items(), strict=False):
        for colour, count in zip(colours, results["threads"], strict=False):
            places = [row[sweep["axis"]] for row in sweep["rows"]]
            times = [1e6 * row["ms"][str(count)] / row["multiply_adds"] for row in sweep["rows"]]
            panel.plot(
                places, times, ".-", color=colour, label=f"{count} thread" + "s" * (count > 1)
            )
        panel.set(xscale="log", yscale="log", title=name)
        panel.set_xlabel(sweep["axis"])
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("ns for one multiply-add")
    for panel in list(panels.flat)[len(sweeps) :]:
        panel.set_axis_off()
    handles, labels = panels[0][0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="lower right", frameon=False, fontsize=11)
    sheet.suptitle("vegrad: one forward and backward pass with flow, float32")
    sheet.tight_layout()
    sheet.savefig(path, dpi=90)
    pyplot.close(sheet)


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run, too short to be believed")
    add("--seconds", type=float, default=0.6, help="for each shape and count (%(default)s)")
    add("--threads", nargs="+", type=int, help="numbers of threads (1, 2, 4, … up to the cores)")
    add("--sweeps", nargs="+", choices=list(SWEEPS), help="only these")
    add("--output", type=Path, help="folder for the results (bench/results)")
    return parser.parse_args()


def main():
    """Run the sweeps; print and save what they find."""
    options = arguments()
    threads = options.threads or [n for n in (1, 2, 4, 8, 16) if n <= len(report.cores())]
    seconds = 0.02 if options.quick else options.seconds
    results = report.description() | {"threads": threads, "sweeps": {}}
    for name in options.sweeps or SWEEPS:
        axis, shapes = SWEEPS[name]
        rows = []
        for shape in shapes:
            if shape.bytes > (5e7 if options.quick else MOST_BYTES):
                continue
            print(f"  {name}: {getattr(shape, axis)}", file=sys.stderr, flush=True)
            ms = {str(count): value for count, value in measure(shape, threads, seconds).items()}
            rows.append(asdict(shape) | {"multiply_adds": shape.multiply_adds, "ms": ms})
        results["sweeps"][name] = {"axis": axis, "rows": rows}
    results["versions"] = report.versions()
    print("\n".join(text(results)))
    if options.output or not (options.quick or options.sweeps or options.threads):
        folder = options.output or report.RESULTS
        report.write(results, folder / "scaling.json")
        picture(results, folder / "scaling.png")


if __name__ == "__main__":
    main()
