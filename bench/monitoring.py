"""Time training steps with `vegrad.torch.Monitor` at its defaults beside bare ones.

    python bench/monitoring.py            the table, on one thread; bench/results/monitoring.json
    python bench/monitoring.py --quick    fewer steps; nothing is written
    python bench/monitoring.py --cpu      the processor's time, where other work is running
    python bench/monitoring.py --only mlp,lenet --rounds 3
    python bench/monitoring.py --under ddp    in two processes; also fsdp (FSDP2), and compile

Two copies of each model take steps in turns, one with a monitor, after a warm-up in which the
monitor looks at more steps than later. `middle` compares medians, of which steps with a look are no
part; `mean` has them all, and the judgements; `from the first step` has the warm-up too, which is
half of its steps. Two copies differ by a percent by where they lie in memory: `--rounds` takes
several pairs, and the middle one. The last column is what reading all gradients once at every step
would cost, at the rate at which this machine reads memory: what no monitor of each step's norm that
takes it by itself can beat, unless it reads a part only. It is "at the limit" where the monitor
reads them at 92 % of that rate or more.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import report
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from vegrad import _core
from vegrad.benchmark.limits import AT_LIMIT
from vegrad.torch import Monitor

RESULTS = Path(__file__).resolve().parent / "results" / "monitoring.json"
STEPS, QUICK, ASKED = 512, 96, 0.02


# Models -----------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block of nanoGPT."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.heads = nn.Linear(width, width), heads
        self.norm2, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        batch, steps, width = x.shape
        parts = self.attention(self.norm(x)).chunk(3, -1)
        q, k, v = (
            one.view(batch, steps, self.heads, width // self.heads).transpose(1, 2) for one in parts
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A nanoGPT of 4 blocks of width 64, on characters."""

    def __init__(self, letters=65, width=64, steps=64, depth=4):
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(steps, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)

    def forward(self, x):
        places = torch.arange(x.shape[1])
        return self.head(self.norm(self.blocks(self.letter(x) + self.place(places))))


class LSTM(nn.Module):
    """Two layers of LSTM, and a head on the last state."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.LSTM(32, 128, 2, batch_first=True), nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.layers(x)[0][:, -1])


class Adapter(nn.Module):
    """A frozen layer with another of rank 8 beside it."""

    def __init__(self, layer, rank=8):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def square(output, target):
    """Return the mean square of an error."""
    return (output - target).square().mean()


def entropy(output, target):
    """Return the cross entropy over all places."""
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


def mlp():
    """Return the model, x, target and loss of 8 layers of 512, batch 128."""
    layers = (one for _ in range(8) for one in (nn.Linear(512, 512), nn.Tanh()))
    return nn.Sequential(*layers), torch.randn(128, 512), torch.randn(128, 512), square


def transformer():
    """Return the same of 4 encoder layers of width 256, 8 sequences of 64."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return model, torch.randn(8, 64, 256), torch.randn(8, 64, 256), square


def lenet():
    """Return the same of LeNet-5 with ReLU, 64 images of 28×28."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    return model, torch.randn(64, 1, 28, 28), torch.randint(10, (64,)), entropy


def gpt():
    """Return the same of nanoGPT, 12 texts of 64 characters."""
    return GPT(), torch.randint(65, (12, 64)), torch.randint(65, (12, 64)), entropy


def lstm():
    """Return the same of the LSTM, 32 sequences of 50 steps."""
    return LSTM(), torch.randn(32, 50, 32), torch.randint(10, (32,)), entropy


def lora():
    """Return the same of adapters in a frozen nanoGPT."""
    model, x, target, loss = gpt()
    model.requires_grad_(False)
    for block in model.blocks:
        for name in ("attention", "out", "up", "down"):
            setattr(block, name, Adapter(getattr(block, name)))
    return model, x, target, loss


CASES = {
    "mlp": ("MLP 8×512, batch 128", mlp),
    "transformer": ("transformer 4×256, 8×64", transformer),
    "lenet": ("LeNet, 64 images", lenet),
    "gpt": ("nanoGPT 4×64, 12×64", gpt),
    "lstm": ("LSTM of 2 layers, 32×50", lstm),
    "lora": ("LoRA on frozen nanoGPT", lora),
}


# Times ------------------------------------------------------------------------------------------


@dataclass
class Copy:
    """A model in training, and how long its steps took."""

    step: object
    monitor: Monitor | None
    seconds: list


def wrapped(model, under):
    """Return a model as its training has it: compiled, or one of two processes'."""
    if under == "compile":
        return torch.compile(model)
    if under == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if under == "fsdp":
        for layer in model.children():
            if any(one.requires_grad for one in layer.parameters()):
                fully_shard(layer)
        return fully_shard(model)
    return model


def copy_of(make, watched, under):
    """Return a model that takes steps."""
    torch.manual_seed(0)
    model, x, target, loss = make()
    called = wrapped(model, under)
    trained = [one for one in called.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=under != "fsdp")
    monitor = Monitor(called, on_finding=None) if watched else None

    def step():
        optimizer.zero_grad()
        loss(called(x), target).backward()
        optimizer.step()

    return Copy(step, monitor, [])


