"""How far can one rely on what is said of a recurrent network's memory? Truth is by training.

    python bench/recurrent_field.py             # 99 networks, 20 minutes on one core
    python bench/recurrent_field.py --count 12  # fewer

Networks and tasks are drawn: LSTM, GRU and tanh in `vegrad.RNN` and in PyTorch, with several
initializations, on the tasks of `vegrad.datasets` and others that need a memory, or none. Each is
diagnosed on 1024 rows before it is trained, with two learning rates if need be. It has learned if
fresh rows come to the goal of a cure (numbers: a fifth of the guess's loss). A finding
`forgets-what-is-needed` of a network that learns is false.

`before` is the rule that looked only at what a thousandth of the gradient comes to.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import vegrad
import vegrad.torch
from torch import nn
from vegrad.clipping import GlobalNorm
from vegrad.datasets import tasks
from vegrad.diagnosis.rules.memory import TOLD, own_reach
from vegrad.treatment.goal import Goal, goal_for

ROWS, LOOKED_AT, HELD = 4096, 1024, 512
STEPS, BATCH, RATES = 2000, 32, (3e-3, 1e-2)
RULE = "forgets-what-is-needed"
RESULT = Path(__file__).parent / "results" / "recurrent_field.json"
Data = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One network with its task."""

    number: int
    task: str
    front_end: str
    cell: str
    steps: int
    lag: int
    units: int
    how: str


# Tasks -----------------------------------------------------------------------------------------


