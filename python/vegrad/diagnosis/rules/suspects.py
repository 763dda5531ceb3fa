"""All that is far from what an initialization makes it: weights, tables, norms, biases, inputs."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite, log10

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.diagnosis.rules.maps import NORMAL, Maps
from vegrad.diagnosis.rules.suspect import OFF, Suspect, beyond, grouped, pattern, size_of
from vegrad.flow.edits import Redraw, Scale, ScaleData, Shift
from vegrad.flow.reading import Parameter, Reading
from vegrad.flow.ways import ADDED, entries, heads, taken_by
from vegrad.flow.wording import DECADE, exp10

SEVERAL = 2  # others that begin as 0 too: that is by design
ROW_NORMS = {"layer_norm", "rms_norm"}
FRESH = 0.2  # decades within which a size is that of a known drawing
SMALL_TABLE = 0.005  # the smallest standard deviation that tables are drawn with
LARGE_BIAS = 2.0  # mean of a bias, from which it is a suspect: it moves units out of their range
LARGE_INPUT, SMALL_INPUT = 20.0, 1e-3  # root mean squares of inputs
LARGE_OUTPUT = 5.0  # the same of what the first maps make of them
NEAR = 2.0  # log2 of a running variance over that of the batch, within which they are alike


class Suspects:
    """The parameters and inputs of a reading that are off."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.parameters = reading, reading.parameters
        self.maps = Maps(reading)

    def whole(self) -> list[Suspect]:
        """Return all weights, if they are off together."""
        everything = self.maps.everything()
        return [] if everything is None else [everything]

    def inputs(self) -> list[Suspect]:
        """Return inputs that are far too large or small."""
        return list(self._off_inputs())

    def single(self) -> list[Suspect]:
        """Return single parameters that are off, the furthest first."""
        single = [
            *self.maps.off(),
            *self._zeros(),
            *self._off_tables(),
            *self._off_others(),
            *self._off_norms(),
            *self._off_variances(),
            *self._off_biases(),
        ]
        return sorted(grouped(single), key=lambda one: -abs(one.off))

    def _off_tables(self) -> Iterator[Suspect]:
        known = {
            name: one
            for name, one in self.parameters.items()
            if one.role == "table" and one.trained and isfinite(one.rms_log2)
        }
        alike = log10(NORMAL) if self.maps.usual == "normal" else 0.0  # who draws all from one does
        divided = any(one.kind in ROW_NORMS for one in self.reading.operations)
        for name, table in known.items():
            size = size_of(table)
            # Only tables of the same width are added to each other.
            beside = [o for n, o in known.items() if n != name and o.shape[1:] == table.shape[1:]]
            others = [size_of(one) for one in beside]
            fresh = [log10(SMALL_TABLE), alike]
            if abs(size) < FRESH:
                continue  # PyTorch's own, N(0, 1)
            large = size - max([*fresh, *others])
            # Where rows are divided by their size, small ones are not made up for by being alike.
            small = size - min(fresh if divided else [*fresh, *others])
            off = large if large > 0 else min(small, 0.0)
            if abs(off) >= OFF:
                usual = float(np.median(others)) if others else alike
                near = abs(usual - alike) < FRESH or abs(usual - alike) >= OFF
                factor = exp10((alike if near else usual) - size)
                yield Suspect((name,), Scale((name,), factor), off, "embedding-scale")

    def _off_norms(self) -> Iterator[Suspect]:
        norms = {name: one for name, one in self.parameters.items() if one.role == "norm"}
        for name, one in norms.items():
            others = [o for n, o in norms.items() if n != name]
            alike = [o for o in others if self._goes_to(o) == self._goes_to(one)]
            if one.rms_log2 == -inf:
                # Many begin as 0: at the end of branches, or as what is added to 1.
                zero = sum(o.rms_log2 == -inf for o in alike)
                begun = zero >= SEVERAL if alike else bool(self._goes_to(one) & ADDED)
                if not begun:
                    yield Suspect((name,), Shift((name,), 1.0), -inf, "normalization-weight")
                continue
            sizes = [size_of(o) for o in alike if isfinite(o.rms_log2)]
            guesses = {"one": 0.0, "others": float(np.median(sizes)) if sizes else 0.0}
            off = beyond(size_of(one), guesses)
            if abs(off) >= OFF:
                factor = exp10(guesses["others"] - size_of(one))
                yield Suspect((name,), Scale((name,), factor), off, "normalization-weight")

    def _goes_to(self, one: Parameter) -> frozenset[str]:
        """Return the kinds of the operations that take what a parameter's operation makes."""
        return self._takers.get(one.name, frozenset())

    @cached_property
    def _takers(self) -> dict[str, frozenset[str]]:
        return taken_by(self.reading)

    def _zeros(self) -> Iterator[Suspect]:
        """Yield maps that are 0 where nothing is added to what they make: none begins like that."""
        last = heads(self.reading)
        for name, one in self.parameters.items():
            zero = one.role in ("map", "recurrent") and one.rms_log2 == -inf
            if zero and name not in last and not self._goes_to(one) & {*ADDED, "loss"}:
                yield Suspect((name,), Redraw((name,)), -inf, "weight-scale")

    def _off_others(self) -> Iterator[Suspect]:
        """Yield other matrices that are far larger than N(0, 1): tokens, attention's vectors."""
        added = {*ADDED, "cat", "expand", "repeat"}
        beside = {n for one in self.reading.operations if one.kind in added for n in one.parameters}
        for name, one in self.parameters.items():
            size = size_of(one)
            if one.role == "" and len(one.shape) > 1 and one.trained and size >= OFF:
                cause = "embedding-scale" if name in beside else "weight-scale"
                kin = [
                    size_of(o)
                    for n, o in self.parameters.items()
                    if n != name and o.role == "" and pattern(n) == pattern(name)
                ]
                wanted = float(np.median(kin)) if kin else 0.0
                if abs(size - wanted) >= OFF:
                    yield Suspect((name,), Scale((name,), exp10(wanted - size)), size, cause)

    def _off_variances(self) -> Iterator[Suspect]:
        own = {n: one for n, one in self.parameters.items() if one.role == "variance"}
        for name, one in own.items():
            others = [size_of(o) for n, o in own.items() if n != name]
            guesses = {"batch": one.batch_log2 / DECADE} if isfinite(one.batch_log2) else {}
            if others:
                guesses["others"] = float(np.median(others))
            if not guesses:
                continue
            off = beyond(size_of(one), guesses)
            fresh = one.rms_log2 == 0.0  # no batch has been seen yet
            if abs(off) >= 2 * OFF and not fresh:
                wanted = guesses.get("others", guesses.get("batch", 0.0))
                factor = exp10(wanted - size_of(one))
                yield Suspect((name,), Scale((name,), factor), off, "running-statistics")

    def _off_biases(self) -> Iterator[Suspect]:
        for name, one in self.parameters.items():
            if one.role != "bias" or not abs(one.mean) >= LARGE_BIAS:
                continue
            kin = [
                o.mean
                for n, o in self.parameters.items()
                if n != name and o.role == "bias" and pattern(n) == pattern(name)
            ]
            usual = float(np.median(kin)) if kin else 0.0
            if abs(one.mean - usual) >= LARGE_BIAS:
                shift = float(f"{usual - one.mean:.4g}")
                yield Suspect((name,), Shift((name,), shift), log10(abs(one.mean)), "dead-units")

    def _are_normalized(self) -> bool:
        """Return True if running statistics are of a large batch, and of this one: so it was."""
        fit = [
            one.rms_log2 / DECADE
            for one in self.parameters.values()
            if one.role == "variance" and abs(one.rms_log2 - one.batch_log2) < NEAR
        ]
        return bool(fit) and max(fit) >= 2 * log10(LARGE_OUTPUT)

    def _off_inputs(self) -> Iterator[Suspect]:
        sizes = [one.rms_log2 / DECADE for one in entries(self.reading)]
        for cell in self.reading.cells:
            known = (gate.parameter for gate in cell.gates if gate.part == "ih")
            through = [self.parameters[name].through_log2 for name in known]
            sizes.append(max(through) / DECADE + log10(cell.input_rms or 1.0))
        made_up_for = bool(sizes) and max(sizes) < log10(LARGE_OUTPUT)  # by small weights
        made_up_for |= self._are_normalized()
        for one in self.reading.inputs:
            large = one.rms >= LARGE_INPUT and not made_up_for
            if large or 0 < one.rms <= SMALL_INPUT:
                yield Suspect((one.name,), ScaleData(), log10(one.rms), "input-scale")
