"""The data that the options name and the network that they describe: what a command works on."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, Loss, RecurrentInitialization, did_you_mean
from vegrad.arrays.shown import shown, visible
from vegrad.cli.guessing import guess_told, shares
from vegrad.cli.options import SEQUENCES, positive
from vegrad.cli.outputs import settle
from vegrad.cli.parser import not_one_of
from vegrad.cli.terminal import spinner
from vegrad.datasets import NAMES, TASKS, Dataset, Sequences, load, load_sequences
from vegrad.networks.mlp import MLP
from vegrad.networks.rnn import RNN
from vegrad.reports.values import count_of
from vegrad.theory.cells import GATES
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.recurrent_initializers import RECURRENT_INITIALIZERS

ROWS, STEPS = 4000, 60
"""Rows of a task that is drawn, and its T if none is given."""
DEEPEST = 10_000  # layers, with which a diagnosis takes a minute and gigabytes
TABLE = ("target", "columns", "drop", "fill", "sheet")
CHAIN = ("depth", "activation", "sigma_w", "sigma_b", "residual", "norm", *TABLE)
RECURRENT = ("layers", "forget_bias", "time_scale", "targets", "truncation", "memory")


@dataclass(frozen=True)
class Task:
    """Data, the target in the form that the loss takes, and a network that fits them."""

    data: Dataset
    target: Array
    network: MLP | RNN

    def rows(self, chosen: Array) -> tuple[Array, ...]:
        """Return x and target of the rows, and their lengths if these are unequal."""
        lengths = self.lengths(chosen).values()
        return self.data.x[chosen], self.target[chosen], *lengths

    def remembers(self, options: argparse.Namespace) -> dict[str, int]:
        """Return the argument `memory`, if the options give one."""
        return {} if options.memory is None else {"memory": positive("--memory", options.memory)}

    def lengths(self, chosen: Array) -> dict[str, Array]:
        """Return the argument `lengths` for the rows; none if all have as many steps."""
        if isinstance(self.data, Sequences) and self.data.lengths is not None:
            return {"lengths": self.data.lengths[chosen]}
        return {}


def settle_and_load(options: argparse.Namespace) -> Dataset:
    """Place and check the files to write, and load the data; what is wrong with both is one error.

    Raises:
        ValueError, OSError, ImportError: as `settle` and `load_data`.
    """
    try:
        settle(options)
    except ValueError as wrong:
        try:
            load_data(options)
        except ValueError as first:
            raise ValueError(f"{first}; and {wrong}") from first
        raise
    return load_data(options)


def load_data(options: argparse.Namespace) -> Dataset:
    """Load the data that the options name; with --cell, sequences.

    Raises:
        ValueError: options that do not go together; and as `vegrad.datasets.load`.
    """
    check_options(options)
    if options.cell is None:
        name = options.data or "digits"
        if name.partition(":")[0] in TASKS:
            raise ValueError(f"--data {name} is sequences: it goes with --cell ({_cells()})")
        _known(name, NAMES)
        with spinner(options, f"reading {name}"):
            return load(
                name,
                options.target,
                numbers=options.loss == "mse",
                drop=options.drop or (),
                columns=options.columns,
                fill=options.fill or "median",
                sheet=options.sheet,
            )
    name = options.data or SEQUENCES
    task, colon, steps = name.partition(":")
    if task not in TASKS:
        if not name.lower().endswith(".npz"):
            tasks, hint = ", ".join(TASKS), did_you_mean(task, TASKS)
            raise ValueError(
                f"--cell needs sequences: {tasks} or a .npz file, not --data {name}{hint}"
            )
        with spinner(options, f"reading {name}"):
            return load_sequences(name, options.targets, numbers=options.loss == "mse")
    if colon and not steps.isdecimal():
        raise ValueError(
            f"--data {task}: must be followed by a number of steps, not {shown(steps)}"
        )
    with spinner(options, f"drawing {task}"):
        data = TASKS[task](ROWS, int(steps) if colon else STEPS, seed=options.seed)
    if options.targets not in (None, data.targets):
        raise ValueError(
            f"--targets of {task} must be {data.targets}, as it is drawn, not {options.targets}"
        )
    return data


def _known(name: str, names: Collection[str]) -> None:
    """Refuse a name of data that is none, and no file's, if it is near to one."""
    hint = did_you_mean(name, names)
    if name not in names and not Path(name).suffix and hint:
        raise ValueError(f"--data must be {', '.join(names)} or a file, not {shown(name)}{hint}")


