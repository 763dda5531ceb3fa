"""Figures of a run that was recorded, what of it was looked at, and rows that are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan

import numpy as np
import numpy.typing as npt

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.flow.reading import Reading
from vegrad.flow.recorded import Recorded
from vegrad.reports.values import count_of

FEW, SOME, MANY = 5, 20, 40  # losses to judge a level by, a rise, and a standstill
PARTS = 10  # of a training, whose levels are compared
TITLES = {
    "loss": "the loss",
    "gradient_norm": "the gradients' norm",
    "clipped_norm": "the norm after a clip",
    "learning_rate": "the learning rate",
}


@dataclass(frozen=True)
class Seen:
    """Figures of a run, each worked out once."""

    run: Recorded

    @cached_property
    def known(self) -> npt.NDArray[np.intp]:
        """The places of losses that are finite."""
        return np.flatnonzero(np.isfinite(self.run.loss))

    @cached_property
    def losses(self) -> FloatArray:
        """Losses that are finite, in their order."""
        return np.asarray(self.run.loss[self.known], np.float64)

    @property
    def means_success(self) -> bool:
        """True if a lower loss is a better one."""
        lowest = self.losses.min() if len(self.losses) else -1.0  # 0 may be rounded
        return lowest >= 0 and not self.run.about.get("rewarded")

    @cached_property
    def parts(self) -> list[FloatArray]:
        """Losses by parts of the training."""
        return np.array_split(self.losses, PARTS)

    @cached_property
    def levels(self) -> list[float]:
        """The median of each."""
        return [float(np.median(one)) for one in self.parts if len(one)]

    @property
    def first(self) -> float:
        """The loss that it began with."""
        return float(np.median(self.losses[:FEW])) if len(self.losses) else nan

    @cached_property
    def norms(self) -> FloatArray:
        """Norms of the gradients that are finite, in their order."""
        return np.asarray(self.run.gradient_norm[np.isfinite(self.run.gradient_norm)], np.float64)

    def norm_growth(self) -> float:
        """Return how many times the usual norm the last ones are; nan if it is not known."""
        if len(self.norms) < SOME:
            return nan
        usual, late = np.median(self.norms), np.median(self.norms[-FEW:])
        return float(late / usual) if usual > 0 else nan

    def rates(self) -> tuple[float, float]:
        """Return the largest learning rate and the last; nan if none is known."""
        rates = self.run.learning_rate[np.isfinite(self.run.learning_rate)]
        return (float(rates.max()), float(rates[-1])) if len(rates) else (nan, nan)


def rows_alike(reading: Reading) -> Iterator[str]:
    """Say where rows are all the same, which is no fault of a network, nor of a batch of few."""
    for one in reading.inputs:
        if one.alike:
            yield f"all {one.alike} rows of {one.name} are alike, so that nothing tells them apart"
    for two in reading.compared:
        rows = two.target.shape[0] if two.target.shape else 0
        if two.given and rows > 1 and two.target.low == two.target.high:
            only = f"the target is {two.target.low:g} in all {rows} rows"
            yield f"{only}, so that there is nothing else to learn from them"


def run_looked_at(run: Recorded) -> str:
    """Say what of a run was looked at, and how it went."""
    seen, columns = Seen(run), {name: np.isfinite(getattr(run, name)) for name in TITLES}
    looked = [title for name, title in TITLES.items() if columns[name].any()]
    missing = [title for name, title in TITLES.items() if not columns[name].any()]
    known = columns["loss"] | columns["gradient_norm"]
    every = run.about.get("steps")  # of a long run not all are kept
    count = every if isinstance(every, int) else int(known.sum())
    said = f"of {count_of(count, 'step')} that {'was' if count == 1 else 'were'} logged, "
    said += f"{_joined(looked)} {'were' if len(looked) > 1 else 'was'} looked at{_went(seen)}"
    return said + (f"; not recorded: {', '.join(missing)}" if missing else "")


def _went(seen: Seen) -> str:
    """Say how the loss went, and if that cannot be judged, why."""
    losses, count = seen.losses, len(seen.losses)
    if not count:
        return ""
    if count == 1:
        return f": the loss was {losses[0]:.4g}, a single entry, by which no course can be judged"
    few = count < 2 * FEW
    first = float(losses[0]) if few else seen.first
    last = float(losses[-1] if few else np.median(losses[-FEW:]))
    words = f": the loss went from {first:.4g} to {last:.4g}"
    words += "" if few else f" (medians of {FEW} steps)"
    if not seen.means_success:
        return f"{words}, which is not judged, as it need not fall"
    if count < SOME:
        return f"{words}, too few entries ({count}) to judge its course by"
    if count < MANY and last >= first:
        return f"{words}, too few entries ({count}) to judge by that it has not fallen"
    return words


def _joined(titles: list[str]) -> str:
    *first, last = titles or ["nothing"]
    return f"{', '.join(first)} and {last}" if first else last
