"""Percentiles of as many numbers as come, in memory that has an end."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from math import floor, frexp, inf, ldexp
from sys import float_info

import numpy as np
import numpy.typing as npt

EXACT = 8192
"""How many numbers are kept as they are."""
BINS = 1024
"""How many bins an octave has once there are more: each is at most 2^-10 of its numbers wide."""
_TINY = -1100
"""The octave of all that is below the smallest normal float64, and counts as 0."""

Counts = npt.NDArray[np.int64]
_NONE: Counts = np.zeros(BINS, np.int64)


class Percentiles:
    """Finite numbers of at least 0, of which percentiles are asked.

    The first 8192 are kept, and their percentiles are exact. From then on a number is only counted
    in a bin, 1024 to the octave, and stands at the bin's middle: a percentile is then within 2^-11
    (0.05 %) of the exact one. An octave in which there are numbers takes 8 kB, and there are 2047
    octaves at most: time and memory do not grow with how many numbers there were.

    Args:
        values: numbers in order of size, as `values` gave them.
        counts: as `counts` gave them.

    Raises:
        ValueError: the two do not belong together.
    """

    def __init__(self, values: Sequence[float] = (), counts: Sequence[int] = ()) -> None:
        if counts and len(counts) != len(values):
            raise ValueError(
                f"counts must be one of each of the {len(values)} values, not {len(counts)}"
            )
        if not counts and (len(values) > EXACT or list(values) != sorted(values)):
            raise ValueError(f"values without counts must be at most {EXACT}, in order of size")
        self._kept: list[float] = [] if counts else list(values)
        self._octaves: dict[int, Counts] = {}
        self._order: list[int] = []
        self._totals: dict[int, int] = {}
        for value, count in zip(values, counts, strict=False):
            self._count(value, count)

    def __len__(self) -> int:
        return len(self._kept) + sum(self._totals.values())

    def add(self, value: float) -> None:
        """Take in one more."""
        if self._octaves:
            self._count(value, 1)
            return
        insort(self._kept, value)
        if len(self._kept) > EXACT:
            for one in self._kept:
                self._count(one, 1)
            self._kept = []

    def with_one_more(self, percentile: float, value: float) -> float:
        """Return a percentile, from 0 to 100, of all numbers and this one, which is not kept.

        Between two numbers it is interpolated, as `np.percentile` does.
        """
        place = percentile / 100 * len(self)  # of the sorted numbers, counted from 0
        below = min(floor(place), len(self))
        share = place - below
        lower, upper = self._pair(below, value)
        if share >= 0.5:
            return upper - (upper - lower) * (1 - share)
        return lower + (upper - lower) * share

    @property
    def values(self) -> list[float]:
        """The numbers in order of size; once they are counted, the middles of the bins."""
        if not self._octaves:
            return list(self._kept)
        return [
            _middle(octave, int(place))
            for octave in self._order
            for place in np.flatnonzero(self._octaves[octave])
        ]

    @property
    def counts(self) -> list[int]:
        """Numbers of each bin among the `values`; nothing while all are kept."""
        bins = [self._octaves[octave] for octave in self._order]
        return [int(count) for one in bins for count in one[one > 0]]

    def _count(self, value: float, count: int) -> None:
        octave, place = _bin(value)
        if octave not in self._octaves:
            self._octaves[octave], self._totals[octave] = _NONE.copy(), 0
            insort(self._order, octave)
        self._octaves[octave][place] += count
        self._totals[octave] += count

    def _pair(self, rank: int, value: float) -> tuple[float, float]:
        """Return the numbers at this rank, counted from 0, and the next, with this one among them.

        After the last comes the last again.
        """
        last = len(self)
        if not self._octaves:
            return self._exact(rank, value), self._exact(min(rank + 1, last), value)
        lower, more = self._counted(rank, value)
        return lower, lower if more or rank == last else self._counted(rank + 1, value)[0]

    def _exact(self, rank: int, value: float) -> float:
        before = self._kept[rank - 1] if rank else 0.0
        after = self._kept[rank] if rank < len(self._kept) else inf
        return min(max(before, value), after)

    def _counted(self, rank: int, value: float) -> tuple[float, bool]:
        """Return the middle of the bin that the number is in, and True if the next is in it too."""
        own, place = _bin(value)
        for octave in self._order if own in self._octaves else sorted([*self._order, own]):
            total = self._totals.get(octave, 0) + (octave == own)
            if rank >= total:
                rank -= total
                continue
            ends = np.cumsum(self._octaves.get(octave, _NONE))
            if octave == own:
                ends[place:] += 1
            found = int(np.searchsorted(ends, rank, "right"))
            return _middle(octave, found), rank + 1 < ends[found]
        raise IndexError(f"there are not so many numbers: {rank} too few")


def _bin(value: float) -> tuple[int, int]:
    if value < float_info.min:
        return _TINY, 0
    mantissa, octave = frexp(value)
    return octave, int((mantissa - 0.5) * 2 * BINS)


def _middle(octave: int, place: int) -> float:
    return 0.0 if octave == _TINY else ldexp(0.5 + (place + 0.5) / (2 * BINS), octave)
