"""`vegrad cure`: from options to a cured network, its proof and the change as code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from vegrad.arrays.files import save_bytes
from vegrad.cli.options import (
    add_cell_options,
    add_data_options,
    add_json_option,
    add_network_options,
    add_optimizer_options,
    build_optimizer,
    positive,
    print_json,
    spinner,
)
from vegrad.cli.task import build_network, build_task, counted, described, load_data
from vegrad.datasets import Dataset
from vegrad.networks.treatment import Cure, cure
from vegrad.optim import Adam
from vegrad.reports.cure import attempts, cost, text
from vegrad.treatment.budget import BUDGET

DEMO_GOAL = 0.9  # accuracy that the demo wants to reach
DEMO_RATE, DEMO_STEPS = 0.01, 1000  # of its recurrent network
treat = cast(Callable[..., Cure], cure)  # takes either kind of network


def run(options: argparse.Namespace) -> int:
    """Cure a network; return 0 if it trains afterwards, else 1."""
    for path in (options.patch, options.save):
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise ValueError(f"{path!r} must be a file in a folder that exists")
    data = load_data(options)
    task = build_task(options, data)
    steps = positive("--steps", options.steps)
    optimizer = build_optimizer(options, steps)
    found = treat(
        task.network,
        data.x,
        task.target,
        **task.lengths(np.arange(len(data.x))),
        goal=options.goal,
        optimizer=optimizer,
        steps=steps,
        batch_size=positive("--batch", options.batch),
        seed=options.seed,
        budget=options.budget,
        progress=not options.quiet,
    )
    files = _write(options, found)
    if options.json:
        content = found.to_dict()
        print_json(content | {"data": counted(data, len(data.x)), "files": files})
    else:
        print(described(data, len(data.x)))
        print(text(found))
        for name, path in files.items():
            print(f"{name}: {path}")
        if found.patch and "patch" not in files:
            print(f"\n{found.patch}", end="")
    return 0 if found.reached else 1


def demonstrate(options: argparse.Namespace, data: Dataset) -> Cure:
    """Cure the network of the demo."""
    network = build_network(options, data, data.loss)
    more: dict[str, object] = {}
    if options.cell:
        more = {"optimizer": Adam(DEMO_RATE), "steps": DEMO_STEPS}
    with spinner("looking for the smallest change that trains"):
        return treat(
            network,
            data.x,
            data.target(data.loss),
            goal=DEMO_GOAL,
            seed=options.seed,
            **more,
        )


def demonstrated(found: Cure) -> str:
    """Return the text about the cure that the demo prints below the diagnosis."""
    lines = [*cost(found), "", *attempts(found.attempts), found.proof.text if found.proof else ""]
    return "\n".join(lines)


def _write(options: argparse.Namespace, found: Cure) -> dict[str, str]:
    """Write the files that are asked for and return their paths by name."""
    files = {}
    if options.patch is not None:
        save_bytes(options.patch, (found.patch or f"# {found.summary}\n").encode())
        files["patch"] = options.patch
    if options.save is not None:
        found.network.save(options.save)
        files["network"] = options.save
    return files


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad cure`."""
    add_data_options(parser, "rows of a step (32)", 32)
    add_network_options(parser, depth=10, width=64, activation="tanh", init="glorot_uniform")
    add_cell_options(parser)
    add_optimizer_options(parser, clip="none")
    add = parser.add_argument_group("cure").add_argument
    goal = "accuracy to reach or, with mse, loss (some of the way from guessing)"
    add("--steps", type=int, default=500, help="steps of one training (500)")
    add("--goal", type=float, metavar="FIGURE", help=goal)
    add("--budget", type=float, default=BUDGET, help=f"the most to spend, in trainings ({BUDGET})")
    output = parser.add_argument_group("output")
    add_json_option(output)
    output.add_argument("--quiet", action="store_true", help="no progress on standard error")
    output.add_argument("--patch", metavar="PATH", help="save the change as Python code")
    output.add_argument("--save", metavar="PATH", help="save the cured network, before training")
