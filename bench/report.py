"""The description of the machine, and results as text, markdown, JSON and a picture."""

import datetime
import importlib.util
import json
import sys
from pathlib import Path

import conditions
from vegrad.benchmark import limits, peers, timing
from vegrad.benchmark.machine import cores as cores
from vegrad.benchmark.machine import machine
from vegrad.benchmark.machine import versions as versions

RESULTS = Path(__file__).resolve().parent / "results"  # of complete runs
COLOURS = {"numpy": "#9aa5b1", "torch": "#e07a5f", "jax": "#e9b44c", "vegrad": "#1f6f8b"}


# The machine


def description():
    """Describe the machine and the day, without names of hosts or folders."""
    found = machine()
    load = found["load_before"]
    if load is not None and load > 0.5:
        print(f"warning: other work is running (load {load:.1f}): expect noise", file=sys.stderr)
    return {"format": 1, "date": datetime.date.today().isoformat(), "machine": found}


def summary(peer, turns):
    """Summarize a peer's durations, which are seconds for each turn and call."""
    also = {"difference": peer.difference, "variant": getattr(peer, "variant", None)}
    return timing.summary(turns) | also


# The table

LEGEND = (
    "Medians in milliseconds of one forward and backward pass. ×: how many times faster vegrad is."
    " share: the limit over vegrad's time. flow: what measuring the flow adds to it. float64: the"
    " rate of the same pass in float64, over that in float32."
)


def limit_ms(run, row):
    """Compute the least time that a row can take at the measured rates."""
    return limits.pass_ms(run["limits"], row)


def milliseconds(row, name):
    """Return the median time of a peer, or None if it took no part."""
    return row["peers"].get(name, {}).get("median_ms")


def figure(value):
    """Format a number with three digits and no exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}" if value >= 1 else f"{value:.2f}"


def columns():
    """Yield (header, function of a run and a row that returns a cell, or None for a dash)."""

    def time_of(name):
        def cell(run, row):
            value = milliseconds(row, name)
            return None if value is None else figure(value)

        return cell

    def ratio_over(name):
        def cell(run, row):
            theirs, ours = milliseconds(row, name), milliseconds(row, "vegrad")
            return figure(theirs / ours) if theirs and ours else None

        return cell

    def flow(run, row):
        return f"{100 * row['flow_cost']:+.1f} %" if "flow_cost" in row else None

    def share(run, row):
        ours = milliseconds(row, "vegrad")
        return f"{100 * limit_ms(run, row) / ours:.0f} %" if ours else None

    def double(run, row):
        single, double = milliseconds(row, "vegrad"), milliseconds(row, "vegrad-float64")
        return figure(single / double) if single and double else None

    own = (peers.VegradWithoutFlow, peers.VegradFloat64)  # in columns of their own
    timed = [peer for peer in peers.PEERS if peer not in own]
    short = {peer.name: peer.title.split()[-1] for peer in timed}
    yield from ((short[peer.name], time_of(peer.name)) for peer in timed)
    yield "limit", lambda run, row: figure(limit_ms(run, row))
    yield from ((f"×{short[peer.name]}", ratio_over(peer.name)) for peer in timed[:-1])
    yield "share", share
    yield "flow", flow
    yield "float64", double


def table(runs):
    """Return lists of strings, the header first; a cell has the figures of all runs in order."""
    lines = [["L×N×B", *(row["label"].replace("x", "×") for row in runs[0]["rows"])]]
    for title, cell in columns():
        cells = [[cell(run, row) or "–" for row in run["rows"]] for run in runs]
        if any(text != "–" for texts in cells for text in texts):
            joined = [
                " / ".join(texts) if set(texts) != {"–"} else "–"
                for texts in zip(*cells, strict=True)
            ]
            lines.append([title, *joined])
    return [list(line) for line in zip(*lines, strict=True)]


def threads_text(run):
    """Return "1 thread" or "2 threads"."""
    return f"{run['threads']} thread" + "s" * (run["threads"] > 1)


def limits_text(run):
    """Yield a sentence for each limit of the machine."""
    for row in (row for row in run["rows"] if row["batch"] == 1):
        size = 4e-6 * row["layers"] * row["width"] ** 2
        yield (
            f"{row['label']}: reading the weights ({size:.1f} MB) twice and writing their"
            f" gradient once takes {limit_ms(run, row):.2f} ms"
        )
    peaks = (limits.peak(run["limits"], row) for row in run["rows"] if row["batch"] > 1)
    for best in map(json.loads, dict.fromkeys(map(json.dumps, peaks))):
        yield (
            f"matrix product: {best['gflops']:.0f} GF/s"
            f" ({best['by']}, {best['batch']}×{best['width']} by {best['width']}×{best['width']})"
        )
    reached = [row["label"] for row in run["rows"] if is_at_limit(run, row)]
    if reached:
        yield f"at the limit ({100 * limits.AT_LIMIT:.0f} % or more): {', '.join(reached)}"


def is_at_limit(run, row):
    """Tell if vegrad's pass takes hardly longer than the machine's rates allow."""
    ours = milliseconds(row, "vegrad")
    return bool(ours) and limit_ms(run, row) / ours >= limits.AT_LIMIT


def text(results):
    """Render a table for each number of threads, for a terminal."""
    parts = ["", LEGEND]
    for run in results["runs"]:
        lines = table([run])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts += ["", threads_text(run) + "; " + "; ".join(limits_text(run))]
        for line in lines:
            parts.append(
                "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            )
    if "conditions" in results:
        parts += ["", *conditions.sentences(results["conditions"])]
    return "\n".join(parts)


def markdown(results):
    """Render two tables, of times and of ratios, for each number of threads: docs/benchmarks.md."""
    machine, used = results["machine"], results["runs"][0]["versions"]
    names = [name for name in ("numpy", "torch", "jax", "vegrad") if used.get(name)]
    versions = ", ".join(f"{name} {used[name]}" for name in names)
    parts = [
        f"{machine['cpu']}, {used.get('isa', '?')}, {results['date']}, {versions}.",
        "",
        LEGEND,
    ]
    for run in results["runs"]:
        parts += ["", f"**{threads_text(run)}**"]
        lines = table([run])
        ratios = lines[0].index("limit") + 1
        times = [line[:ratios] for line in lines]
        for half in (times, [line[:1] + line[ratios:] for line in lines]):
            half.insert(1, ["---"] + ["---:"] * (len(half[0]) - 1))
            parts += ["", *("| " + " | ".join(line) + " |" for line in half)]
    if "conditions" in results:
        parts += ["", *(f"- {one}" for one in conditions.sentences(results["conditions"]))]
    return "\n".join(parts)


# Files


def load(path):
    """Read saved results; end the program if there are none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"no results in {path} ({error.__class__.__name__}): make them first")