def measure(make, options):
    """Return the figures of one case: of several rounds, each with fresh copies, the middle one."""
    rounds = [one_round(make, options) for _ in range(options.rounds)]
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def one_round(make, options):
    """Return the figures of one pair of copies."""
    clock = time.thread_time if options.cpu else time.perf_counter
    bare, watched = (copy_of(make, one, options.under) for one in (False, True))
    pair = [bare, watched]
    copy_of(make, False, options.under).step()  # what is made once, as a compiled graph, is there
    warm, steps = (2 * QUICK, QUICK) if options.quick else (options.steps, options.steps)
    for turn in range(warm + steps):
        for one in pair if turn % 2 else reversed(pair):
            start = clock()
            one.step()
            one.seconds.append(clock() - start)
    before, after = (one.seconds[warm:] for one in pair)
    monitor = watched.monitor
    looked = (monitor.history.looked.step >= warm).sum()
    parameters = [one for one in monitor._params if one.grad is not None]
    size = sum(one.grad.nbytes for one in parameters)
    middle, fastest = statistics.median(before), rate(size, clock)
    found = {
        "step_ms": 1e3 * middle,
        "middle": statistics.median(after) / middle - 1,
        "mean": statistics.fmean(after) / statistics.fmean(before) - 1,
        "from_first": sum(watched.seconds) / sum(bare.seconds) - 1,
        "looked": float(looked / steps),
        "interval": monitor.schedule.interval,
        "part": monitor.schedule.part,
        "limit": size / fastest / middle,
        "share": read_by(monitor._watch, parameters, size, clock) / fastest,
    }
    monitor.remove()
    return found


def rate(size, clock):
    """Return at how many bytes a second so many are read, by PyTorch's norm or ours."""
    one = torch.ones(max(size // 4, 1 << 12))
    return max(
        one.nbytes / usual(read, clock)
        for read in (lambda: torch.dot(one, one), lambda: _core.norm(one, 2.0))
    )


def read_by(watch, parameters, size, clock):
    """Return at how many bytes a second a monitor reads these parameters' gradients."""
    return size / usual(lambda: watch.record(parameters), clock)


def usual(read, clock):
    """Return the seconds that it takes to read what lies where a step leaves it."""
    other, times = torch.ones(1 << 24), []
    for _ in range(9):
        other.add_(1)  # what a step leaves in the caches
        start = clock()
        read()
        times.append(clock() - start)
    return statistics.median(times)


def table(found):
    """Yield the lines of a table in markdown."""
    titles = (
        "bare|middle|mean|from the first step|looked at|read in part|reading all gradients once"
    )
    yield f"| step | {titles.replace('|', ' | ')} |"
    yield "|---|" + 7 * "---:|"
    for name, one in found.items():
        part = f"1/{one['part']:.0f}" if one["part"] > 1 else "all"
        keys = ("middle", "mean", "from_first")
        shares = (f"{100 * one[key]:+.1f} %" for key in keys)
        looked, limit = (f"{100 * one[key]:.1f} %" for key in ("looked", "limit"))
        limit += ", at the limit" if one["share"] >= AT_LIMIT else ""
        cells = (f"{one['step_ms']:.2f} ms", *shares, looked, part, limit)
        yield f"| {CASES[name][0]} | {' | '.join(cells)} |"


def run(options):
    """Measure and print; return the figures by case."""
    torch.set_num_threads(options.threads)
    found, tells = {}, not options.under or not is_second()
    for name in options.only.split(",") if options.only else CASES:
        found[name] = measure(CASES[name][1], options)
        if tells:
            print(list(table({name: found[name]}))[-1], flush=True)
    if tells:
        print("\n".join(table(found)))
    return found


def is_second():
    """Return True in the process that only takes part."""
    return torch.distributed.is_initialized() and torch.distributed.get_rank() > 0


def process(rank, options, store):
    """Run as one of two processes."""
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    run(options)
    torch.distributed.destroy_process_group()


def main():
    """Measure, print and save; return True if each mean is within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="those compared, and as many before"
    )
    parser.add_argument("--cpu", action="store_true", help="the processor's time")
    parser.add_argument("--under", choices=("compile", "ddp", "fsdp"), help="a wrapper")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="pairs of copies of each model")
    parser.add_argument("--only", help="names of cases, with commas")
    options = parser.parse_args()
    unknown = set(options.only.split(",") if options.only else ()) - CASES.keys()
    if unknown:
        parser.error(f"--only takes {', '.join(CASES)}, not {', '.join(sorted(unknown))}")
    if options.under in ("ddp", "fsdp"):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(process, (options, f"{folder}/store"), 2)
        return True
    found = run(options)
    complete = options.steps == STEPS and not (options.quick or options.only or options.under)
    if complete:
        RESULTS.write_text(json.dumps(report.description() | {"cases": found}, indent=1) + "\n")
    return all(one["mean"] <= ASKED for one in found.values())


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
