"""What the subcommands share: options, and the data, network and optimizer that they describe."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import NamedTuple, NoReturn, TypeVar

from vegrad import _core, clipping, datasets, optim
from vegrad.arrays.checks import Array
from vegrad.networks.mlp import MLP
from vegrad.theory.initializers import INITIALIZERS

T = TypeVar("T")


class Clip(NamedTuple):
    """A rule, the argument that the number after the colon is, and the number if there is none."""

    rule: Callable[..., clipping.Rule]
    argument: str
    default: float


CLIPS = {
    "value": Clip(clipping.Value, "limit", 1.0),
    "norm": Clip(clipping.Norm, "max_norm", 1.0),
    "global_norm": Clip(clipping.GlobalNorm, "max_norm", 1.0),
    "block_rms": Clip(clipping.BlockRMS, "max_rms", 1.0),
    "adaptive": Clip(clipping.Adaptive, "clipping", 0.01),
    "autoclip": Clip(clipping.AutoClip, "percentile", 10.0),
    "zclip": Clip(clipping.ZClip, "z_threshold", 2.5),
    "adagc": Clip(clipping.AdaGC, "ratio", 1.04),
    # Still measures, so that a gradient that is not finite is found.
    "none": Clip(clipping.GlobalNorm, "max_norm", inf),
}

# The optimizer and the learning rate if none is given.
OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], float]] = {
    "adamw": (optim.AdamW, 1e-3),
    "adam": (optim.Adam, 1e-3),
    "sgd": (optim.SGD, 0.05),
    "lion": (optim.Lion, 1e-4),
}

# From the learning rate and the number of all steps to the rate of a step.
SCHEDULES: dict[str, Callable[[float, int], optim.Rate]] = {
    "constant": lambda lr, steps: lr,
    "warmup": lambda lr, steps: optim.warmup(lr, steps // 10),
    "cosine": lambda lr, steps: optim.cosine(lr, steps, warmup=steps // 10),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that begins as all others."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        raise ValueError(message)


def data_options(parser: argparse.ArgumentParser, batch: str, default: int | None = None) -> None:
    """Which rows; `batch` says what --batch counts."""
    group = parser.add_argument_group("data")
    names = ", ".join(datasets.NAMES)
    group.add_argument("--data", default="digits", help=f"{names}, a .npz or a .csv file")
    group.add_argument("--target", metavar="COLUMN", help="the column of the .csv file to learn")
    group.add_argument("--batch", type=int, metavar="ROWS", default=default, help=batch)


def network_options(
    parser: argparse.ArgumentParser, *, depth: int, width: int, activation: str, init: str
) -> None:
    """The arguments of MLP, with these defaults."""
    group = parser.add_argument_group("network")
    add = group.add_argument
    add("--depth", type=int, default=depth, help=f"layers with weights ({depth})")
    add("--width", type=int, default=width, help=f"units of a hidden layer ({width})")
    add("--activation", default=activation, help=f"{', '.join(_core.ACTIVATIONS)} ({activation})")
    add("--init", default=init, help=f"{', '.join(INITIALIZERS)} ({init})")
    add("--sigma-w", type=float, help="of --init normal: weights N(0, sigma²/fan-in)")
    add("--sigma-b", type=float, help="of --init normal: biases N(0, sigma²)")
    add("--loss", help=f"{', '.join(_core.LOSSES)} (as the target wants)")
    add("--residual", action="store_true", help="skip connections")
    add("--norm", help=f"{', '.join(_core.NORMS)}, of the pre-activations")
    add("--dtype", default="float32", help="float32 or float64")
    add("--seed", type=int, default=0, help="of the weights and of every draw of rows (0)")


def optimizer_options(parser: argparse.ArgumentParser, clip: str = "global_norm:1") -> None:
    """The optimizer, its rate and its clip, which is `clip` if none is given."""
    add = parser.add_argument_group("optimizer").add_argument
    rates = ", ".join(f"{name} {lr:g}" for name, (_, lr) in OPTIMIZERS.items())
    clips = ", ".join(n if n == "none" else f"{n}:{c.default:g}" for n, c in CLIPS.items())
    add("--optimizer", default="adamw", help=f"{', '.join(OPTIMIZERS)} (adamw)")
    add("--lr", type=float, help=f"learning rate ({rates})")
    add("--momentum", type=float, help="of sgd (0.9)")
    add("--weight-decay", type=float, help="(the optimizer's own)")
    add("--schedule", default="constant", help=f"of the rate: {', '.join(SCHEDULES)} (constant)")
    add("--clip", default=clip, metavar="RULE[:NUMBER]", help=f"{clips} ({clip})")


def load_data(options: argparse.Namespace) -> datasets.Dataset:
    """The rows that the options name."""
    with spinner(f"reading {options.data}"):
        return datasets.load(options.data, options.target)


def build_task(options: argparse.Namespace, data: datasets.Dataset) -> tuple[Array, MLP]:
    """The target as the loss takes it, and the network that the options describe."""
    loss = options.loss or data.loss
    target = data.target(loss)
    return target, build_network(options, data, loss)


def build_network(options: argparse.Namespace, data: datasets.Dataset, loss: str) -> MLP:
    """The network that the options describe, as wide at both ends as the data are."""
    hidden = [positive("--width", options.width)] * (positive("--depth", options.depth) - 1)
    with spinner(f"building {options.depth} layers"):
        return MLP(
            [data.x.shape[1], *hidden, data.outputs(loss)],
            activation=options.activation,
            loss=loss,
            init=options.init,
            sigma_w=options.sigma_w,
            sigma_b=options.sigma_b,
            norm=options.norm,
            residual=options.residual,
            dtype=options.dtype,
            seed=options.seed,
        )


def build_optimizer(options: argparse.Namespace, steps: int) -> optim.Optimizer:
    """The optimizer that the options describe, for so many steps."""
    make, lr = one_of("--optimizer", OPTIMIZERS, options.optimizer)
    schedule = one_of("--schedule", SCHEDULES, options.schedule)
    more = {}
    if options.weight_decay is not None:
        more["weight_decay"] = options.weight_decay
    if options.optimizer == "sgd":
        more["momentum"] = 0.9 if options.momentum is None else options.momentum
    elif options.momentum is not None:
        raise ValueError(f"--momentum goes with --optimizer sgd, not with {options.optimizer}")
    rate = schedule(lr if options.lr is None else options.lr, steps)
    return make(rate, clip=_clip(options.clip), **more)


def _clip(text: str) -> clipping.Rule:
    name, colon, number = text.partition(":")
    rule, argument, value = one_of("--clip", CLIPS, name)
    if colon and name == "none":
        raise ValueError(f"--clip none takes no number, not {text!r}")
    try:
        value = float(number) if colon else value
    except ValueError as error:
        raise ValueError(f"--clip {name}: must be followed by a number, not {number!r}") from error
    try:
        return rule(**{argument: value})
    except ValueError as error:
        raise ValueError(f"--clip {text}: {error}") from error


def positive(option: str, value: int) -> int:
    """The value. ValueError if it is less than 1."""
    if value < 1:
        raise ValueError(f"{option} must be at least 1, not {value}")
    return value


def one_of(option: str, table: Mapping[str, T], name: str) -> T:
    """The row of this name. ValueError, with all names, if there is none."""
    if name not in table:
        raise ValueError(f"{option} must be one of {', '.join(table)}, not {name!r}")
    return table[name]


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """A spinner on stderr while something takes long, if that is a terminal."""
    try:
        console = importlib.import_module("rich.console").Console(stderr=True)
    except ImportError:
        console = None
    if console is None or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