def shown(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
    """Show one of four classes once, in noise."""
    classes = random.integers(0, 4, rows)
    x = 0.3 * random.standard_normal((rows, steps, 8))
    x[np.arange(rows), steps - 1 - lag, classes] += 2.0
    return x, classes


def everywhere(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
    """Show the class at each step."""
    classes = random.integers(0, 4, rows)
    x = random.standard_normal((rows, steps, 8))
    x[np.arange(rows), :, classes] += 0.7
    return x, classes


def two(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
    """Show one half of the class early, the other late."""
    early, late, every = random.integers(0, 2, rows), random.integers(0, 2, rows), np.arange(rows)
    x = 0.3 * random.standard_normal((rows, steps, 8))
    x[every, steps - 1 - lag, early] += 2.0
    x[every, steps - 3, 2 + late] += 2.0
    return x, early + 2 * late


def trail(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
    """Show the class early, and two faint hints of it later."""
    classes, every = random.integers(0, 4, rows), np.arange(rows)
    x = 0.5 * random.standard_normal((rows, steps, 8))
    for at, size in ((lag, 3.0), (lag // 2, 0.5), (lag // 4, 0.5)):
        x[every, steps - 1 - at, classes] += size
    return x, classes


def value(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
    """Ask for the number at one step."""
    x = random.standard_normal((rows, steps, 2))
    return x, x[:, steps - 1 - lag, :1]


def mean(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
    """Ask for the mean of all numbers."""
    x = random.standard_normal((rows, steps, 2))
    return x, steps**0.5 * x[:, :, :1].mean(axis=1)


def known(draw: Callable[..., Any]) -> Callable[..., Data]:
    """Return a task of `vegrad.datasets` in the form of those above."""

    def drawn(rows: int, steps: int, lag: int, random: np.random.Generator) -> Data:
        found = draw(rows, steps, seed=int(random.integers(2**31)))
        return found.x, found.y

    return drawn


TASKS: dict[str, Callable[..., Data]] = {
    "order": known(tasks.temporal_order),
    "shown": shown,
    "adding": known(tasks.adding),
    "two": two,
    "order, long": known(tasks.temporal_order),
    "value": value,
    "trail": trail,
    "shown, long": shown,
    "mean": mean,
    "copy": known(tasks.copy),
    "everywhere": everywhere,
}


def drawn_case(number: int) -> Case:
    """Draw a network and its task."""
    random = np.random.default_rng([19, number])
    task = list(TASKS)[number % len(TASKS)]
    long = task.endswith("long")  # many of these are beyond what any gradient comes to
    steps = int(random.choice([80, 100, 120] if long else [16, 25, 40, 60]))
    lag = int(random.integers(steps // 2 if long else 3, steps))
    how = str(random.choice(["default", "default", "forget 1", "orthogonal", "chrono"]))
    return Case(
        number,
        task,
        "torch" if number % 3 == 2 and task != "copy" else "vegrad",
        str(random.choice(["lstm", "gru", "tanh", "lstm"])),
        steps,
        lag,
        int(random.choice([16, 32])),
        "default" if long else how,
    )


# Networks --------------------------------------------------------------------------------------


def network(case: Case, x: np.ndarray, outputs: int, loss: str) -> vegrad.RNN:
    """Make the network."""
    gated, options = case.cell in ("lstm", "gru"), dict[str, Any]()
    if case.how == "forget 1" and gated:
        options["forget_bias"] = 1.0
    if case.how == "orthogonal":
        options["init"] = "orthogonal"
    if case.how == "chrono" and gated:
        options |= {"init": "chrono", "time_scale": case.steps}
    targets = "all" if case.task == "copy" else "last"
    sizes = x.shape[2], case.units, outputs
    return vegrad.RNN(
        *sizes, cell=case.cell, loss=loss, targets=targets, seed=case.number, **options
    )


class Classifier(nn.Module):
    """The same network in PyTorch."""

    def __init__(self, own: vegrad.RNN) -> None:
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}[own.config["cell"]]
        self.rnn = kind(own.config["inputs"], own.config["hidden"], batch_first=True)
        self.head = nn.Linear(own.config["hidden"], own.config["outputs"])
        self.load_state_dict({n: torch.from_numpy(p.copy()) for n, p in own.parameters.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return outputs of the last step."""
        return self.head(self.rnn(x)[0][:, -1])


# Truth -----------------------------------------------------------------------------------------


def way(output: np.ndarray, target: np.ndarray, goal: Goal) -> float:
    """Return how much of the way from a guess to the goal is done."""
    if goal.kind == "mse":
        return (1.0 - float(np.mean(np.square(output - target))) / goal.guess) / 0.8
    right = float(np.mean(output.argmax(-1) == target))
    return (right - goal.base) / (goal.wanted - goal.base)


def last(case: Case, values: np.ndarray) -> np.ndarray:
    """Return what is judged: of the copy task the steps that follow the marker."""
    return values[:, -10:] if case.task == "copy" else values


def learned_by_own(case: Case, own: vegrad.RNN, data: Data, held: Data, goal: Goal) -> float:
    """Train the network; return the most of the way that it has come."""
    best = 0.0

    def look(net: vegrad.RNN, history: vegrad.History) -> bool:
        nonlocal best
        output = net.forward(held[0].astype(np.float32))
        best = max(best, way(last(case, output), last(case, held[1]), goal))
        return best >= 1

    first = {name: one.copy() for name, one in own.parameters.items()}
    for rate in RATES:
        for name, one in first.items():
            own.parameters[name][...] = one
        own.fit(
            *data,
            optimizer=vegrad.Adam(rate, clip=GlobalNorm(1.0)),
            epochs=round(STEPS * BATCH / ROWS),
            batch_size=BATCH,
            seed=case.number,
            progress=False,
            gauge_every=None,
            callbacks=[look],
            on_finding=None,
        )
        if best >= 1:
            break
    return best


def learned_by_torch(case: Case, own: vegrad.RNN, data: Data, held: Data, goal: Goal) -> float:
    """Do the same in PyTorch."""
    best, loss_fn = 0.0, nn.MSELoss() if goal.kind == "mse" else nn.CrossEntropyLoss()
    x, target = torch.tensor(data[0], dtype=torch.float32), as_target(data[1])
    for rate in RATES:
        model = Classifier(own)
        model.rnn = vegrad.torch.fuse(model.rnn)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        random = np.random.default_rng(case.number)
        for step in range(STEPS):
            rows = random.integers(0, len(x), BATCH)
            optimizer.zero_grad()
            loss_fn(model(x[rows]), target[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 128 == 127:
                with torch.no_grad():
                    output = model(torch.tensor(held[0], dtype=torch.float32)).numpy()
                best = max(best, way(output, held[1], goal))
                if best >= 1:
                    return best
    return best


def as_target(values: np.ndarray) -> torch.Tensor:
    """Return targets as PyTorch's losses take them."""
    return torch.tensor(values, dtype=torch.float32 if values.dtype.kind == "f" else torch.int64)


# The run ---------------------------------------------------------------------------------------


def run(case: Case) -> dict[str, Any]:
    """Diagnose and train one network."""
    start, random = perf_counter(), np.random.default_rng([19, case.number, 1])
    draw = TASKS[case.task]
    data = draw(ROWS, case.steps, case.lag, random)
    held = draw(HELD, case.steps, case.lag, random)
    loss = "mse" if data[1].dtype.kind == "f" else "cross_entropy"
    outputs = 1 if loss == "mse" else int(data[1].max()) + 1
    own = network(case, data[0], outputs, loss)
    some = data[0][:LOOKED_AT].astype(np.float32), data[1][:LOOKED_AT]
    torch.manual_seed(0)
    if case.front_end == "torch":
        loss_fn = nn.MSELoss() if loss == "mse" else nn.CrossEntropyLoss()
        found = vegrad.torch.diagnose(
            Classifier(own), loss_fn, torch.from_numpy(some[0]), as_target(some[1]), resamples=0
        )
        learn = learned_by_torch
    else:
        found, learn = vegrad.diagnose(own, *some), learned_by_own
    assert found.reading is not None
    (cell,), lags = found.reading.cells, found.reading.lags
    reach = own_reach(cell.sizes[:, 0], cell.length)
    before = lags is not None and lags.told(reach)[1] >= TOLD
    best = learn(case, own, data, held, goal_for(loss, last(case, data[1]).reshape(-1), None))
    return asdict(case) | {
        "reach": reach,
        "before": bool(before),
        "now": any(one.rule == RULE for one in found.findings),
        "other": [one.rule for one in found.findings if one.rule != RULE],
        "way": round(best, 3),
        "seconds": round(perf_counter() - start, 1),
    }


def counts(rows: list[dict[str, Any]]) -> str:
    """Write the table of what was said, and if it was so."""
    lines = [f"{'':<18}{'right':>7}{'false':>7}{'silent: learns':>16}{'silent: does not':>18}"]
    for front_end in ("vegrad", "torch"):
        some = [row for row in rows if row["front_end"] == front_end]
        for rule in ("before", "now"):
            seen = Counter((row[rule], row["way"] >= 1) for row in some)
            figures = [seen[True, False], seen[True, True], seen[False, True], seen[False, False]]
            widths = (7, 7, 16, 18)
            text = "".join(f"{n:>{width}}" for n, width in zip(figures, widths, strict=True))
            lines.append(f"{front_end + ', ' + rule:<18}{text}")
    return "\n".join(lines)


def main() -> None:
    """Run the cases and write what was said of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=99)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file; by default, of a whole run, results/")
    options = parser.parse_args()
    rows = []
    for number in range(options.first, options.first + options.count):
        row = run(drawn_case(number))
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(counts(rows))
    path = options.output or (RESULT if options.count >= 99 else None)
    if path is not None:
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
