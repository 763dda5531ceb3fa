"""Numbers by name, as other programs record them, and the columns of a run that they are."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping
from math import inf, isfinite, nan

import numpy as np

from vegrad.diagnosis.noted import Json
from vegrad.runs.gathered import FIELDS, MOST, TABLE
from vegrad.runs.names import clean
from vegrad.runs.run import Run

# The names of each column, in lower case and with / for ., the first that is there first.
KNOWN = {
    "loss": (
        "loss",
        "train_loss_step",
        "train/loss_step",
        "train/loss",
        "train_loss",
        "loss/train",
        "training/loss",
        "training_loss",
        "loss_train",
        "loss_step",
        "vegrad/loss",
        "train/loss_epoch",
        "train_loss_epoch",
        "loss_epoch",
        "epoch_loss",
        "total_loss",
        "train/total_loss",
        "train_total_loss",
        "loss/total",
        "loss_total",
        "mean_loss",
        "avg_loss",
        "average_loss",
        "running_loss",
        "batch_loss",
    ),
    "gradient_norm": (
        "grad_norm",
        "gradient_norm",
        "train/grad_norm",
        "train_grad_norm",
        "vegrad/gradient_norm",
        "global_grad_norm",
        "total_grad_norm",
        "grad_norm/total",
        "grad_2.0_norm_total",
        "grad_2_norm_total",
        "total_norm",
        "gradients/global_norm",
        "train/global_gradient_norm",
    ),
    "clipped_norm": ("clipped_norm", "grad_norm_clipped", "clipped_grad_norm"),
    "learning_rate": ("learning_rate", "train/learning_rate", "lr", "train/lr", "train_lr"),
    "update_ratio": ("update_ratio", "vegrad/update_ratio"),
    "validation_loss": (
        "eval_loss",
        "eval/loss",
        "val_loss",
        "val/loss",
        "valid_loss",
        "valid/loss",
        "validation_loss",
        "validation/loss",
        "loss/val",
        "loss/valid",
        "loss/validation",
        "val/loss_epoch",
        "val_loss_epoch",
    ),
}
RANKS = {name: (field, rank) for field, names in KNOWN.items() for rank, name in enumerate(names)}
RATE = re.compile(r"lr-\w+(/pg1)?(-momentum)?$")  # of Lightning's monitor of learning rates
SIZES = re.compile(r"(vegrad/)?(grad(ient)?_(2(\.0)?_)?norms?)/(?!total$)(?P<name>.+)$")
"""Norms of the gradients of single parameters."""
LOSS = re.compile(r"(^|[/_.])loss(_step|_epoch|/step|/epoch)?$")
OTHER = re.compile(
    r"(^|[/_.])(val|valid|validation|eval|evaluation|dev|test|g|d|gen|generator|disc|discriminator|"
    r"adv|adversarial|policy|value|actor|critic|q|surrogate|entropy|reg|regularization|aux)([/_.]|$)"
)
"""Marks of losses that are not what a training lowers as a whole."""
REWARDED = re.compile(
    r"(^|[/_])(rewards?|rew|approx_kl|kl_coef|advantages?|returns?|episodes?|policy_loss|"
    r"value_loss|actor_loss|critic_loss)([/_]|$)"
)
"""Marks of a training by reward, whose loss says nothing of its success."""
TAGS, SIZED = 20_000, 5000  # names of any kind, and of parameters with norms
UNKNOWN = 50  # names that are shown
POINTS = 4096  # of each parameter's norm


class _Series:
    """The steps and values of one name."""

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.seen = most, 1, 0
        self.steps, self.values = array("d"), array("d")
        self.nonfinite = inf

    def add(self, step: float, value: float) -> None:
        """Append a value; what stands at this step and after it is superseded."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop(), self.values.pop()
        if not isfinite(value):
            self.nonfinite = step if self.nonfinite >= step else self.nonfinite
        elif self.nonfinite >= step:
            self.nonfinite = inf
        self.seen += 1
        if (self.seen - 1) % self.stride and isfinite(value):
            return
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) >= 2 * self.most:
            self.stride *= 2
            self.steps, self.values = self.steps[::2], self.values[::2]


