"""`vegrad cure`: from options to a cured network, its proof and the change as code."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from vegrad.arrays.files import save_bytes
from vegrad.cli.options import (
    add_cell_options,
    add_common_options,
    add_data_options,
    add_memory_option,
    add_network_options,
    add_optimizer_options,
    build_optimizer,
    positive,
    written_schedule,
)
from vegrad.cli.task import (
    ROWS,
    STEPS,
    Task,
    build_network,
    build_task,
    counted,
    described,
    settle_and_load,
    target_told,
)
from vegrad.cli.terminal import print_files, print_json, print_verdict, spinner, width
from vegrad.datasets import NAMES, TASKS, Dataset, Sequences
from vegrad.networks.editor import written as written_mlp
from vegrad.networks.recurrent_editor import written as written_rnn
from vegrad.networks.rnn import RNN
from vegrad.networks.treatment import Cure, cure
from vegrad.optim import Adam
from vegrad.reports import cure as report
from vegrad.reports.text import describe_network
from vegrad.treatment.budget import BUDGET
from vegrad.treatment.script import quoted

DEMO_GOAL = 0.9  # accuracy that the demo wants to reach
DEMO_RATE, DEMO_STEPS = 0.01, 1000  # of its recurrent network
treat = cast(Callable[..., Cure], cure)  # takes either kind of network


def run(options: argparse.Namespace) -> int:
    """Cure a network; return 0 if it trains afterwards, else 1."""
    data = settle_and_load(options)
    task = build_task(options, data)
    steps = positive("--steps", options.steps)
    optimizer = build_optimizer(options, steps)
    found = treat(
        task.network,
        data.x,
        task.target,
        **task.lengths(np.arange(len(data.x))),
        **task.remembers(options),
        goal=options.goal,
        optimizer=optimizer,
        steps=steps,
        batch_size=positive("--batch", options.batch),
        seed=options.seed,
        budget=options.budget,
        progress=not options.quiet,
    )
    if found.patch:
        found = replace(found, patch=_runnable(options, task, found))
    files, well = _write(options, found), found.reached and not found.by_heart
    if options.json:
        content = found.to_dict()
        print_json(content | {"data": counted(data, len(data.x)), "files": files})
    else:
        print_verdict("\n".join(report.verdict(found, width())), good=well)
        if not options.quiet:
            before = textwrap.fill(f"before: {found.before.summary}", width())
            about = [described(data, len(data.x)), *target_told(data, options.loss)]
            print("", *about, describe_network(task.network.config), before, sep="\n")
            print("\n".join(report.details(found, width())))
        if found.patch and "patch" not in files:
            print(f"\n{found.patch}", end="")
        untrained = {"network": "network, before training"}
        print_files({untrained.get(name, name): path for name, path in files.items()})
    return 0 if well else 1


def demonstrate(options: argparse.Namespace, data: Dataset) -> Cure:
    """Cure the network of the demo."""
    network = build_network(options, data, data.loss)
    more: dict[str, object] = {}
    if options.cell:
        more = {"optimizer": Adam(DEMO_RATE), "steps": DEMO_STEPS}
    with spinner(options, "looking for the smallest change that trains"):
        return treat(
            network,
            data.x,
            data.target(data.loss),
            goal=DEMO_GOAL,
            seed=options.seed,
            **more,
        )


def show(options: argparse.Namespace, found: Cure) -> None:
    """Print what the demo says of the cure, below the diagnosis."""
    print()
    print_verdict("\n".join(report.verdict(found, width())), good=found.reached)
    if not options.quiet:
        print("\n".join(report.details(found, width())))


def _runnable(options: argparse.Namespace, task: Task, found: Cure) -> str:
    """Add the lines that load the data and make the network, so that the patch runs as a file."""
    data, loss, patch = task.data, task.network.config["loss"], found.patch or ""
    lines = [
        f"data = {_loading(options, data)}",
        f"x, target = data.x, data.target({quoted(loss)})",
    ]
    if "lengths=lengths" in patch:
        lines.append("lengths = data.lengths")
    if "network = vegrad." not in patch:
        written = written_rnn if isinstance(task.network, RNN) else written_mlp
        lines.append(f"network = {written(task.network.config)}")
    if options.schedule != "constant":
        lines.append(f"schedule = {written_schedule(options, options.steps)}")
    if data.preparation is not None:
        patch += f"network.preparation = data.preparation{_scaled(found)}  # for network.predict\n"
    return patch.replace("import vegrad\n", "\n".join(["import vegrad", "", *lines, ""]), 1)


def _scaled(found: Cure) -> str:
    """Write the call that adds to a preparation what the patch does to the data."""
    names = (("shift, scale", found.scaling), ("target_shift, target_scale", found.target_scaling))
    pairs = [f"({pair})" if scaled is not None else "None" for pair, scaled in names]
    return f".scaled({', '.join(pairs)})" if pairs != ["None", "None"] else ""


def _loading(options: argparse.Namespace, data: Dataset) -> str:
    """Write the call that loads the data of the options."""
    more = ", numbers=True" if options.loss == "mse" and data.name not in NAMES else ""
    if not isinstance(data, Sequences):
        if options.target is not None:
            more = f", target_column={quoted(options.target)}{more}"
        for name in ("columns", "drop"):
            if (names := getattr(options, name)) is not None:
                more += f", {name}=[{', '.join(map(quoted, names))}]"
        for name in ("fill", "sheet"):
            if (value := getattr(options, name)) is not None:
                more += f", {name}={quoted(value)}"
        return f"vegrad.datasets.load({quoted(data.name)}{more})"
    if data.name in TASKS:
        task, _, steps = (options.data or data.name).partition(":")
        return f"vegrad.datasets.{task}({ROWS}, {int(steps or STEPS)}, seed={options.seed})"
    return f"vegrad.datasets.load_sequences({quoted(data.name)}, {quoted(data.targets)}{more})"


def _write(options: argparse.Namespace, found: Cure) -> dict[str, str | None]:
    """Write the files that are asked for and return their paths by name."""
    files: dict[str, str | None] = {}
    if options.patch is not None:
        save_bytes(options.patch, (found.patch or f"# {found.summary}\n").encode())
        files["patch"] = options.patch
    if options.save is not None:
        found.network.save(options.save)
        files["network"] = options.save
    return files


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad cure`."""
    add_data_options(parser, "rows of a step (default 32)", 32)
    add_network_options(parser)
    add_cell_options(parser)
    add_memory_option(parser)
    add_optimizer_options(parser, clip="none")
    add = parser.add_argument_group("cure").add_argument
    goal = "accuracy to reach or, with mse, loss (default: some of the way from guessing)"
    most = f"the most to spend, in trainings (default {BUDGET})"
    add("--steps", type=int, metavar="N", default=500, help="steps of one training (default 500)")
    add("--goal", type=float, metavar="FIGURE", help=goal)
    add("--budget", type=float, metavar="X", default=BUDGET, help=most)
    group = parser.add_argument_group("output")
    group.add_argument("--patch", metavar="PATH", help="save the change as Python code")
    group.add_argument("--save", metavar="PATH", help="save the cured network, before training")
    add_common_options(group)
