"""`vegrad cure`: from options to a cured network, its proof and the change as code."""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path

from vegrad import _core
from vegrad.cli.options import (
    build_network,
    build_optimizer,
    build_task,
    data_options,
    load_data,
    network_options,
    optimizer_options,
    positive,
    spinner,
)
from vegrad.datasets import Dataset
from vegrad.networks.treatment import Cure, cure
from vegrad.reports.cure import attempts, cost, text

DEMO_GOAL = 0.9


def run(options: argparse.Namespace) -> int:
    """The subcommand; returns the exit code."""
    for path in (options.patch, options.save):
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise ValueError(f"{path!r} must be a file in a folder that exists")
    data = load_data(options)
    target, network = build_task(options, data)
    steps = positive("--steps", options.steps)
    optimizer = build_optimizer(options, steps)
    with spinner("looking for the smallest change that trains"):
        found = cure(
            network, data.x, target, goal=options.goal, optimizer=optimizer, steps=steps,
            batch_size=positive("--batch", options.batch), seed=options.seed,
            budget=options.budget,
        )  # fmt: skip
    files = _write(options, found)
    if options.json:
        content = found.to_dict()
        content["data"] = {"name": data.name, "rows": len(data.x), "columns": data.x.shape[1]}
        content["files"], content["version"] = files, _core.__version__
        print(json.dumps(content, allow_nan=False, ensure_ascii=False, indent=2))
    else:
        print(f"{data.name}: {len(data.x)} rows of {data.x.shape[1]} columns")
        print(text(found))
        for name, path in files.items():
            print(f"{name}: {path}")
        if found.patch and "patch" not in files:
            print(f"\n{found.patch}", end="")
    return 0 if found.reached else 1


def demonstrate(options: argparse.Namespace, data: Dataset) -> Cure:
    """The cure of the demo's network."""
    network = build_network(options, data, data.loss)
    with spinner("looking for the smallest change that trains"):
        return cure(network, data.x, data.target(data.loss), goal=DEMO_GOAL, seed=options.seed)


def demonstrated(found: Cure) -> str:
    """What the demo says of it, below the diagnosis."""
    lines = [*cost(found), "", *attempts(found.attempts), found.proof.text if found.proof else ""]
    return "\n".join(lines)


def _write(options: argparse.Namespace, found: Cure) -> dict[str, str]:
    """The files that were asked for; they appear whole or not at all."""
    files = {}
    if options.patch is not None:
        there = Path(options.patch)
        partial = there.with_name(f".{secrets.token_hex(8)}.{there.name}")
        try:
            partial.write_text(found.patch or f"# {found.summary}\n", encoding="utf-8")
            partial.replace(there)
        finally:
            partial.unlink(missing_ok=True)
        files["patch"] = options.patch
    if options.save is not None:
        found.network.save(options.save)
        files["network"] = options.save
    return files


def cure_options(parser: argparse.ArgumentParser) -> None:
    """Options of `vegrad cure`."""
    data_options(parser, "rows of a step (32)", 32)
    network_options(parser, depth=10, width=64, activation="tanh", init="glorot_uniform")
    optimizer_options(parser, clip="none")
    add = parser.add_argument_group("cure").add_argument
    add("--steps", type=int, default=500, help="of one training (500)")
    add("--goal", type=float, metavar="FIGURE",
        help="accuracy to reach or, with mse, loss (some of the way from guessing)")  # fmt: skip
    add("--budget", type=float, default=1.5, help="the most to spend, in trainings (1.5)")
    output = parser.add_argument_group("output").add_argument
    output("--json", action="store_true", help="print JSON instead of text")
    output("--patch", metavar="PATH", help="save the change as Python code")
    output("--save", metavar="PATH", help="save the cured network, before training")
