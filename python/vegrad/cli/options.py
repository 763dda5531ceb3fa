"""Options that subcommands share, and the optimizer that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import NamedTuple, TypeVar

from vegrad import _core, clipping, datasets, optim
from vegrad.arrays.shown import shown
from vegrad.cli.outputs import add_file_options
from vegrad.cli.parser import not_one_of
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
    "skip_spike": Clip(clipping.SkipSpike, "sigmas", 6.0),
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


def add_data_options(
    parser: argparse.ArgumentParser, batch: str, default: int | None = None
) -> None:
    """Add the options that choose the data; `batch` says what --batch counts."""
    add = parser.add_argument_group("data").add_argument
    names, tasks = ", ".join(datasets.NAMES), " or ".join(f"{name}[:T]" for name in datasets.TASKS)
    add(
        "--data",
        metavar="NAME|FILE",
        help=f"{names}, a .npz file or a table: .csv, .tsv, .parquet or .xlsx (default digits); "
        f"with --cell {tasks}, drawn, or a .npz file with x (B, T, I), y and, if rows differ in "
        f"length, lengths (default {SEQUENCES})",
    )
    add("--target", metavar="COLUMN", help="column of the table to learn")
    add("--sheet", metavar="NAME", help="sheet of a .xlsx file (default: the first)")
    for name, told in (
        ("columns", "columns of the table to take (default: all that look useful)"),
        ("drop", "columns of the table to leave out"),
    ):
        add(f"--{name}", nargs="+", action="extend", metavar="COLUMN", help=told)
    add(
        "--fill",
        choices=datasets.FILLS,
        metavar="WAY",
        help=f"what stands for a missing number: {', '.join(datasets.FILLS)} (default median)",
    )
    add("--batch", type=int, metavar="ROWS", default=default, help=batch)


class Usual(NamedTuple):
    """The network without --cell that is taken where options say nothing."""

    depth: int
    width: int
    activation: str
    init: str

    def __str__(self) -> str:
        return f"{self.depth} layers of {self.width}, {self.activation}, {self.init}"


JUDGED = Usual(10, 64, "tanh", "glorot_uniform")
TRAINED = Usual(3, 128, "relu", "he_normal")


def add_network_options(parser: argparse.ArgumentParser, usual: Usual = JUDGED) -> None:
    """Add the options that describe a network, with the defaults of one without --cell."""
    depth, width, activation, init = usual
    parser.set_defaults(chain={"depth": depth, "activation": activation, "init": init}, cell=None)
    defaults = f"By default train takes {TRAINED}; diagnose, cure and descent {JUDGED}."
    add = parser.add_argument_group("network", defaults).add_argument
    inits = {**INITIALIZERS, **RECURRENT_INITIALIZERS}
    recurrent = ", ".join(RECURRENT_INITIALIZERS)
    add("--depth", type=int, metavar="N", help=f"layers with weights (default {depth})")
    add(
        "--width",
        type=int,
        metavar="N",
        default=width,
        help="units of a hidden layer (default %(default)s)",
    )
    add("--hidden", dest="width", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_name(add, "--activation", _core.ACTIVATIONS, f"(default {activation})")
    add(
        "--init",
        metavar="NAME",
        choices=inits,
        help=f"{', '.join(INITIALIZERS)} (default {init}); with --cell {recurrent} (default "
        "default)",
    )
    add("--sigma-w", type=float, metavar="X", help="with --init normal: weights N(0, X²/fan-in)")
    add(
        "--sigma-b", type=float, metavar="X", help="with --init normal: biases N(0, X²) (default 0)"
    )
    add_name(add, "--loss", _core.LOSSES, "(default: the one that suits the target)")
    add("--residual", action="store_true", help="skip connections (default: none)")
    add_name(add, "--norm", _core.NORMS, "of the pre-activations (default: none)")
    add_name(add, "--dtype", ("float32", "float64"), "(default float32)", default="float32")
    seed = "seed of the weights and of every draw of rows (default 0)"
    add("--seed", type=int, metavar="N", default=0, help=seed)


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a recurrent network."""
    add = parser.add_argument_group("recurrent network, in place of layers").add_argument
    add_name(add, "--cell", GATES, "recurrent layers of --width units")
    add("--layers", type=int, metavar="N", help="recurrent layers (default 1)")
    bias = "bias of the forget gate (lstm) or update gate (gru) (default: as --init has it)"
    add("--forget-bias", type=float, metavar="X", help=bias)
    longest = "with --init chrono: the longest, in steps (default: the steps of x)"
    add("--time-scale", type=float, metavar="X", help=longest)
    add_name(add, "--targets", datasets.TARGETS, "one a row, or one a step (default: as y is)")