class Tags:
    """Numbers by name and step that are being read.

    Args:
        most: values of each name that are kept at most: of more every second one, and so on.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._series: dict[str, _Series] = {}
        self._sizes: dict[str, _Series] = {}
        self._unknown: dict[str, None] = {}

    def add(self, name: str, step: float, value: float) -> None:
        """Take in a number."""
        if not 0 <= step < 2**53:
            return
        series = self._series.get(name) or self._sizes.get(name)
        if series is None:
            series = self._new(name)
            if series is None:
                return
        series.add(step, value)

    def _new(self, name: str) -> _Series | None:
        """Return the series of a name that is new; None if it is of no column."""
        if name in self._unknown or len(self._unknown) + len(self._series) >= TAGS:
            return None
        if _known(name) is not None or _own_loss(name):
            return self._series.setdefault(name, _Series(self.most))
        if SIZES.match(name) and len(self._sizes) < SIZED:
            return self._sizes.setdefault(name, _Series(POINTS))
        self._unknown[name] = None
        return None

    def run(self, source: str, about: Mapping[str, object] | None = None) -> Run:
        """Return the run of the names that are known.

        Raises:
            ValueError: none is; the message lists those that there are.
        """
        chosen: dict[str, tuple[int, str]] = {}
        own, unknown = dict[str, str](), list(self._unknown)
        for name in self._series:
            if (found := _known(name)) is None:
                unknown.append(name)
                own.setdefault(_own_loss(name), name)
                continue
            field, rank = found
            chosen[field] = min(chosen.get(field, (rank, name)), (rank, name))
        if "loss" not in chosen and len(own) == 1:
            chosen["loss"] = (0, next(iter(own.values())))
            unknown.remove(chosen["loss"][1])
        if not chosen.keys() & {"loss", "gradient_norm", "validation_loss"}:
            there = ", ".join(map(clean, unknown[:UNKNOWN])) or "nothing"
            raise ValueError(
                f"it has no loss and no norm of gradients by a known name, but {there}"
            )
        columns = {field: self._series[name] for field, (_, name) in chosen.items()}
        step = np.unique(np.concatenate([np.frombuffer(s.steps) for s in columns.values()]))
        every = max(-(-len(step) // (2 * self.most)), 1)
        step = step[::every]
        modules, sizes = self._table(step)
        if len(step) * len(modules) > TABLE:
            apart = -(-len(step) * len(modules) // TABLE)
            step, sizes = step[::apart], sizes[::apart]
        values: dict[str, Json] = {f: _placed(columns.get(f), step) for f in FIELDS}
        return Run(
            step=step,
            **values,
            modules=modules,
            gradient_log2=sizes,
            nonfinite={f: s.nonfinite for f, s in columns.items() if s.nonfinite < inf},
            about={
                "source": source,
                "names": {field: clean(name) for field, (_, name) in chosen.items()},
                "unknown": [clean(name) for name in unknown[:UNKNOWN]],
                "rewarded": any(REWARDED.search(name.lower()) for name in unknown),
                **(about or {}),
            },
        )

    def _table(self, step: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the names of parameters whose norms are there, and log2 of them, (S, M)."""
        names = []
        for name in self._sizes:
            if (found := SIZES.match(name)) is not None:
                names.append(clean(found["name"]))
        if len(step) * len(names) > 4 * TABLE:
            return (), np.empty((len(step), 0))
        columns = [_placed(series, step) for series in self._sizes.values()]
        table = np.array(columns).reshape(len(names), len(step)).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return tuple(names), np.log2(table)


def _known(name: str) -> tuple[str, int] | None:
    """Return the column that a name means, and how far it stands behind others for the same."""
    found = RANKS.get(name.lower().replace(" ", "_"))
    if found is None and RATE.match(name) and not name.endswith("momentum"):
        return "learning_rate", len(KNOWN["learning_rate"])
    return found


def _own_loss(name: str) -> str:
    """Return the name of a loss without its ending, if it can be that of the training, else ""."""
    lower = name.lower()
    found = LOSS.search(lower)
    return "" if found is None or OTHER.search(lower) else lower[: found.start()] or "loss"


def _placed(series: _Series | None, step: np.ndarray) -> np.ndarray:
    """Return the values at these steps, each at the last of them that is not behind it."""
    found = np.full(len(step), nan)
    if series is not None and len(series.steps) and len(step):
        places = np.searchsorted(step, np.frombuffer(series.steps), "right") - 1
        found[np.maximum(places, 0)] = np.frombuffer(series.values)
    return found


def number(value: object) -> float | None:
    """Return a number as other programs write it; None of what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def all_of(pairs: Iterable[tuple[str, float, float]], most: int = MOST) -> Tags:
    """Take in names, steps and values."""
    tags = Tags(most)
    for name, step, value in pairs:
        tags.add(name, step, value)
    return tags
