"""`vegrad descent`: a training's steps as hops over the loss, in three stories or one's own."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter

import numpy as np

from vegrad.cli.options import (
    add_cell_options,
    add_common_options,
    add_data_options,
    add_network_options,
    add_optimizer_options,
    build_optimizer,
    positive,
)
from vegrad.cli.outputs import PICTURES, settle
from vegrad.cli.parser import Parser
from vegrad.cli.task import build_task, check_finite, described, load_data, target_told
from vegrad.cli.terminal import print_files, print_json, spinner, width
from vegrad.datasets import Dataset
from vegrad.flow.descent import Descent
from vegrad.networks.descent import descend
from vegrad.reports import descent as report

PICTURE = "vegrad-descent.png"
MOST_ROWS = 600  # which are learned, and along the steps measured
STEPS = 24
STORIES: dict[str, dict[str, object]] = {
    "plateau": {"depth": 30, "activation": "sigmoid", "lr": 0.03, "momentum": 0.0, "steps": 72},
    "edge": {"depth": 50, "lr": 2.0, "momentum": 0.0, "steps": 12},
    "clip": {"depth": 50, "lr": 2.0, "momentum": 0.0, "clip": "global_norm:0.1"},
    "own": {},
}
CHOSEN = ("data", "target", "cell", "layers", "batch", "depth", "width", "activation", "init",
          "sigma_w", "sigma_b", "loss", "residual", "norm", "dtype", "optimizer", "lr", "momentum",
          "weight_decay", "schedule", "clip", "steps", "forget_bias", "time_scale",
          "targets")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Train, draw the descents and say what they show; return 1 if one's own diverges, else 0."""
    names = _stories(options)
    data = load_data(options)
    settle(options)
    descents = [(name, *_descent(options, data, STORIES[name])) for name in names]
    with spinner(options, "drawing the picture"):
        report.draw([(title, descent) for _, title, descent in descents], options.plot)
    lost = [name for name, _, one in descents if report.outcome(one) == "diverges"]
    code = int(lost == ["own"])  # the other stories are meant to
    if options.json:
        told = {name: _content(title, descent) for name, title, descent in descents}
        print_json({"stories": told, "picture": options.plot})
        return code
    for name, title, descent in descents:
        print(textwrap.fill(_sentence(name, descent), width(), subsequent_indent="  "))
        if not options.quiet:
            print(textwrap.fill(title, width(), initial_indent="  ", subsequent_indent="  "))
    if not options.quiet:
        about = described(data, min(len(data.x), MOST_ROWS))
        print("", about, *target_told(data, options.loss), sep="\n")
    print_files({"picture": options.plot})
    return code


def tell(options: argparse.Namespace) -> dict[str, Descent]:
    """Return the descents of the three stories, by their titles, for the demo's page."""
    parser = Parser()
    add_options(parser)
    settings = parser.parse_args(["--quiet"] if options.quiet else [])
    data = load_data(settings)
    return dict(_descent(settings, data, STORIES[name]) for name in _stories(settings))


def _stories(options: argparse.Namespace) -> list[str]:
    """Return the stories to tell: the one asked for, one's own if options are given, or three."""
    if options.story is not None:
        if options.story != "own" and options.cell is not None:
            raise ValueError(f"--cell goes with the story own, not with {options.story}")
        return [options.story]
    if any(getattr(options, name) != options.usual[name] for name in CHOSEN):
        return ["own"]
    return [name for name, story in STORIES.items() if story]


def _descent(
    options: argparse.Namespace, data: Dataset, story: dict[str, object]
) -> tuple[str, Descent]:
    """Train the network of a story, in which options that were given stand in place of its own."""
    given = {name: getattr(options, name) for name in CHOSEN}
    changed = {name: given[name] for name in CHOSEN if given[name] != options.usual[name]}
    one = argparse.Namespace(**vars(options) | story | changed)
    task = build_task(one, data)
    check_finite(task)
    rows = np.random.default_rng(one.seed).permutation(len(data.x))[:MOST_ROWS]
    steps = positive("--steps", one.steps)
    batch = None if one.batch is None else positive("--batch", one.batch)
    optimizer = build_optimizer(one, steps)
    config = task.network.config
    title = f"{config['cell']}" if "cell" in config else f"{len(config['sizes']) - 1} layers"
    title += f" of {config['activation']}" if "activation" in config else ""
    title += f", {one.optimizer.upper() if one.optimizer == 'sgd' else one.optimizer}"
    title += f" {optimizer.rate(0):g}" + (f", clip {one.clip}" if one.clip != "none" else "")
    title += f", batches of {batch}" if batch is not None else ""
    with spinner(options, f"{title}: {steps} steps"):
        found = descend(
            task.network,
            *task.rows(rows)[:2],
            lengths=task.lengths(rows).get("lengths"),
            optimizer=optimizer,
            steps=steps,
            batch_size=batch,
            seed=one.seed,
        )
    if not found.looks:
        raise ValueError(f"{title}: not a single step could be taken, as nothing in it is finite")
    return title, found


def _sentence(name: str, descent: Descent) -> str:
    """Say what a descent shows."""
    said = [note.replace("\n", " ") for _, note in report.notes(descent)]
    kinds = Counter(report.HOPS[report.kind(look)].name for look in descent.looks)
    counted = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    losses = descent.loss[np.isfinite(descent.loss)]
    way = f"loss {losses[0]:.4g} → {losses[-1]:.4g} (guessing {descent.guess:.4g})"
    story = "; ".join([f"{report.outcome(descent)}, {way}", *said])
    return f"{name}: {story}; of {len(descent.looks)} steps {counted}"


def _content(title: str, descent: Descent) -> dict[str, object]:
    losses = [float(loss) if np.isfinite(loss) else None for loss in descent.loss]
    looks = [
        {"step": look.step, "kind": report.HOPS[report.kind(look)].name, "loss": look.loss.tolist()}
        for look in descent.looks
    ]
    guess = descent.guess if np.isfinite(descent.guess) else None
    outcome = report.outcome(descent)
    return {"title": title, "outcome": outcome, "guess": guess, "loss": losses, "looks": looks}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad descent`."""
    stories = (
        "plateau (baby steps at the loss of guessing), edge (steps too long), clip (the same, held "
        "by a clip), or own: what the options describe (default: own with any of these options, "
        "else the first three side by side)"
    )
    parser.add_argument("story", nargs="?", choices=list(STORIES), metavar="STORY", help=stories)
    add_data_options(parser, f"rows of a step (default: all, of which {MOST_ROWS} are taken)")
    add_network_options(parser)
    add_cell_options(parser)
    add_optimizer_options(parser, clip="none", optimizer="sgd")
    add = parser.add_argument_group("descent").add_argument
    most = f"steps to take, of which {report.MOST} are drawn (default {STEPS})"
    add("--steps", type=int, metavar="N", default=STEPS, help=most)
    group = parser.add_argument_group("output")
    picture = f"where the picture goes, {' or '.join(PICTURES)} (default {PICTURE})"
    group.add_argument("--plot", metavar="PATH", default=PICTURE, help=picture)
    add_common_options(group, quiet="no progress, and no more than what the steps show")
    parser.set_defaults(usual={name: parser.get_default(name) for name in CHOSEN})
