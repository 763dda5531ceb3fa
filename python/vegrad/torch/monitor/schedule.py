"""Which steps a monitor looks at, so that its cost stays within a budget.

The first `ALL` steps are looked at, then half as many of each doubling of their number, and beyond
that as many as the budget allows, but no more than one in `NEAREST`: what a look costs is how much
longer such a step and the next one, which finds its data out of the caches, take than two like the
second after it. Steps are looked at whose number is a multiple of a power of 2, so that of two runs
that differ in the power, one looks at all that the other does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from math import ceil, nan
from statistics import median

ALL = 16  # first steps, each of which is looked at; 8 in each doubling of them after that
NEAREST = 4  # so that there are always steps to compare with
KEPT, ENOUGH = 16, 6  # times of each kind that are kept, and from which on they are compared
FEW = 1 << 18  # elements of all gradients: to read fewer takes no longer than to choose
LOOKS, NORM = 0.5, 0.25  # shares of the budget for looks, and for the norm in the other steps
clock: Callable[[], float] = time.thread_time
"""Seconds of the calling thread, which other programs do not lengthen."""


class Schedule:
    """Decides at which steps there is a look, and how much of the gradients the others read.

    Args:
        every: look at the steps whose number is a multiple of this; None to go by the budget.
        budget: the share of the steps' time that a monitor may take.
        now: a clock, in seconds.
    """

    def __init__(self, every: int | None, budget: float, now: Callable[[], float]) -> None:
        self.every, self.budget, self.now = every, budget, now
        self.interval = 0
        """The power of 2 that the budget allows; 0 until it is known."""
        self.part = 1
        """One in so many elements is read in steps without a look."""
        self._since: list[float] = []
        """How long the last look and the step after it took, until they are compared."""
        self._extra: deque[float] = deque(maxlen=KEPT)
        """How much longer looks made it than if none had been, as shares of a step."""
        self.looks = 0
        """Number of steps so far that were to be looked at."""
        self._asked, self._is_in_step = True, False
        self._start: float | None = None
        self._aside = 0.0
        self._plain: deque[float] = deque(maxlen=KEPT)
        self._norms: deque[float] = deque(maxlen=KEPT)

    def wants(self, step: int, first: int) -> bool:
        """Return True if a step is to be looked at; `first` is the number of the first one."""
        count = step - first
        if self.every is not None:
            return step % self.every == 0 or not self.looks
        at_least = 1 << max(count.bit_length() - ALL.bit_length() + 1, 0)
        return self._asked or count % min(at_least, self.interval or at_least) == 0

    def ask(self) -> None:
        """Have the next step looked at, out of turn."""
        self._asked = True

    def took(self, looked: bool, seconds: float = nan) -> None:
        """Note a step, whether it was looked at, and, if that is known, how long it took."""
        self.looks += looked
        self._asked = self._asked and not looked
        if seconds == seconds:
            self._timed(looked, seconds)

    def _timed(self, looked: bool, seconds: float) -> None:
        if looked:
            if len(self._since) == 2:  # the next look came too soon for a better comparison
                self._compare(self._since[1])
            self._since = [seconds]
            return
        self._plain.append(seconds)
        if len(self._since) == 2:
            self._compare(seconds)
        elif self._since:
            self._since.append(seconds)

    def _compare(self, plain: float) -> None:
        """Note what the last look has cost, beside a plain step."""
        if plain > 0:
            self._extra.append(sum(self._since) / plain - 2)
        self._since = []

    def resume(self, *, cut: bool = False) -> None:
        """Go on after steps of which nobody has noted the time; `cut` says in the midst of one."""
        self._is_in_step, self._start, self._aside = cut, None if cut else self.now(), 0.0

    def read(self, seconds: float) -> None:
        """Note what it has taken to read all gradients."""
        self._norms.append(seconds)

    def part_of(self, elements: int) -> int:
        """Return the same for a model with so many elements."""
        return self.part if elements >= FEW else 1

    def leave_out(self, seconds: float) -> None:
        """Note time within this step that is none of a step's, as that of a judgement."""
        self._aside += seconds

    def begins(self) -> None:
        """Note the time at which a step begins: the first call of the model after the last one."""
        if not self._is_in_step:
            self._is_in_step, self._start, self._aside = True, self.now(), 0.0

    def ended(self, looked: bool) -> None:
        """Note the time at which a step is over; without a call, it began with the end before."""
        now = self.now()
        if self._start is not None:
            self._timed(looked, now - self._start - self._aside)
        self._is_in_step, self._start, self._aside = False, now, 0.0
        if looked and self.every is None:
            self._decide()

    def _decide(self) -> None:
        """Compare steps with a look and without."""
        if len(self._extra) < ENOUGH or not self._norms:
            return
        plain = _usual(self._plain)
        if not plain > 0 < self.budget:
            return
        wanted = max(_power(median(self._extra) / (LOOKS * self.budget)), NEAREST)
        near = min(max(wanted, self.interval // 2), 2 * self.interval)
        self.interval = near if self.interval else wanted
        self.part = _power(_usual(self._norms) / (NORM * self.budget * plain))


def _usual(times: Collection[float]) -> float:
    """Return the time below which a quarter of them lie."""
    return sorted(times)[len(times) // 4]


def _power(ratio: float) -> int:
    """Return the least power of 2 that is as large."""
    return 1 << max(ceil(min(ratio, 1 << 30)) - 1, 0).bit_length()
