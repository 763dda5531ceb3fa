"""Kill trainings at random moments, and read what they have left.

    python bench/kills.py                      1,000 kills (some minutes)
    python bench/kills.py --kills 50 --seed 3  fewer; the moments are drawn anew each time

Each training is a child of fork() that fits a network with a log and checkpoints, goes on from the
checkpoint that is there, saves what it has and begins again; it is ended by `kill -9`. Afterwards
every file must be whole: the new one or the one before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import vegrad
from vegrad.arrays.files import load_tensors
from vegrad.cli import main as shell

CHECKPOINT, NETWORK, HISTORY, LOG = "checkpoint", "network", "history.json", "log.jsonl"
QUIET = {"progress": False, "on_finding": None}


def fit(net: vegrad.MLP | vegrad.RNN, x: np.ndarray, y: np.ndarray) -> None:
    """Train, each time on from the checkpoint, for two more epochs; save everything."""
    for epochs in range(2, 40, 2):
        history = net.fit(
            x,
            y,
            optimizer=vegrad.Adam(1e-3, clip=vegrad.clipping.AutoClip(50.0)),
            epochs=epochs,
            batch_size=16,
            checkpoint=CHECKPOINT,
            resume=CHECKPOINT if Path(CHECKPOINT).exists() else None,
            log=LOG,
            **QUIET,
        )
        net.save(NETWORK)
        history.save(HISTORY)
    for name in (CHECKPOINT, LOG):  # all epochs are over: from the beginning
        Path(name).unlink()


def mlp() -> None:
    """Fit an MLP."""
    x = np.random.default_rng(0).standard_normal((200, 20))
    fit(vegrad.MLP([20, 64, 64, 2], seed=0), x, x[:, :2])


def rnn() -> None:
    """Fit an LSTM."""
    x = np.random.default_rng(0).standard_normal((64, 12, 4))
    fit(vegrad.RNN(4, 16, 1, cell="lstm", seed=0), x, x[:, 0, :1])


def train() -> None:
    """Train by the command line."""
    files = ["--save", NETWORK, "--checkpoint", CHECKPOINT, "--history", HISTORY]
    again = ["--resume"] if Path(CHECKPOINT).exists() else ["--force"]
    common = ["train", "--data", "wine", "--width", "32", "--epochs", "30", "--quiet"]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        shell([*common, *files, *again])
    Path(CHECKPOINT).unlink()


JOBS: dict[str, Callable[[], None]] = {"mlp": mlp, "rnn": rnn, "train": train}


def child(job: Callable[[], None], folder: Path) -> int:
    """Start the job in a child, again and again; return its process once it has begun."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        return process
    try:
        os.chdir(folder)
        os.write(writing, b"x")
        while True:
            job()
    except SystemExit as ended:  # the shell's
        print(ended, file=sys.stderr)
    finally:
        os._exit(1)


def left(folder: Path) -> dict[str, int]:
    """Read every file; return how much is in it: epochs of a checkpoint, steps of a log."""
    found = {}
    for path in folder.iterdir():
        if path.name == CHECKPOINT:
            found[path.name] = len(load_tensors(path, "checkpoint")[0]["history.epoch_loss"])
        elif path.name == NETWORK:
            of_kind = vegrad.RNN if folder.name == "rnn" else vegrad.MLP
            found[path.name] = len(of_kind.load(path).parameters)
        elif path.name == HISTORY or (path.name == LOG and path.stat().st_size):
            try:
                found[path.name] = vegrad.read_run(path).steps
            except ValueError as error:
                if "no step" not in str(error) and "nothing" not in str(error):
                    raise
    return found


def main() -> int:
    """Kill so often; return 1 if a file was not whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--job", choices=list(JOBS), action="append", help="all of them")
    parser.add_argument("--longest", type=float, default=1.0, help="seconds that a training lives")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    draw, bad, seen = random.Random(options.seed), 0, dict.fromkeys(JOBS, 0)
    warnings.simplefilter("ignore")
    names = options.job or list(JOBS)
    vegrad.datasets.load("wine")  # which imports scikit-learn once for all children
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.kills):
            name = names[number % len(names)]
            place = Path(folder) / name
            place.mkdir(exist_ok=True)
            process = child(JOBS[name], place)
            time.sleep(draw.random() ** 2 * options.longest)
            os.kill(process, signal.SIGKILL)
            status = os.waitpid(process, 0)[1]
            try:
                seen[name] += len(left(place))
                assert os.WTERMSIG(status) == signal.SIGKILL, f"ended by itself: {status}"
            except Exception as error:
                bad += 1
                print(f"kill {number}, {name}: {type(error).__name__}: {error}", flush=True)
        temporary = sum(path.name.startswith(".") for path in Path(folder).rglob("*"))
    print(f"{options.kills} kills: {bad} left something broken; {temporary} temporary files left")
    print(", ".join(f"{name} {count} whole files read" for name, count in seen.items()))
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