def check_options(options: argparse.Namespace) -> None:
    """Refuse options of a chain of layers with --cell, and those of recurrent ones without."""
    if options.cell is not None:
        for name in CHAIN:
            if getattr(options, name, None) not in (None, False):
                raise ValueError(f"{_typed(name)} goes with a network of layers, not with --cell")
    else:
        for name in RECURRENT:
            if getattr(options, name, None) is not None:
                raise ValueError(f"{_typed(name)} goes with --cell ({_cells()})")
        _check_sigmas(options)
    _check_init(options)


def _check_init(options: argparse.Namespace) -> None:
    own: Collection[str] = RECURRENT_INITIALIZERS
    other: Collection[str] = INITIALIZERS
    if options.cell is None:
        own, other = other, own
    if options.init in other and options.init not in own:
        goes = f"goes with --cell ({_cells()})" if options.cell is None else "goes without --cell"
        raise ValueError(f"--init {options.init} {goes}: it must be one of {', '.join(own)}")
    if options.init is not None and options.init not in own:
        raise ValueError(not_one_of("--init", own, options.init))


def _check_sigmas(options: argparse.Namespace) -> None:
    init = options.init or options.chain["init"]
    for name, inits in (("sigma_w", ("normal",)), ("sigma_b", ("normal", "critical"))):
        if getattr(options, name) is not None and init not in inits:
            goes = " or ".join(f"--init {one}" for one in inits)
            raise ValueError(f"{_typed(name)} goes with {goes}, not with --init {init}")
    if init == "normal" and options.sigma_w is None:
        raise ValueError("--init normal needs --sigma-w, the size of the weights")


def build_task(options: argparse.Namespace, data: Dataset) -> Task:
    """Return the data with its target in the form that the loss takes, and the network."""
    loss = options.loss or data.loss
    return Task(data, data.target(loss), build_network(options, data, loss))


def build_network(options: argparse.Namespace, data: Dataset, loss: Loss) -> MLP | RNN:
    """Build the network of the options, with inputs and outputs that fit the data."""
    width = positive("--width", options.width)
    if isinstance(data, Sequences):
        return _recurrent(options, data, loss, width)
    chosen = {
        k: v if getattr(options, k) is None else getattr(options, k)
        for k, v in options.chain.items()
    }
    depth = positive("--depth", chosen.pop("depth"))
    if depth > DEEPEST:
        raise ValueError(f"--depth must be at most {DEEPEST}, not {depth}: a pass keeps each layer")
    hidden = [width] * (depth - 1)
    with spinner(options, f"building {len(hidden) + 1} layers"):
        network = MLP(
            [data.x.shape[1], *hidden, data.outputs(loss)],
            loss=loss,
            sigma_w=options.sigma_w,
            sigma_b=options.sigma_b,
            norm=options.norm,
            residual=options.residual,
            dtype=options.dtype,
            seed=options.seed,
            **chosen,
        )
        network.preparation = data.preparation
        return network


def _recurrent(options: argparse.Namespace, data: Sequences, loss: Loss, width: int) -> RNN:
    init: RecurrentInitialization = options.init or "default"
    more: dict[str, float] = {}
    if init == "chrono":
        more["time_scale"] = options.time_scale or data.x.shape[1]
    elif options.time_scale is not None:
        raise ValueError(f"--time-scale goes with --init chrono, not with --init {init}")
    if init == "critical":
        more["input_variance"] = float(np.nanmean(data.x**2))
    return RNN(
        data.x.shape[2],
        width,
        data.outputs(loss),
        cell=options.cell,
        layers=positive("--layers", 1 if options.layers is None else options.layers),
        targets=data.targets,
        init=init,
        forget_bias=options.forget_bias,
        loss=loss,
        dtype=options.dtype,
        seed=options.seed,
        **more,
    )