def add_memory_option(parser: argparse.ArgumentParser) -> None:
    """Add --memory, which goes with --cell."""
    needed = "steps back lies what the task needs (default: as the targets tell)"
    parser.add_argument("--memory", type=int, metavar="K", help=f"with --cell: so many {needed}")


def add_optimizer_options(
    parser: argparse.ArgumentParser, clip: str = "global_norm:1", optimizer: str = "adamw"
) -> None:
    """Add the options that describe an optimizer, with these defaults."""
    add = parser.add_argument_group("optimizer").add_argument
    rates = ", ".join(f"{name} {lr:g}" for name, (_, lr) in OPTIMIZERS.items())
    clips = ", ".join(n if n == "none" else f"{n}:{c.default:g}" for n, c in CLIPS.items())
    add_name(add, "--optimizer", OPTIMIZERS, "(default %(default)s)", default=optimizer)
    add("--lr", type=float, metavar="X", help=f"learning rate (default: {rates})")
    add("--momentum", type=float, metavar="X", help="momentum of sgd (default 0.9)")
    add("--weight-decay", type=float, metavar="X", help="(default: the optimizer's own)")
    what = "how the rate changes (default %(default)s)"
    add_name(add, "--schedule", SCHEDULES, what, default="constant")
    rule = f"one of {clips} (default %(default)s)"
    add("--clip", default=clip, metavar="RULE[:NUMBER]", help=rule)


def add_truncation_option(group: argparse._ActionsContainer) -> None:
    """Add --truncation, which goes with --cell."""
    group.add_argument(
        "--truncation",
        metavar="K[,K2]",
        help="go back K steps only, in chunks; or, with K2, every K steps go back K2 (default: "
        "all steps)",
    )


def add_name(
    add: Callable[..., object],
    option: str,
    names: Collection[str],
    what: str,
    default: str | None = None,
) -> None:
    """Add an option that takes one of these names, which stand in its help."""
    words = f"{', '.join(names)}{' ' if what.startswith('(') else ': '}{what}"
    add(option, metavar="NAME", choices=list(names), default=default, help=words)


def add_common_options(
    group: argparse._ActionsContainer,
    *,
    quiet: str = "no progress",
    verbose: str = "of an error, show where it was raised",
    files: bool = True,
) -> None:
    """Add the options of the output that every command has."""
    add = group.add_argument
    add("--json", action="store_true", help="print JSON instead of text")
    add("-q", "--quiet", action="store_true", help=quiet)
    add("-v", "--verbose", action="store_true", help=verbose)
    if files:
        add_file_options(group)


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


def written_schedule(options: argparse.Namespace, steps: int) -> str:
    """Write the call that makes the schedule of the options, which is not constant."""
    _, usual = OPTIMIZERS[options.optimizer]
    lr, few = usual if options.lr is None else options.lr, steps // 10
    if options.schedule == "warmup":
        return f"vegrad.optim.warmup({lr!r}, {few})"
    return f"vegrad.optim.cosine({lr!r}, {steps}, warmup={few})"


def _clip(text: str) -> clipping.Rule:
    name, colon, number = text.partition(":")
    rule, argument, value = one_of("--clip", CLIPS, name)
    if colon and name == "none":
        raise ValueError(f"--clip none takes no number, not {shown(text)}")
    try:
        value = float(number) if colon else value
    except ValueError as error:
        raise ValueError(
            f"--clip {name}: must be followed by a number, not {shown(number)}"
        ) from error
    try:
        return rule(**{argument: value})
    except ValueError as error:
        raise ValueError(f"--clip {text}: {error}") from error


def written_clip(text: str) -> str:
    """Return the value of --clip with its number, also where that is the default."""
    name, colon, _ = text.partition(":")
    return text if colon or name == "none" else f"{name}:{CLIPS[name].default:g}"


def positive(option: str, value: int) -> int:
    """Return the value, which must be at least 1."""
    if value < 1:
        raise ValueError(f"{option} must be at least 1, not {value}")
    return value


def one_of(option: str, table: Mapping[str, T], name: str) -> T:
    """Return the entry of this name; the ValueError if there is none lists all names."""
    if name not in table:
        raise ValueError(not_one_of(option, table, name))
    return table[name]
