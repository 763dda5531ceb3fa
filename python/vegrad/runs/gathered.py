"""Steps of a run as they are read, in bounded memory: the longer the run, the fewer of them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import inf, isfinite, nan

import numpy as np

from vegrad.diagnosis.noted import Noted
from vegrad.runs.form import COLUMNS
from vegrad.runs.run import Run
from vegrad.runs.spikes import Spike

FIELDS = (*COLUMNS.values(), "validation_loss")
"""The columns of a run beside the step."""
WIDTH = 1 + len(FIELDS)
MOST = 1 << 18  # steps
TABLE = 1 << 23  # entries of a table of sizes by step and module
KEPT = 20  # spikes
FINDINGS = 1000


class Gathered:
    """A run that is being read.

    Args:
        most: steps that are kept at most: of a longer run every second one, then every fourth, …
        table: the same of the entries of a table of sizes.
    """

    def __init__(self, most: int = MOST, table: int = TABLE) -> None:
        self.most, self.table = max(most, 2), table
        self.modules: tuple[str, ...] = ()
        self.floor_log2 = -inf
        self.about: dict[str, object] = {}
        self.noted: list[Noted] = []
        self.spikes: dict[int, Spike] = {}
        self.nonfinite: dict[str, float] = {}
        self.seen = 0
        """The number of steps that there were."""
        self.stride = 1
        self._numbers = array("d")
        self._places, self._sizes = array("d"), array("f")
        self._sizes_seen, self._sizes_stride = 0, 1

    @property
    def wants(self) -> bool:
        """True if the next step would be kept."""
        return self.seen % self.stride == 0

    def skip(self) -> None:
        """Count a step that is not kept."""
        self.seen += 1

    def add(self, step: float, known: Mapping[str, float]) -> None:
        """Take in a step, with its numbers by the names of columns; those before it come first."""
        if len(self._numbers) and step <= self._numbers[-WIDTH]:
            self.truncate(step)
        wanted = self.wants
        self.seen = max(self.seen, 0) + 1
        for name, value in known.items():
            if not isfinite(value):
                self.nonfinite.setdefault(name, step)
                wanted = True
        if not wanted:
            return
        get = known.get
        self._numbers.append(step)
        self._numbers.extend([get(name, nan) for name in FIELDS])
        if len(self._numbers) > 2 * self.most * WIDTH:
            self.stride *= 2
            self._numbers = _halved(self._numbers, WIDTH)

    def validated(self, step: float, loss: float) -> None:
        """Take in the loss of data that were held out: it goes to the last step that is kept."""
        if len(self._numbers):
            self._numbers[-1] = loss
        if not isfinite(loss):
            self.nonfinite.setdefault(FIELDS[-1], step)

    def add_sizes(self, step: float, log2: Sequence[float]) -> None:
        """Take in log2 of the sizes of the gradients of all modules at a step."""
        self._sizes_seen += 1
        if (self._sizes_seen - 1) % self._sizes_stride:
            return
        self._places.append(step)
        self._sizes.extend(log2)
        if len(self._sizes) > self.table // 2:
            self._sizes_stride *= 2
            self._places = _halved(self._places, 1)
            self._sizes = _halved(self._sizes, len(self.modules))

    def truncate(self, step: float) -> None:
        """Forget a step and those after it: a training has gone on from there."""
        steps = self._numbers[::WIDTH]
        kept = bisect_left(steps, step)
        self.seen -= (len(steps) - kept) * self.stride
        del self._numbers[kept * WIDTH :]
        place = bisect_left(self._places, step)
        del self._places[place:]
        del self._sizes[place * len(self.modules) :]
        self.noted = [one for one in self.noted if one.step < step]
        self.spikes = {at: one for at, one in self.spikes.items() if at < step}
        self.nonfinite = {name: at for name, at in self.nonfinite.items() if at < step}

    def note(self, one: Noted) -> None:
        """Take in a finding."""
        if len(self.noted) < FINDINGS:
            self.noted.append(one)

    def spike(self, one: Spike) -> None:
        """Take in a spike, in place of one at the same step."""
        self.spikes[one.step] = one
        while len(self.spikes) > KEPT:
            self.spikes.pop(next(iter(self.spikes)))

    @property
    def last(self) -> float:
        """The last step that is kept; -1 if there is none."""
        return self._numbers[-WIDTH] if len(self._numbers) else -1.0

    def run(self, order: Sequence[int] | None = None) -> Run:
        """Return what was read so far; `order` has the places of the modules as they ran."""
        numbers = np.frombuffer(self._numbers.tobytes(), np.float64).reshape(-1, WIDTH)
        count = len(self.modules)
        if count and len(numbers) * count > self.table:
            numbers = numbers[:: -(-len(numbers) * count // self.table)]
        step = numbers[:, 0].copy()
        sizes = np.full((len(step), count), nan)
        if count and len(step) and len(self._places):
            places = np.searchsorted(step, np.frombuffer(self._places), "right") - 1
            values = np.frombuffer(self._sizes, np.float32).reshape(-1, count)
            sizes[np.maximum(places, 0)] = values
        names = self.modules
        if order is not None and sorted(order) == list(range(count)):
            names, sizes = tuple(names[n] for n in order), sizes[:, list(order)]
        return Run(
            step=step,
            **{name: numbers[:, n + 1].copy() for n, name in enumerate(FIELDS)},
            modules=names,
            gradient_log2=sizes,
            floor_log2=self.floor_log2,
            noted=tuple(self.noted),
            spikes=tuple(self.spikes.values()),
            nonfinite=dict(self.nonfinite),
            about=self.about | {"steps": self.seen},
        )


def _halved(values: array[float], width: int) -> array[float]:
    """Return every second row."""
    kind = np.float64 if values.typecode == "d" else np.float32
    rows = np.frombuffer(values, kind).reshape(-1, width)[::2]
    return array(values.typecode, rows.tobytes())