def as_truncation(text: str | None) -> int | tuple[int, int] | None:
    """Return the number of --truncation K, or both of K1,K2."""
    if text is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(
            f"--truncation must be K or K1,K2, whole numbers from 1 on, not {shown(text)}"
        )
    if len(numbers) == 1:
        return int(numbers[0])
    every, back = int(numbers[0]), int(numbers[1])
    if back < every:
        raise ValueError(f"--truncation K1,K2: K2 must be at least K1, {every}, not {back}")
    return every, back


def described(data: Dataset, rows: int) -> str:
    """Describe the data in a line: its name, rows, and what a row has."""
    if not isinstance(data, Sequences):
        columns = count_of(data.x.shape[1], "column")
        if data.flattened:
            columns = f"{' × '.join(map(str, data.flattened))} = {columns}"
        return f"{visible(data.name)}: {count_of(rows, 'row')} of {columns}"
    steps = str(data.x.shape[1])
    if data.lengths is not None and (least := int(data.lengths.min())) < data.x.shape[1]:
        steps = f"{least} to {steps}"
    sequences, inputs = count_of(rows, "sequence"), count_of(data.x.shape[2], "input")
    return f"{visible(data.name)}: {sequences} of {steps} step{'s' * (steps != '1')}, {inputs}"


def target_told(data: Dataset, loss: Loss | None) -> list[str]:
    """Say in lines what was done to a table, how x and the target were taken, and of guessing.

    Of the target it is said where another way would be as likely.
    """
    said, count, loss = list(data.told), len(data.labels), loss or data.loss
    if len(data.flattened) == 2:
        said.append(f"x: flattened, as of images; sequences go with --cell ({_cells()})")
    if count and (loss == "mse" or (loss == "binary_cross_entropy" and count > 2)):
        said.append(f"target: {count} classes, an output for each that is to be 1 or 0 ({loss})")
    elif data.whole and data.name not in NAMES:
        said.append(f"target: {count} classes (whole numbers; --loss mse for a regression)")
    return [*said, *guess_told(data, loss)]


def counted(data: Dataset, rows: int) -> dict[str, object]:
    """Return the same for JSON, and the shares of the classes."""
    told = {"told": list(data.told)} if data.told else {}
    size = {"columns": data.x.shape[-1], **told, **shared(data)}
    if isinstance(data, Sequences):
        return {"name": data.name, "rows": rows, "steps": data.x.shape[1], **size}
    return {"name": data.name, "rows": rows, **size}


def shared(data: Dataset) -> dict[str, object]:
    """Return the shares of the classes for JSON; nothing of numbers."""
    return {"classes": shares(data)} if data.classes else {}


def check_finite(task: Task) -> None:
    """Refuse values that are not finite, and say where the first one stands."""
    data = task.data
    for name, values in (("x", data.x), ("the target", task.target)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, *rest = (int(n) for n in bad[0])
            place = data.place(row, *rest) if name == "x" else data.target_place(row)
            value = values[tuple(bad[0])]
            raise ValueError(f"{data.name}: values must be finite, not {value} as in {place}")


def split(rows: int, share: float, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw the rows to learn and the rows to hold out, each in the order of the data."""
    if not 0 <= share < 1:
        raise ValueError(f"--validation must be at least 0 and under 1, not {share}")
    held = max(1, round(share * rows)) if share else 0
    if held >= rows:
        raise ValueError(f"--validation {share} leaves none of {rows} rows to learn")
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[held:]), np.sort(order[:held])


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _cells() -> str:
    return ", ".join(GATES)