def write(results, path):
    """Write results as JSON, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def save(results, folder):
    """Write results.json and, where matplotlib is installed, results.png."""
    write(results, folder / "results.json")
    if importlib.util.find_spec("matplotlib"):
        picture(results, folder / "results.png")
    else:
        print("no picture: matplotlib is not installed")


def picture(results, path):
    """Draw the share of the machine's limit that each library reaches on each row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = results["runs"]
    height = 1.2 + 0.85 * max(len(run["rows"]) for run in runs)
    sheet, panels = pyplot.subplots(
        1, len(runs), figsize=(5.2 * len(runs), height), sharey=True, squeeze=False
    )
    titles = {peer.name: peer.title for peer in peers.PEERS}
    for panel, run in zip(panels[0], runs, strict=True):
        for index, (name, colour) in enumerate(COLOURS.items()):
            for place, row in enumerate(run["rows"]):
                value = milliseconds(row, name)
                if value is None:
                    continue
                share, y = 100 * limit_ms(run, row) / value, place + 0.2 * index - 0.3
                panel.barh(y, share, 0.18, color=colour, label=None if place else titles[name])
                panel.text(share + 1, y, f"{figure(value)} ms", va="center", fontsize=7)
        panel.set(title=threads_text(run), xlim=(0, 112), xlabel="% of the machine's limit")
        panel.set_xticks(range(0, 101, 20))
        panel.set_yticks(
            range(len(run["rows"])), [row["label"].replace("x", "×") for row in run["rows"]]
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    sheet.legend(handles, labels, ncols=len(labels) or 1, loc="lower center", frameon=False)
    sheet.suptitle("The same forward and backward pass (layers × width × batch)")
    sheet.tight_layout(rect=(0, 0.06, 1, 1))
    sheet.savefig(path, dpi=110)
    pyplot.close(sheet)
