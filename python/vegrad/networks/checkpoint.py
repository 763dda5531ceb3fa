"""Checkpoints: files from which a training goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.arrays.files import complaining_of, load_tensors, save_tensors
from vegrad.arrays.shown import shown, visible
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.networks.network import Network, check_shapes
from vegrad.networks.sequences import Cuts
from vegrad.optim import Optimizer

# The part of a network's config that says where its weights began: a resume replaces the weights,
# so that the network that goes on may have begun elsewhere.
START = {"init", "sigma_w", "sigma_b", "seed", "forget_bias", "time_scale", "input_variance"}


@dataclass
class TrainingState:
    """Everything that a training needs to go on, bit for bit."""

    network: Network
    optimizer: Optimizer
    settings: Mapping[str, object]
    """The arguments of `fit` that must stay the same: rows, batch_size and shuffle."""
    random: np.random.Generator
    """Draws the order of the rows, once an epoch."""
    history: History
    cuts: Cuts | None = None
    """A truncation at random."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state to a safetensors file, which appears whole or not at all."""
        state = self.optimizer.state_dict()
        arrays = {f"network.{name}": array for name, array in self.network.parameters.items()}
        steps = {}
        for key, kept in state.pop("state").items():
            steps[key] = kept["step"]
            arrays |= {f"optimizer.{n}.{key}": a for n, a in kept.items() if n != "step"}
        for name in (*STEPS, *EPOCHS, *LAYERS):
            arrays[f"history.{name}"] = getattr(self.history, name)
        clip = state.pop("clip")
        if clip is not None:  # its lists are no part of the file's header, which is to stay short
            arrays |= {f"clip.{n}": np.array(v) for n, v in clip.items() if isinstance(v, list)}
            clip = {n: v for n, v in clip.items() if not isinstance(v, list)}
        about = {
            "kind": "checkpoint",
            "config": self.network.config,
            "settings": self.settings,
            "random": self.random.bit_generator.state,
            "optimizer": state | {"state": steps, "clip": clip},
            "met": self.history.met(),
            "preparation": _prepared(self.network),
        }
        if self.cuts is not None:
            about["cuts"] = self.cuts.state_dict()
        save_tensors(path, arrays, about)

    def resume(self, path: str | PathLike[str]) -> None:
        """Take over the state that `save` wrote, weights and optimizer included.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is broken, or of another network or other settings; nothing has
                changed then.
        """
        arrays, about = load_tensors(path, "checkpoint")
        with complaining_of(path):
            differing = [
                *_differing("network", self.network.config, about["config"]),
                *_differing("fit", self.settings, about["settings"]),
            ]
            if _prepared(self.network) != about.get("preparation"):
                differing.append(
                    "the table must be the one that the training began with: its columns, classes "
                    "or scales differ (network.preparation)"
                )
        if differing:
            raise ValueError(f"{visible(os.fspath(path))}: {'; '.join(differing)}")
        with complaining_of(path):
            rooms: dict[str, dict[str, Array]] = defaultdict(dict)
            for name, array in arrays.items():
                room, _, rest = name.partition(".")
                rooms[room][rest] = array
            parameters = rooms["network"]
            now = self.network.parameters
            shapes = [{name: a.shape for name, a in those.items()} for those in (now, parameters)]
            check_shapes(*shapes)
            history = History.from_dict({**rooms["history"], **about.get("met", {})})
            random = np.random.default_rng()
            random.bit_generator.state = about["random"]
            steps = about["optimizer"]["state"]
            kept: dict[str, dict[str, Any]] = {key: {"step": n} for key, n in steps.items()}
            for name, array in rooms["optimizer"].items():
                kind, _, key = name.partition(".")
                kept[key][kind] = array
            clip = about["optimizer"]["clip"]
            if clip is not None:
                clip = clip | {name: array.tolist() for name, array in rooms["clip"].items()}
            if self.cuts is not None:
                deepcopy(self.cuts).load_state_dict(about["cuts"])  # before anything changes
            self.optimizer.load_state_dict(about["optimizer"] | {"state": kept, "clip": clip})
            if self.cuts is not None:
                self.cuts.load_state_dict(about["cuts"])
        for name, array in self.network.parameters.items():
            array[...] = parameters[name]
        self.random, self.history = random, history


def _prepared(network: Network) -> object:
    """Return what was done to the table that is learnt from, as a file's header gives it back."""
    made = network.preparation
    return None if made is None else json.loads(json.dumps(made.packed()))


def _differing(owner: str, now: Mapping[str, object], then: Mapping[str, object]) -> Iterator[str]:
    """Say what is not as it was."""
    for name, value in now.items():
        if name not in START and value != then[name]:
            yield f"the {owner}'s {name} must be {shown(then[name])} as it was, not {shown(value)}"
