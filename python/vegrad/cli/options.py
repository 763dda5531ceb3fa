"""Options that subcommands share, and the optimizer that they describe."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import NamedTuple, NoReturn, TypeVar

from vegrad import _core, clipping, datasets, optim
from vegrad.theory.cells import GATES
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.recurrent_initializers import RECURRENT_INITIALIZERS

T = TypeVar("T")


SEQUENCES = "temporal_order"  # the data of a recurrent network, if none is named


class Clip(NamedTuple):
    """A rule of --clip, the argument that the number after the colon gives, and its default."""

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
    # A rule that only measures, so that a gradient that is not finite is still found.
    "none": Clip(clipping.GlobalNorm, "max_norm", inf),
}

# Each optimizer and its learning rate if none is given.
OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], float]] = {
    "adamw": (optim.AdamW, 1e-3),
    "adam": (optim.Adam, 1e-3),
    "sgd": (optim.SGD, 0.05),
    "lion": (optim.Lion, 1e-4),
}

# Functions of the learning rate and the number of all steps, which give the rate of each step.
SCHEDULES: dict[str, Callable[[float, int], optim.Rate]] = {
    "constant": lambda lr, steps: lr,
    "warmup": lambda lr, steps: optim.warmup(lr, steps // 10),
    "cosine": lambda lr, steps: optim.cosine(lr, steps, warmup=steps // 10),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, so that they are printed like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError with the message."""
        raise ValueError(message)


def add_data_options(
    parser: argparse.ArgumentParser, batch: str, default: int | None = None
) -> None:
    """Add the options that choose the data; `batch` says what --batch counts."""
    group = parser.add_argument_group("data")
    names, tasks = ", ".join(datasets.NAMES), " or ".join(f"{name}[:T]" for name in datasets.TASKS)
    group.add_argument(
        "--data",
        help=f"{names}, a .npz or a .csv file (digits); with --cell {tasks}, drawn, or a "
        f".npz file with x (B, T, I), y and, if rows differ in length, lengths ({SEQUENCES})",
    )
    group.add_argument("--target", metavar="COLUMN", help="the column of the .csv file to learn")
    group.add_argument("--batch", type=int, metavar="ROWS", default=default, help=batch)


def add_network_options(
    parser: argparse.ArgumentParser, *, depth: int, width: int, activation: str, init: str
) -> None:
    """Add the options that describe a network, with these defaults of one without --cell."""
    parser.set_defaults(chain={"depth": depth, "activation": activation, "init": init}, cell=None)
    add = parser.add_argument_group("network").add_argument
    add("--depth", type=int, help=f"layers with weights ({depth})")
    add("--width", type=int, default=width, help=f"units of a hidden layer ({width})")
    add("--activation", help=f"{', '.join(_core.ACTIVATIONS)} ({activation})")
    recurrent = ", ".join(RECURRENT_INITIALIZERS)
    add("--init", help=f"{', '.join(INITIALIZERS)} ({init}); with --cell {recurrent} (default)")
    add("--sigma-w", type=float, help="with --init normal: weights N(0, sigma²/fan-in)")
    add("--sigma-b", type=float, help="with --init normal: biases N(0, sigma²)")
    add("--loss", help=f"{', '.join(_core.LOSSES)} (the one that suits the target)")
    add("--residual", action="store_true", help="skip connections")
    add("--norm", help=f"{', '.join(_core.NORMS)}, of the pre-activations")
    add("--dtype", default="float32", help="float32 or float64")
    add("--seed", type=int, default=0, help="seed of the weights and of every draw of rows (0)")


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a recurrent network."""
    add = parser.add_argument_group("recurrent network, in place of layers").add_argument
    add("--cell", help=f"{', '.join(GATES)}: recurrent layers of --width units")
    add("--layers", type=int, help="recurrent layers (1)")
    add("--forget-bias", type=float, help="bias of the forget gate (lstm) or update gate (gru)")
    add("--time-scale", type=float, help="with --init chrono: the longest, in steps (those of x)")
    add("--targets", choices=datasets.TARGETS, help="one a row, or one a step (as y is shaped)")


def add_optimizer_options(parser: argparse.ArgumentParser, clip: str = "global_norm:1") -> None:
    """Add the options that describe an optimizer; `clip` is the default of --clip."""
    add = parser.add_argument_group("optimizer").add_argument
    rates = ", ".join(f"{name} {lr:g}" for name, (_, lr) in OPTIMIZERS.items())
    clips = ", ".join(n if n == "none" else f"{n}:{c.default:g}" for n, c in CLIPS.items())
    add("--optimizer", default="adamw", help=f"{', '.join(OPTIMIZERS)} (adamw)")
    add("--lr", type=float, help=f"learning rate ({rates})")
    add("--momentum", type=float, help="momentum of sgd (0.9)")
    add("--weight-decay", type=float, help="weight decay (the optimizer's own)")
    add(
        "--schedule",
        default="constant",
        help=f"how the rate changes: {', '.join(SCHEDULES)} (constant)",
    )
    add("--clip", default=clip, metavar="RULE[:NUMBER]", help=f"{clips} ({clip})")


def add_truncation_option(group: argparse._ActionsContainer) -> None:
    """Add --truncation, which goes with --cell."""
    group.add_argument(
        "--truncation",
        metavar="K[,K2]",
        help="go back K steps only, in chunks; or, with K2, every K steps go back K2",
    )


def add_json_option(group: argparse._ActionsContainer) -> None:
    """Add --json to the options of the output."""
    group.add_argument("--json", action="store_true", help="print JSON instead of text")


def print_json(content: Mapping[str, object]) -> None:
    """Print JSON for programs, with the version of vegrad."""
    content = {**content, "version": _core.__version__}
    print(json.dumps(content, allow_nan=False, ensure_ascii=False, indent=2))


def build_optimizer(options: argparse.Namespace, steps: int) -> optim.Optimizer:
    """Build the optimizer of the options, with a schedule for this number of steps."""
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
    """Return the value, which must be at least 1."""
    if value < 1:
        raise ValueError(f"{option} must be at least 1, not {value}")
    return value


def one_of(option: str, table: Mapping[str, T], name: str) -> T:
    """Return the entry of this name; the ValueError if there is none lists all names."""
    if name not in table:
        raise ValueError(f"{option} must be one of {', '.join(table)}, not {name!r}")
    return table[name]


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """Show a spinner on stderr while something takes long, if stderr is a terminal."""
    try:
        console = importlib.import_module("rich.console").Console(stderr=True)
    except ImportError:
        console = None
    if console is None or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
