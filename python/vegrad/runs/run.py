"""The record of a training, step by step, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from vegrad.arrays.checks import FloatArray, refuse_masked
from vegrad.diagnosis.history import History
from vegrad.diagnosis.noted import Noted
from vegrad.reports.shown_run import ShownSpike
from vegrad.reports.values import count_of
from vegrad.runs.moved import Moved, first_moved
from vegrad.runs.names import clean
from vegrad.runs.spikes import Spike
from vegrad.runs.thin import MOST, kept_places

COLUMNS = (
    "step",
    "loss",
    "gradient_norm",
    "clipped_norm",
    "learning_rate",
    "update_ratio",
    "validation_loss",
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A training as arrays, an entry for each of S steps that were recorded, the oldest first.

    A number that was not recorded is nan; so is one of a step of which it was not recorded, as a
    validation loss of most. Sizes of gradients are logarithms, which float64 holds where the sizes
    themselves would be 0 or inf; -inf is a gradient of exactly 0.
    """

    step: FloatArray
    """Numbers of the steps, (S,), rising."""
    loss: FloatArray
    """Loss of each step's batch, (S,)."""
    gradient_norm: FloatArray
    """Joint norm of all gradients before any clip, (S,)."""
    clipped_norm: FloatArray
    """The same after the clip, as the step used them, (S,)."""
    learning_rate: FloatArray
    """(S,)."""
    update_ratio: FloatArray
    """Size of the update beside that of the weights, of the median matrix, (S,)."""
    validation_loss: FloatArray
    """(S,)."""
    modules: tuple[str, ...] = ()
    """Names of M modules or layers with weights, from the input to the output."""
    gradient_log2: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    """log2 of the norm of the gradient of each module's weights, (S, M)."""
    floor_log2: float = -inf
    """log2 of the smallest normal number of the gradients' dtype."""
    noted: tuple[Noted, ...] = ()
    """Findings, each with the step at which it came up, the first one first."""
    spikes: tuple[Spike, ...] = ()
    """Spikes of the loss or the gradient, each with the steps around it."""
    nonfinite: Mapping[str, float] = field(default_factory=dict)
    """First step at which a number that was recorded was NaN or infinite, by its column's name: in
    a column nan alone may also be a number that was not recorded."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What is known beside: "name", "model", "source" (the file or program that recorded it), …"""

    def __post_init__(self) -> None:
        for name in (*COLUMNS, "gradient_log2"):
            refuse_masked(getattr(self, name), name)
        object.__setattr__(self, "modules", tuple(map(clean, self.modules)))

    def __repr__(self) -> str:
        name, noted = clean(self.about.get("name") or ""), len(self.noted)
        loss = self.loss[~np.isnan(self.loss)]
        way = f": loss {loss[0]:.4g} → {self.last('loss')}" if len(loss) else ""
        found = f", {count_of(noted, 'finding')}" if noted else ""
        return f"<Run{f' {name}' if name else ''} of {count_of(self.steps, 'step')}{way}{found}>"

    @property
    def steps(self) -> int:
        """The number of steps that were recorded."""
        return len(self.step)

    def moved(self, spike: ShownSpike) -> Moved | None:
        """Return the module whose gradient left its usual size first, as a spike came, if any."""
        steps = [one.step for one in spike.window]
        near = (self.step >= min(steps, default=0)) & (self.step <= spike.step)
        return first_moved(self.step[near], self.gradient_log2[near], self.modules, spike.step)

    def thinned(self, most: int = MOST) -> Run:
        """Return the run with about as many steps as `most`, findings' and spikes' among them."""
        marked = [one.step for one in self.noted]
        marked += [step.step for one in self.spikes for step in one.window]
        places = kept_places(self.step, marked, most)
        if len(places) == self.steps:
            return self
        columns = {name: getattr(self, name)[places] for name in (*COLUMNS, "gradient_log2")}
        return replace(self, **columns)

    def last(self, column: str) -> str:
        """Return the last number of a column in words: "" of none, "NaN" if it was not finite."""
        values: FloatArray = getattr(self, column)
        known = np.flatnonzero(~np.isnan(values))
        lost = self.nonfinite.get(column, np.inf)
        if lost < np.inf and not (known.size and self.step[known[-1]] >= lost):
            return "NaN"
        return f"{values[known[-1]]:.4g}" if known.size else ""

    def with_about(self, **about: object) -> Run:
        """Return the run with more that is known of it."""
        return replace(self, about={**self.about, **about})

    @classmethod
    def of_history(cls, history: History, **about: object) -> Run:
        """Return the run that `fit` has recorded; gradients by layer are those of epochs' ends."""
        steps, layers = history.steps, history.gradient_log2
        ends = (np.cumsum(history.epoch_steps) - 1).astype(int)
        count = layers.shape[1] if layers.ndim == 2 else 0
        sizes, validation = np.full((steps, count), np.nan), np.full(steps, np.nan)
        if count:
            sizes[ends], validation[ends] = layers, history.validation_loss
        norm: FloatArray = history.gradient_norm
        with np.errstate(over="ignore", invalid="ignore"):  # a file may have any numbers
            clipped = norm * history.coefficient
        return cls(
            step=np.arange(steps, dtype=np.float64),
            loss=history.loss,
            gradient_norm=norm,
            clipped_norm=clipped,
            learning_rate=history.learning_rate,
            update_ratio=np.full(steps, np.nan),
            validation_loss=validation,
            modules=tuple(f"layer.{n}.weight" for n in range(count)),
            gradient_log2=sizes,
            noted=history.told,
            about=about,
        )
