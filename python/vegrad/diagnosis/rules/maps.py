"""Maps whose weights are far from what any initialization makes them at their place."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite, log10

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.diagnosis.rules.suspect import OFF, Suspect, beyond, pattern, size_of
from vegrad.flow.edits import Edit, Initialize, Redraw, Scale
from vegrad.flow.reading import Parameter, Reading
from vegrad.flow.ways import heads
from vegrad.flow.wording import DECADE, exp10, median

ALL_LARGE, ALL_SMALL = 0.2, -1.0  # decades beyond all initializations: the median of all maps
MOST_OF_THEM = 0.75  # of the maps must be off the same way
ABSURD = 30.0  # times the loss of the best constant output
NORMAL = 0.02  # the standard deviation that transformers are drawn with


def is_absurd(reading: Reading) -> bool:
    """Return True if outputs are far too large for a cross entropy, beside the best constant."""
    return any(
        one.kind != "mse" and one.value >= ABSURD * one.constant > 0 and not one.learnt
        for one in reading.losses
    )


class Maps:
    """The weights of a reading that inputs are multiplied with."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.parameters = reading.parameters
        self.maps = {
            name: one
            for name, one in self.parameters.items()
            if one.role in ("map", "recurrent") and isfinite(one.rms_log2) and min(one.fans) > 0
        }

    @cached_property
    def _guesses(self) -> dict[str, dict[str, float]]:
        """log10 of the size that each initialization would give each map."""
        found: dict[str, dict[str, float]] = {}
        for name, one in self.maps.items():
            fan_in, fan_out = one.fans
            found[name] = {
                "default": -log10(3 * fan_in) / 2,
                "lecun": -log10(fan_in) / 2,
                "he": log10(2 / fan_in) / 2,
                "he out": log10(2 / fan_out) / 2,
                "glorot": log10(2 / (fan_in + fan_out)) / 2,
                "normal": log10(NORMAL),
            }
        return found

    def everything(self) -> Suspect | None:
        """Return all maps, if nearly all are off the same way."""
        if len(self.maps) < 3:
            return None
        off = np.array([beyond(size_of(one), self._guesses[n]) for n, one in self.maps.items()])
        middle = float(np.median(off))
        limit, most = (ALL_LARGE if middle > 0 else ALL_SMALL), MOST_OF_THEM
        if middle > 0 and is_absurd(self.reading):
            limit, most = limit / 2, most / 2
        if abs(middle) < abs(limit) or np.mean(off * middle > 0) < most:
            return None
        names = tuple(self.maps)
        edit: Edit = Initialize("default") if self.reading.draws_itself else Redraw(names)
        return Suspect(names, edit, middle, "weight-scale-all")

    def off(self) -> Iterator[Suspect]:
        """Yield single maps that are off; last ones often begin small."""
        usual = self.usual
        last = heads(self.reading)
        for name, one in self.maps.items():
            size, kin = size_of(one), self._kin(one)
            guesses = dict(self._guesses[name])
            if len(self.maps) > 2:
                others = [size_of(o) for n, o in self.maps.items() if n != name]
                guesses["others"] = median(others)
            off = beyond(size, guesses)
            small_head = off < 0 and name in last
            if abs(off) < OFF or small_head:
                continue
            wanted = guesses.get(usual, guesses["default"])
            if len(kin) > 1 and abs(beyond(median(kin), self._guesses[name])) < OFF:
                wanted = median(kin)
            yield self._of_map(one, wanted, off)

    def _of_map(self, one: Parameter, wanted: float, off: float) -> Suspect:
        """Blame a third of the rows alone, where only that is off: the queries of three maps."""
        if one.blocks:
            parts = [block / DECADE - wanted for block in one.blocks]
            away = [n for n, part in enumerate(parts) if abs(part) >= OFF]
            if len(away) == 1 and len(parts) > 1:
                n, rows = away[0], one.shape[0] // len(parts)
                span = (n * rows, (n + 1) * rows)
                factor = exp10(-parts[n])
                return Suspect(
                    (one.name,), Scale((one.name,), factor, span), off, "weight-scale", span
                )
        factor = exp10(wanted - size_of(one))
        return Suspect((one.name,), Scale((one.name,), factor), off, "weight-scale")

    @property
    def usual(self) -> str:
        """Return the initialization that most of the maps agree with best."""
        if not self.maps:
            return "default"
        away: dict[str, list[float]] = {}
        for name, one in self.maps.items():
            for guess, size in self._guesses[name].items():
                away.setdefault(guess, []).append(abs(size_of(one) - size))
        return min(away, key=lambda guess: median(away[guess]))

    def _kin(self, one: Parameter) -> list[float]:
        """Return the sizes of parameters of the same name but for numbers, and of its shape."""
        own = pattern(one.name)
        return [
            size_of(other)
            for name, other in self.parameters.items()
            if name != one.name
            and other.shape == one.shape
            and pattern(name) == own
            and isfinite(other.rms_log2)
        ]
