"""Rules on what enters a residual stream, as an embedding does, and drowns all its branches.

No single branch is wrong then, and layer norms hide the effect from most gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite

import numpy as np

from vegrad.diagnosis.rules.residual import DROWNS, OFF, of_branch
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Branch, Parameter, Reading
from vegrad.flow.wording import DECADE, exp2, median

LARGE = 0.7  # decades of an embedding's size: none is drawn larger than PyTorch's, N(0, 1)
SMALL = -3.0  # decades: those that are drawn small are of 0.006 and more
STEEP = 1.5  # decades between the gradient of a table and those of matrices in branches
COMMON = 0.04  # decades within which sizes agree
NORMAL = 2.4  # kurtosis between that of uniform numbers, 1.8, and of normal ones, 3


def _large(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find what enters a stream far larger than any initialization makes it.

    It drowns the branches if it is 10 times as large as all they add together: small branches
    alone are fresh, after embeddings ~ N(0, 1) or with a LayerScale. So does an embedding that
    drowns those it is added to.
    """
    for stream in _streams(reading.branches):
        entering = _Entering(reading, stream)
        worst = entering.furthest()
        if worst:
            yield from entering.drowning(worst, rule)


def _small(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find tables smaller than any fresh one, where their gradients are as much too large."""
    for stream in _streams(reading.branches):
        entering = _Entering(reading, stream)
        others = [
            reading.parameters[n].gradient_log2
            for n in entering.within
            if n in reading.parameters and reading.parameters[n].is_matrix
        ]
        others = [size for size in others if isfinite(size)]
        for name, size in entering.tables().items():
            gradient = reading.parameters[name].gradient_log2
            steeper = gradient - float(np.median(others)) if others else -inf
            if size >= SMALL or not STEEP * DECADE <= steeper < inf:
                continue
            says = "{site} is so small that it gets {gradient:times} the gradient of matrices in "
            says += "the branches above it, as what it makes is divided by its size there"
            evidence = {"gradient": exp2(steeper), "factor": entering.factor(name)}
            yield of_branch(rule, "warning", name, entering.names, says, evidence)


def _streams(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Group branches that are added to the same stream, until something is made of all of it."""
    stream: list[Branch] = []
    for branch in branches:
        if branch.below and stream:
            yield stream
            stream = []
        stream.append(branch)
    if stream:
        yield stream


class _Entering:
    """The parameters that made what enters a stream."""

    def __init__(self, reading: Reading, stream: Sequence[Branch]) -> None:
        self.parameters, self.stream = reading.parameters, stream
        self.names = [name for name in stream[0].below if name in reading.parameters]
        self.within = [name for branch in stream for name in branch.trail]
        self.maps = reading.maps

    def furthest(self) -> str:
        """Return the parameter that is furthest beyond any fresh one; "" if none is."""
        beyond = {name: self._beyond(name) for name in self.names}
        worst = max(self.names, key=lambda name: beyond[name], default="")
        return worst if worst and beyond[worst] > 0 else ""

    def drowning(self, worst: str, rule: Rule) -> Iterator[Finding]:
        """Find what it drowns: the branches above it, or the embeddings it is added to."""
        evidence = {"factor": self.factor(worst)}
        sizes = np.array([branch.size for branch in self.stream])
        together = float(np.logaddexp2.reduce(2.0 * sizes)) / 2.0
        over = (self.stream[0].stream - together) / DECADE
        later = self.names[self.names.index(worst) + 1 :]
        # A normalization among those that come later takes the size away.
        if DROWNS <= over < inf and not any(self._scales(name) for name in later):
            count = len(self.stream)
            add = "the branch adds" if count == 1 else f"all {count} branches together add"
            says = "what {site} makes enters the residual stream {stream:times} as large as what "
            says += f"{add}: they are drowned"
            evidence["stream"] = 10.0**over
            names = [*self.names, *self.within]
            yield of_branch(rule, rule.severity(over), worst, names, says, evidence)
            return
        beside = self.tables()
        least = min(beside, key=beside.__getitem__, default=worst)
        if worst not in beside or beside[worst] - beside[least] < OFF:
            return
        evidence["apart"] = 10.0 ** (beside[worst] - beside[least])
        says = f"{{site}} is {{apart:times}} as large as {least}, to which it is added: that is "
        yield of_branch(rule, "warning", worst, self.names, says + "drowned", evidence)

    def tables(self) -> dict[str, float]:
        """Return the sizes of what is looked up or added, not multiplied with; not of zeros."""
        sizes = {
            name: self._size(name)
            for name in self.names
            if name not in self.maps and self.parameters[name].is_matrix
        }
        return {name: size for name, size in sizes.items() if isfinite(size)}

    def factor(self, name: str) -> float:
        """Return what makes it as large as it looks to have been drawn."""
        own = self.parameters[name]
        matrices = [self.parameters[n] for n in self.maps if n in self.parameters and n != name]
        if name in self.maps:
            middle = float(np.median([one.through_log2 for one in matrices]))
            return exp2(middle - own.through_log2)
        if not own.is_matrix:
            return float(10.0 ** -self._size(name))
        beside = [
            size for one, size in self.tables().items() if one != name and SMALL <= size <= LARGE
        ]
        drawn = float(np.median(beside)) if beside else _drawn(matrices)
        return float(10.0 ** (drawn - self._size(name)))

    def _beyond(self, name: str) -> float:
        """Return the decades by which a parameter is larger than any that is fresh."""
        own = self.parameters[name]
        if name in self.maps:
            others = [self.parameters[n] for n in self.maps if n in self.parameters and n != name]
            sizes = [one.through_log2 for one in others if isfinite(one.through_log2)]
            if not sizes:
                return -inf
            return (own.through_log2 - median(sizes)) / DECADE - OFF
        if own.is_matrix:
            return self._size(name) - LARGE
        return self._size(name) - OFF if self._scales(name) else -inf  # they begin as 1

    def _scales(self, name: str) -> bool:
        """Return True if it is a normalization's."""
        return len(self.parameters[name].shape) == 1 and name.endswith("weight")

    def _size(self, name: str) -> float:
        return self.parameters[name].rms_log2 / DECADE


def _drawn(matrices: Sequence[Parameter]) -> float:
    """Return log10 of the size of an embedding in a model with these matrices.

    Who draws most of them from one normal distribution, whatever their shapes, does so with
    embeddings too; else these are PyTorch's.
    """
    sizes = [one.rms_log2 / DECADE for one in matrices if one.kurtosis > NORMAL]
    middle = float(np.median(sizes)) if sizes else 0.0
    alike = sum(abs(size - middle) < COMMON for size in sizes)
    return middle if 2 * alike > len(matrices) else 0.0


LARGE_EMBEDDING = Rule(
    name="embedding-large",
    kind="exploding",
    warning=DROWNS,
    critical=3,
    measured="log10 of what enters a residual stream over all that its branches add together",
    reason="An initialization makes no embedding larger than PyTorch's, N(0, 1).",
    source="as for branches",
    find=_large,
)
SMALL_EMBEDDING = Rule(
    name="embedding-small",
    kind="exploding",
    warning=STEEP,
    critical=inf,
    measured="log10 of the gradient of a table smaller than any fresh one, over those of matrices "
    "in branches",
    reason="Those that are drawn small are of 0.006 and more.",
    source="as for branches",
    find=_small,
)
