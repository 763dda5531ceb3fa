"""The history of a training, step by step and epoch by epoch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from vegrad.arrays.checks import FloatArray, as_count
from vegrad.arrays.files import replacing
from vegrad.arrays.shown import plainly, shown
from vegrad.diagnosis.noted import Json, Noted, as_number, from_plain, noted, plain_number, to_plain
from vegrad.diagnosis.rules.steps import of_history
from vegrad.flow.finding import Finding
from vegrad.pictures import Figure
from vegrad.reports import descent, notebook
from vegrad.reports.picture import plot_history
from vegrad.reports.values import count_of

STEPS = (
    "loss",
    "gradient_norm",
    "coefficient",
    "learning_rate",
    "alpha",
    "step_length",
    "loss_after",
    "slope",
    "slope_after",
)
EPOCHS = ("epoch_steps", "epoch_loss", "clipped_share", "validation_loss", "validation_accuracy")
LAYERS = ("gradient_log2", "update_log2")


class History:
    """Columns of float64; those of steps have an entry a step, the others one an epoch.

    Steps: loss (of the batch, before the step), gradient_norm (joint, before the clip),
    coefficient (the clip's smallest factor, 1 if it did nothing), learning_rate, alpha, step_length
    (‖Δ‖ of all parameters together), loss_after (of the same batch), slope and slope_after (of the
    batch's loss along the step, where it begins and ends).

    alpha is where a step lands on the parabola that fits loss and slope along the step at both its
    ends, on the same batch (Cockpit, Schneider et al. 2021, arXiv:2102.06604): -1 stands still, 0
    is the minimum, 1 as high on the other side, more is a climb. With learning_rate/(1 + alpha) it
    would have landed at 0. The last five are nan at steps that were not looked at.

    Epochs: epoch_steps (how many there were), epoch_loss (mean over rows, or over targets where a
    row has several, each before its batch's step), clipped_share (of steps), validation_loss,
    validation_accuracy (nan without validation data or classes).

    Epochs and layers, (E, L), of the epoch's last step: gradient_log2 (log2 ‖∂loss/∂W‖) and
    update_log2 (log2 of ‖ΔW‖ over ‖W‖; healthy training is said to be near 2^-10).

    `noted` has the findings that were met while it ran, with the number of steps before each.
    """

    loss: FloatArray
    gradient_norm: FloatArray
    coefficient: FloatArray
    learning_rate: FloatArray
    alpha: FloatArray
    step_length: FloatArray
    loss_after: FloatArray
    slope: FloatArray
    slope_after: FloatArray
    epoch_steps: FloatArray
    epoch_loss: FloatArray
    clipped_share: FloatArray
    validation_loss: FloatArray
    validation_accuracy: FloatArray
    gradient_log2: FloatArray
    update_log2: FloatArray

    def __init__(self) -> None:
        self._steps = np.empty((len(STEPS), 64))  # with room for more than there are
        self._count = 0
        self._epochs: dict[str, list[Json]] = {name: [] for name in (*EPOCHS, *LAYERS)}
        self._noted: list[Noted] = []
        self.watched: int | None = None
        """The step at which the gauge last began to look at several in a row."""
        self.doubts = 0
        """How often several in a row were too long."""
        self.windows = 1
        """Steps that are taken on a batch, each on a window of its sequences: their losses differ
        by where in a sequence they are."""
        self.learnt: tuple[float, float] | None = None
        """Of a network that had learnt before: its loss of many rows and the best constant's."""

    def __getattr__(self, name: str) -> FloatArray:
        if name in STEPS and "_steps" in self.__dict__:
            return self.since(0, name)
        columns = self.__dict__.get("_epochs", {})
        if name not in columns:
            names = ", ".join((*STEPS, *EPOCHS, *LAYERS))
            raise AttributeError(f"History has no {name}; its columns: {names}")
        return np.array(columns[name], np.float64)

    @property
    def steps(self) -> int:
        """The number of steps that were recorded."""
        return self._count

    @property
    def epochs(self) -> int:
        """The number of epochs that were finished."""
        return len(self._epochs["epoch_loss"])

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings that were met while it ran, and those on its steps; causes come first."""
        return of_history(self)

    @property
    def noted(self) -> tuple[Noted, ...]:
        """The findings that were met while it ran."""
        return tuple(self._noted)

    @property
    def told(self) -> tuple[Noted, ...]:
        """All findings: those that were met while it ran, then those on its steps, at its end."""
        met = {(one.finding.kind, one.finding.cause) for one in self._noted}
        late = (one for one in self.findings if (one.kind, one.cause) not in met)
        return (*self._noted, *(noted(self._count, one) for one in late))

    def note(self, finding: Finding, step: int | None = None) -> None:
        """Note a finding at a step (the next one), unless one of its kind and cause was noted."""
        known = {(one.finding.kind, one.finding.cause) for one in self._noted}
        if (finding.kind, finding.cause) not in known:
            self._noted.append(noted(self._count if step is None else step, finding))

    def __repr__(self) -> str:
        losses = self.epoch_loss
        way = f": loss {losses[0]:.4g} → {losses[-1]:.4g}" if len(losses) else ""
        length = f"{count_of(self.epochs, 'epoch')}, {count_of(self.steps, 'step')}"
        return f"<History of {length}{way}>"

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *STEPS, *EPOCHS, *LAYERS]

    def _repr_html_(self) -> str:
        return notebook.history(self)

    def since(self, step: int, name: str) -> FloatArray:
        """Return a copy of a column of STEPS from this step on."""
        return self._steps[STEPS.index(name), step : self._count].copy()

    def first(self, name: str, count: int) -> FloatArray:
        """Return a copy of the first entries of a column of STEPS."""
        return self._steps[STEPS.index(name), : min(count, self._count)].copy()

    def at(self, step: int, name: str) -> float:
        """Return the entry of a column of STEPS at a step."""
        return float(self._steps[STEPS.index(name), step])

    def last(self, name: str, back: int = 1) -> Json:
        """Return the last entry of a column of EPOCHS or LAYERS, or one so many places back."""
        return self._epochs[name][-back]

    def add_steps(self, columns: FloatArray) -> None:
        """Append entries (STEPS, steps)."""
        end = self._count + columns.shape[1]
        if end > self._steps.shape[1]:
            room = np.empty((len(STEPS), 2 * end))
            room[:, : self._count] = self._steps[:, : self._count]
            self._steps = room
        self._steps[:, self._count : end] = columns
        self._count = end

    def add_epoch(self, **values: Json) -> None:
        """Append an entry for each of EPOCHS and LAYERS."""
        for name in (*EPOCHS, *LAYERS):
            self._epochs[name].append(values[name])

    def to_dict(self) -> dict[str, Json]:
        """Return lists of floats, by name, and what was noted as plain JSON types."""
        columns: dict[str, Json] = {name: getattr(self, name).tolist() for name in STEPS}
        for name, column in self._epochs.items():
            columns[name] = [list(map(float, v)) if name in LAYERS else float(v) for v in column]
        return columns | self.met()

    def met(self) -> dict[str, Json]:
        """Return what is no column: the findings that were noted, as plain JSON types."""
        noted = [to_plain(one) for one in self._noted]
        more: dict[str, Json] = {"windows": self.windows} if self.windows > 1 else {}
        if self.learnt is not None:
            more["learnt"] = list(self.learnt)
        return {"noted": noted, "watched": self.watched, "doubts": self.doubts} | more

    @classmethod
    @plainly()
    def from_dict(cls, columns: Mapping[str, Json]) -> History:
        """Return the history that `to_dict` described.

        Raises:
            ValueError: if columns are missing or uneven, or anything else is not as it was.
        """
        history = cls()
        try:
            _fill(history, columns)
        except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"a history must be as to_dict() gave it: {error}") from error
        return history

    def save(self, path: str | PathLike[str]) -> None:
        """Write a .json file, or a .csv file with a row a step, an epoch's entries in its last.

        JSON has no nan and inf: they are null, "inf" and "-inf" there, as `from_dict` takes them.
        The file appears whole or not at all.
        """
        path = Path(path)
        if path.suffix not in (".json", ".csv"):
            raise ValueError(f"path must end in .json or .csv, not {shown(path.suffix)}")
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as to:
            if path.suffix == ".json":
                to.write(json.dumps(_with_nulls(self.to_dict()), allow_nan=False) + "\n")
            else:
                csv.writer(to).writerows(_rows(self))

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw loss, gradient norm, clip and learning rate over the steps; needs matplotlib.

        A clip or a learning rate that never changed is left out. Returns matplotlib's figure, which
        is also written to `path` if there is one.
        """
        return plot_history(self, path)

    def plot_descent(
        self, path: str | PathLike[str] | None = None, title: str = "", guess: float | None = None
    ) -> Figure:
        """Draw the loss along the way, with the steps as one would draw them on a blackboard.

        Of the steps that the gauge looked at, up to 24 are drawn as hops over the loss along them,
        a curve through loss and slope at their ends: baby steps, good ones, overshoots and climbs
        by colour and shape, and where the clip shortened one, how far it would have gone. Each is
        over the loss of its own batch; `vegrad descent` draws the loss of all rows. A dashed line
        stands at `guess`, if it is given: the loss of an output that takes no look at the inputs,
        such as log 10 of ten classes. Needs matplotlib, whose figure is returned, and also written
        to `path` if there is one.

        Raises:
            ValueError: if the gauge looked at no step (`fit(…, gauge_every=1)` looks at all).
        """
        return descent.draw([(title, descent.of_history(self, guess))], path)


def _fill(history: History, columns: Mapping[str, Json]) -> None:
    """Take the columns into an empty history."""
    for names in (STEPS, (*EPOCHS, *LAYERS)):
        missing = [name for name in names if name not in columns]
        if missing:
            raise ValueError(f"a history must have {', '.join(missing)}")
        if len({len(columns[name]) for name in names}) > 1:
            raise ValueError(f"{', '.join(names)} must have the same number of entries")
        if names is STEPS:
            steps = [[as_number(value) for value in columns[name]] for name in names]
            history.add_steps(np.array(steps, np.float64).reshape(len(names), -1))
            continue
        for name in names:
            history._epochs[name] = [
                [as_number(v) for v in value] if name in LAYERS else as_number(value)
                for value in columns[name]
            ]
        if len({len(row) for name in LAYERS for row in history._epochs[name]}) > 1:
            raise ValueError(f"{' and '.join(LAYERS)} must have the same layers in each epoch")
    counts = history._epochs["epoch_steps"]
    if not (all(n >= 1 and n == int(n) for n in counts) and sum(counts) <= history.steps):
        raise ValueError(
            f"epoch_steps must be counts of the {history.steps} steps, not {counts[:9]}"
        )
    history._noted = [from_plain(one) for one in columns.get("noted", ())]
    watched = columns.get("watched")
    history.watched = None if watched is None else as_count("watched", watched)
    history.doubts = as_count("doubts", columns.get("doubts", 0))
    history.windows = as_count("windows", columns.get("windows", 1), 1)
    if columns.get("learnt") is not None:
        before, guess = map(as_number, columns["learnt"])
        history.learnt = before, guess


def _rows(history: History) -> Iterator[list[object]]:
    """Make the rows of a .csv file, the titles first."""
    columns = history.to_dict()
    layers = range(len(columns[LAYERS[0]][0]) if history.epochs else 0)
    yield ["step", "epoch", *STEPS, *EPOCHS, *(f"{n}.{i}" for n in LAYERS for i in layers)]
    ends = np.cumsum(history.epoch_steps).astype(int).tolist()
    for step in range(history.steps):
        epoch = int(np.searchsorted(ends, step, side="right"))
        row = [step, epoch, *(columns[name][step] for name in STEPS)]
        if epoch < history.epochs and step == ends[epoch] - 1:
            row += [columns[name][epoch] for name in EPOCHS]
            row += [value for name in LAYERS for value in columns[name][epoch]]
        yield row


def _with_nulls(columns: Mapping[str, Json]) -> dict[str, Json]:
    """Return the columns without numbers that JSON does not have."""
    return {
        name: [list(map(plain_number, v)) if name in LAYERS else plain_number(v) for v in column]
        if name in (*STEPS, *EPOCHS, *LAYERS)
        else column
        for name, column in columns.items()
    }


def as_history(name: str, value: object) -> History:
    """Return a history, or the one that a mapping of `to_dict` describes.

    Raises:
        TypeError: value is neither; the message calls it `name`.
        ValueError: columns are missing or uneven.
    """
    if isinstance(value, Mapping):
        return History.from_dict(value)
    if not isinstance(value, History):
        raise TypeError(f"{name} must be a vegrad.History, not {type(value).__name__}")
    return value
