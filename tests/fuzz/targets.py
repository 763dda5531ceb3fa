"""What is fuzzed: each reader of files, each loader of states, and what takes buffers.

A target takes bytes. It returns, or raises what its reader documents; anything else is a fault.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
import vegrad
from vegrad import clipping, datasets
from vegrad.watching import page
from vegrad.watching.follower import Follower

from tests.arrays.test_files import CONFIGS, make
from tests.fuzz import buffers
from tests.runs.test_read import event, record, simple, tensor

SIZES, ROWS = [3, 4, 2], 12
FOLDER = Path(mkdtemp(prefix="vegrad-fuzz-"))  # where what is read now lies, also after a crash
QUIET = {"progress": False, "on_finding": None}


class Target(NamedTuple):
    """A reader, undamaged content for it, and how it refuses what is damaged."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    refusals: tuple[type[Exception], ...] = (ValueError,)


def of_file(ending: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return what reads content out of a file."""
    path = FOLDER / f"content{ending}"

    def reading(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return reading


def written(name: str, write: Callable[[Path], object]) -> bytes:
    """Return what `write` writes to a file."""
    path = FOLDER / name
    write(path)
    content = path.read_bytes()
    path.unlink()
    return content


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, the same each time."""
    random = np.random.default_rng(0)
    return random.standard_normal((ROWS, SIZES[0])), random.standard_normal((ROWS, SIZES[-1]))


def fit(network: vegrad.MLP, **options: Any) -> vegrad.History:
    """Train for an epoch on fixed data."""
    steps = vegrad.AdamW(0.01, clip=clipping.AutoClip(50.0))
    return network.fit(*data(), optimizer=steps, epochs=1, batch_size=4, **QUIET, **options)


# ------------------------------------------------------------------------------------- networks


def networks() -> list[bytes]:
    """Return networks that were saved."""
    return [written("network", make(config).save) for config in CONFIGS]


def recurrent() -> list[bytes]:
    """Return recurrent networks that were saved."""
    return [
        written("network", vegrad.RNN(3, 4, 2, cell=cell, layers=2, seed=0).save)
        for cell in ("lstm", "tanh")
    ]


def checkpoints() -> list[bytes]:
    """Return a checkpoint of a training."""
    return [written("state", lambda path: fit(vegrad.MLP(SIZES, seed=0), checkpoint=path))]


def resume(path: Path) -> None:
    """Go on from a checkpoint."""
    fit(vegrad.MLP(SIZES, seed=0), resume=path)


# ----------------------------------------------------------------------------------------- runs


def logs() -> list[bytes]:
    """Return logs of trainings, one that has gone wrong."""

    def blown_up(path: Path) -> None:
        x, y = data()
        net = vegrad.MLP(SIZES, activation="relu", seed=0)
        net.fit(x, 1e6 * y, optimizer=vegrad.SGD(10.0), epochs=3, batch_size=4, log=path, **QUIET)

    return [
        written("log.jsonl", lambda path: fit(vegrad.MLP(SIZES, seed=0), log=path)),
        written("log.jsonl", blown_up),
    ]


def histories() -> list[bytes]:
    """Return histories that were saved, as JSON and as a table."""
    history = fit(vegrad.MLP(SIZES, seed=0))
    return [written("history.json", history.save), written("history.csv", history.save)]


def trainer_states() -> list[bytes]:
    """Return what Hugging Face's Trainer writes."""
    entries = [
        {"step": 10 * n, "loss": 2.0 / n, "grad_norm": 1.5, "learning_rate": "1e-4", "epoch": 0.1}
        for n in range(1, 12)
    ]
    more = [{"step": 60, "eval_loss": 2.5, "eval_accuracy": 0.5}, {"step": 120, "loss": np.nan}]
    return [json.dumps({"log_history": entries + more, "logging_steps": 10}).encode()]


def tables() -> list[bytes]:
    """Return what Lightning's CSVLogger writes."""
    to = io.StringIO()
    rows = csv.writer(to)
    rows.writerow(["epoch", "grad_2.0_norm/net.0.weight", "lr-AdamW", "step", "train_loss_step",
                   "val_loss"])  # fmt: skip
    for n in range(9):
        rows.writerow([0, 4.0, 0.1, 50 * n + 49, 3.5 / (n + 1), "" if n % 3 else 3.0])
    return [to.getvalue().encode()]


def event_files() -> list[bytes]:
    """Return what TensorBoard writes."""
    begin = record(b"\x09" + bytes(8) + b"\x1a\x0dbrain.Event:2")
    losses = b"".join(event(n, "Loss/train", simple(1 / (n + 1))) for n in range(12))
    return [begin + losses + event(3, "val/loss", tensor(0.5)) + event(3, "mystery", simple(1.0))]


def judge(path: Path) -> None:
    """Read a run, judge it and write it down, as `diagnose` and `watch` do."""
    run = vegrad.read_run(path)
    try:
        found = vegrad.diagnose_run(run)
    except ValueError:  # documented: too few steps, nothing to judge by
        return
    str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def follow(path: Path) -> None:
    """Follow a log as `watch` does, which has it in pieces."""
    follower = Follower(path)
    follower.poll(60.0)
    page.content(follower)
    if follower.run is None:
        raise ValueError(follower.problem)


# ----------------------------------------------------------------------------------------- data


def csv_numbers() -> list[bytes]:
    """Return a table of numbers."""
    return [b"a,b,y\n1,2,3\n4,NA,6\n-7e3,8.5,9\n"]


def csv_labels() -> list[bytes]:
    """Return a table with classes."""
    return [b'a;"b c";y\n1;2;red\n4;;blue\n7;8;red\n']


def archives(**arrays: np.ndarray) -> list[bytes]:
    """Return arrays in an archive, as they are and compressed."""
    return [
        written("a.npz", lambda path: np.savez(path, **arrays)),
        written("a.npz", lambda path: np.savez_compressed(path, **arrays)),
    ]


def examples() -> list[bytes]:
    """Return examples in an archive."""
    return archives(x=np.arange(12.0).reshape(4, 3), y=np.array([0, 1, 1, 0]))


def sequences() -> list[bytes]:
    """Return sequences in an archive."""
    return archives(
        x=np.arange(24.0).reshape(3, 4, 2), y=np.array([0.5, 1, 2]), lengths=np.array([4, 2, 3])
    )


# --------------------------------------------------------------------------------------- states

RULES: dict[str, Callable[[], clipping.Rule]] = {
    "Value": lambda: clipping.Value(1.0),
    "GlobalNorm": lambda: clipping.GlobalNorm(1.0),
    "AutoClip": lambda: clipping.AutoClip(50.0),
    "ZClip": lambda: clipping.ZClip(),
    "AdaGC": lambda: clipping.AdaGC(),
    "SkipSpike": lambda: clipping.SkipSpike(),
}
OPTIMIZERS: dict[str, Callable[..., vegrad.optim.Optimizer]] = {
    name: getattr(vegrad, name) for name in ("SGD", "Adam", "AdamW", "Lion")
}


def gradients() -> dict[str, np.ndarray]:
    """Return two gradients of unequal size."""
    return {"a": np.ones(3, np.float32), "b": np.full((2, 2), 2.0, np.float32)}


def rules() -> list[bytes]:
    """Return states of rules that have learnt."""
    found = []
    for make_rule in RULES.values():
        rule = make_rule()
        for _ in range(3):
            rule.apply_(gradients())
        found.append(json.dumps(as_lists(rule.state_dict())).encode())
    return found


def optimizers() -> list[bytes]:
    """Return states of optimizers that have taken steps, some with a clip."""
    found = []
    for number, make_one in enumerate(OPTIMIZERS.values()):
        steps = make_one(clip=clipping.ZClip()) if number % 2 else make_one()
        steps.step(gradients(), gradients())
        found.append(json.dumps(as_lists(steps.state_dict())).encode())
    return found


def as_lists(value: Any) -> Any:
    """Return the same with arrays as lists."""
    if isinstance(value, dict):
        return {key: as_lists(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    return [as_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def with_arrays(value: Any) -> Any:
    """Return the opposite of `as_lists`."""
    if isinstance(value, dict) and list(value) == ["array"]:
        return np.array(value["array"], np.float32)
    if isinstance(value, dict):
        return {key: with_arrays(entry) for key, entry in value.items()}
    return [with_arrays(entry) for entry in value] if isinstance(value, list) else value


def parsed(content: bytes) -> dict[str, Any]:
    """Return a state out of JSON; ValueError if it is none that could be made of it."""
    try:
        found = with_arrays(json.loads(content))
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError("no state") from error
    if not isinstance(found, dict):
        raise ValueError("no state")  # which is a TypeError of load_state_dict, as documented
    return found


def load_rule(content: bytes) -> None:
    """Load a state into the rule that it names, and clip by it."""
    state = parsed(content)
    name = state.get("rule")
    rule = RULES.get(name if isinstance(name, str) else "", RULES["ZClip"])()
    rule.load_state_dict(state)
    json.dumps(as_lists(rule.state_dict()))
    rule.apply_(gradients())


def load_optimizer(content: bytes) -> None:
    """Load a state into the optimizer that it names, and take a step."""
    state = parsed(content)
    name = state.get("optimizer")
    make_one = OPTIMIZERS.get(name if isinstance(name, str) else "", vegrad.Adam)
    steps = make_one(clip=clipping.ZClip()) if state.get("clip") else make_one()
    steps.load_state_dict(state)
    steps.step(gradients(), gradients())
    json.dumps(as_lists(steps.state_dict()))


# ---------------------------------------------------------------------------------------- table

TARGETS: dict[str, Target] = {
    "mlp": Target(of_file("", vegrad.MLP.load), networks),
    "rnn": Target(of_file("", vegrad.RNN.load), recurrent),
    "checkpoint": Target(of_file("", resume), checkpoints),
    "log": Target(of_file(".jsonl", judge), logs),
    "followed": Target(of_file(".jsonl", follow), logs),
    "history": Target(of_file("", judge), histories),
    "trainer_state": Target(of_file("", judge), trainer_states),
    "metrics": Target(of_file("", judge), tables),
    "events": Target(of_file("", judge), event_files),
    "numbers": Target(of_file(".csv", partial(datasets.load, target_column="y")), csv_numbers),
    "labels": Target(of_file(".csv", partial(datasets.load, target_column="y")), csv_labels),
    "examples": Target(of_file(".npz", datasets.load), examples),
    "sequences": Target(of_file(".npz", datasets.load_sequences), sequences),
    "rule": Target(load_rule, rules),
    "optimizer": Target(load_optimizer, optimizers),
    "arrays": Target(buffers.arrays, buffers.seeds, (ValueError, TypeError)),
    "tensors": Target(buffers.tensors, buffers.seeds, (ValueError, TypeError)),
    "passes": Target(buffers.passes, buffers.seeds, (ValueError, TypeError)),
}


def outcome(target: Target, content: bytes) -> str:
    """Return "read" or "refused"; anything but a documented refusal is raised."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            target.read(content)
        except target.refusals:
            return "refused"
    return "read"
