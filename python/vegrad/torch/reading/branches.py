"""Branches of a residual stream, x + f(x): what each adds, and which one drowns the others.

Behind a normalization nothing is too large: a branch that writes thousands of times what the others
do is divided by its own size, and with it the gradient of all that comes later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log2, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vegrad.flow.finding import Finding
from vegrad.flow.wording import DECADE, exp2, times
from vegrad.torch.models import rms

OFF = 1.5  # decades beyond branches that are alike: a bias that they share hides some of it
DROWNS = 1.0  # decades beyond the stream: what came before is a tenth of what goes on
CRITICAL = 3.0
CLOSED = -3.0  # decades below branches that are alike
FAINT = -2.0  # decades below the stream: what all branches add where they are to begin small
ALIKE = 2  # so many others, at least, are compared with; else all others


@dataclass(frozen=True)
class Way:
    """Where a tensor comes from."""

    bases: frozenset[int] = frozenset()
    """Numbers of inputs and of sums of a stream and a branch."""
    trail: tuple[str, ...] = ()
    """Names of the parameters that it went through since."""


@dataclass(frozen=True)
class Branch:
    """One sum x + f(x); sizes are root mean squares of a row of features, the median of all rows.

    A mean of all rows would be that of the few that a trained transformer makes thousands of times
    larger than the others, where it has no use for them (Sun et al. 2024, arXiv:2402.17762).
    """

    trail: tuple[str, ...]
    """Names of the parameters of f, in their order."""
    size: float
    """log2, of f(x)."""
    stream: float
    """log2, of x."""
    varies: float
    """log2, of f(x) less its mean: of what it makes of x, biases left out."""
    below: tuple[str, ...] = ()
    """Names of the parameters that made x, since the last sum."""

    @property
    def kind(self) -> tuple[str, ...]:
        """The same of branches that are alike."""
        return tuple(_kind(name) for name in self.trail)


@dataclass
class Branches:
    """Follows a forward pass, function by function."""

    names: dict[int, str]
    """Of the parameters, by id."""
    found: list[Branch] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    """Names of embeddings: what they add to each other is no branch, but enters the stream."""

    def __post_init__(self) -> None:
        self._ways: dict[int, Way] = {}
        self._matrices: set[str] = set()
        self._count = 0

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Tensors that the model is given."""
        for one in inputs:
            self._ways[id(one)] = self._new()

    def way(self, tensor: Tensor) -> Way:
        """Where it comes from."""
        name = self.names.get(id(tensor))
        if name is None:
            return self._ways.get(id(tensor), Way())
        if tensor.ndim > 1:
            self._matrices.add(name)
        return Way(frozenset(), (name,))

    def of(self, tensors: Sequence[Tensor]) -> Way:
        """Where what is made of these comes from."""
        ways = [self.way(one) for one in tensors]
        trail = dict.fromkeys(name for way in ways for name in way.trail)
        return Way(frozenset[int]().union(*(way.bases for way in ways)), tuple(trail))

    def added(self, one: Any, other: Any) -> Way | None:
        """Where x + f(x) comes from, and None of other sums; called before it is made."""
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
            return None
        ways = sorted((self.way(one), self.way(other)), key=lambda way: len(way.trail))
        below, above = ways
        stream, branch = (one, other) if self.way(one) == below else (other, one)
        own = tuple(name for name in above.trail if name not in below.trail)
        matrices = self._matrices - self.tables
        if not below.bases or not below.bases <= above.bases or matrices.isdisjoint(own):
            return None
        passed = set(below.trail) <= set(above.trail)
        if passed or matrices & set(below.trail):  # or by way of a map, as where widths change
            sizes = _size(branch), _size(stream), _size(branch, True)
            self.found.append(Branch(own, *sizes, below.trail))
        return self._new() if passed else None

    def made(self, tensor: Tensor, way: Way) -> bool:
        """Notes a result; whether there is anything to note, and the tensor must live on."""
        if way.bases or way.trail:
            self._ways[id(tensor)] = way
        return bool(way.bases or way.trail)

    def _new(self) -> Way:
        self._count += 1
        return Way(frozenset([self._count]))


def _size(tensor: Tensor, centred: bool = False) -> float:
    values = tensor.detach()
    if values.ndim < 2 or not values.numel() or not values.is_floating_point():
        return -inf
    rows = values.flatten(1) if values.ndim == 4 else values.flatten(0, -2)  # images, or tokens
    if centred:
        rows = rows - rows.mean(0)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    size = float(norms.median()) / sqrt(rows.shape[1])
    return log2(size) if 0 < size < inf else -inf if size == 0 else inf


def _kind(name: str) -> str:
    """Without the numbers of blocks: layers.3.linear2.weight is a layers.#.linear2.weight."""
    *path, module, parameter = ("." + name).split(".")
    module = "#" if module.isdigit() else module
    return ".".join([*(re.sub(r"\d+", "#", one) for one in path), module, parameter])


# What is wrong with them -----------------------------------------------------------------------


@dataclass(frozen=True)
class OfBranch(Finding):
    """A finding about a branch: `parameter` times evidence["factor"] is as others are."""

    parameter: str = ""
    branch: tuple[str, ...] = ()
    """Names of the parameters of the branch."""


def findings_of(
    branches: Sequence[Branch], parameters: dict[str, Tensor], gradients: dict[str, float]
) -> list[OfBranch]:
    """Branches that drown the stream, then those that add nothing.

    Args:
        branches: of a forward pass.
        parameters: of the model, by name.
        gradients: log2 of the norms of their gradients, of some.

    A branch drowns the stream if it adds 10 times what it is added to, and 30 times what others
    like it add; it is closed if it adds a thousandth of what they do, and not exactly nothing,
    which is how some begin. In 114 fresh models (GPT-2, LLaMA, BERT, ViT, ResNet; 4 to 48 blocks)
    no branch that was larger than its stream added more than 1.8 times what others like it did, and
    none less than 0.2 times.
    """
    found: dict[str, OfBranch] = {}
    drowned = False
    for place, branch in enumerate(branches):
        alike = _alike(branch, branches)
        others = alike if len(alike) >= ALIKE else [one for one in branches if one is not branch]
        off, over = _beyond("size", branch, others), (branch.size - branch.stream) / DECADE
        if off >= OFF and (over >= DROWNS or drowned):
            drowned = True
        else:
            off = _beyond("varies", branch, alike) if len(alike) >= ALIKE else 0.0
            if off > CLOSED:
                continue
        one = _finding(place, branches, off, over, parameters, gradients)
        found.setdefault(one.parameter, one)
    return sorted(found.values(), key=lambda finding: finding.kind)  # exploding, vanishing


def faint(branches: Sequence[Branch]) -> set[str]:
    """Parameters of branches, if these add little by design (LayerScale, ReZero); else none.

    Their gradients are as much smaller than those of what stands below and above all branches.
    """
    over = [one.size - one.stream for one in branches if isfinite(one.stream)]
    if not over or np.median(over) > FAINT * DECADE:
        return set()
    return {name for one in branches for name in one.trail}


def _alike(branch: Branch, branches: Sequence[Branch]) -> list[Branch]:
    return [one for one in branches if one is not branch and one.kind == branch.kind]


def _beyond(what: str, branch: Branch, others: Sequence[Branch]) -> float:
    """Decades between a size and the median of the others'; 0 where it cannot be said."""
    own, sizes = getattr(branch, what), [getattr(one, what) for one in others]
    sizes = [size for size in sizes if isfinite(size)]
    return float(own - np.median(sizes)) / DECADE if sizes and isfinite(own) else 0.0


def _finding(
    place: int,
    branches: Sequence[Branch],
    off: float,
    over: float,
    parameters: dict[str, Tensor],
    gradients: dict[str, float],
) -> OfBranch:
    branch = branches[place]
    name, factor = _to_blame(branch, off, parameters)
    evidence = {"branch": 10.0**off, "stream": 10.0**over, "factor": factor}
    message = f"the branch with {name} adds {times(off * DECADE)} what others like it add"
    advice = f"multiply {name} by {factor:.3g}."
    if off < 0:
        within = _within(branch, branches, gradients)
        if within is not None:
            message += (
                f", and the weights before its last get {times(within)} the gradient of theirs"
            )
            evidence["gradient"] = exp2(within)
        advice = f"multiply {name} by {factor:.3g}, unless it is meant to begin closed."
        return OfBranch("vanishing", "warning", (), message, advice, evidence, "weights", name,
                        branch.trail)  # fmt: skip
    message += f" and {times(over * DECADE)} what it is added to: all before it is drowned"
    above = _above(place, branches, gradients)
    if above is not None:
        message += f", and layers after it get {times(above)} the gradient of those before"
        evidence["gradient"] = exp2(above)
    severity = "critical" if over >= CRITICAL else "warning"
    return OfBranch("exploding", severity, (), message, advice, evidence, "weights", name,
                    branch.trail)  # fmt: skip


def _to_blame(branch: Branch, off: float, parameters: dict[str, Tensor]) -> tuple[str, float]:
    """The parameter of the branch that is furthest off, that way, and its factor.

    If none explains half of it, the last matrix is named, whose factor makes up for it too.
    """
    known = [name for name in branch.trail if name in parameters]
    last = [name for name in known if parameters[name].ndim > 1][-1]
    away = {name: apart(name, parameters) for name in known}
    worst = max(away, key=lambda name: away[name] / off)
    if away[worst] / off < 0.5:
        return last, 10.0**-off
    alike = sum(_kind(name) == _kind(worst) for name in parameters) > ALIKE
    return worst, 10.0 ** -(away[worst] if alike else off)


def furthest(names: Sequence[str], parameters: dict[str, Tensor]) -> tuple[str, float]:
    """Of some parameters the one that is furthest from its kin, and the factor that it lacks."""
    away = {name: apart(name, parameters) for name in names}
    worst = max(away, key=lambda name: abs(away[name]))
    return worst, 10.0 ** -away[worst]


def apart(name: str, parameters: dict[str, Tensor]) -> float:
    """Decades between a parameter and those of the same name but for numbers.

    Where these are too few, a matrix is compared with all, by what it makes of an input of size 1,
    and a normalization's weights with those of all others.
    """
    own = parameters[name]
    like = {n: one for n, one in parameters.items()
            if n != name and (one.ndim > 1) == (own.ndim > 1)}  # fmt: skip
    kin = [one for n, one in like.items() if _kind(n) == _kind(name)]
    among = [size for size in map(_rms_log2, kin) if isfinite(size)]
    size = _rms_log2(own)
    if len(among) < ALIKE:
        if own.ndim < 2 and not name.endswith("weight"):
            return 0.0
        others = [one for n, one in like.items() if own.ndim > 1 or n.endswith("weight")]
        measure = _through if own.ndim > 1 else _rms_log2
        among = [one for one in map(measure, others) if isfinite(one)]
        size = measure(own)
    return (size - float(np.median(among))) / DECADE if among and isfinite(size) else 0.0


def _through(matrix: Tensor) -> float:
    return _rms_log2(matrix) + log2(max(matrix[0].numel(), 1)) / 2


def _within(
    branch: Branch, branches: Sequence[Branch], gradients: dict[str, float]
) -> float | None:
    """log2 of the gradient of its first matrix, over those of branches that are alike."""

    def first(one: Branch) -> float:
        known = [gradients[name] for name in one.trail if name in gradients]
        return known[0] if len(known) > 1 else -inf

    others = [first(one) for one in _alike(branch, branches)]
    others = [size for size in others if isfinite(size)]
    return first(branch) - float(np.median(others)) if others and isfinite(first(branch)) else None


def _above(place: int, branches: Sequence[Branch], gradients: dict[str, float]) -> float | None:
    """log2 of the gradients of matrices in the branches above one, over those in the ones below."""

    def middle(some: Sequence[Branch]) -> float:
        sizes = [gradients[name] for one in some for name in one.trail if name in gradients]
        sizes = [size for size in sizes if isfinite(size)]
        return float(np.median(sizes)) if sizes else inf

    apart = middle(branches[place + 1 :]) - middle(branches[:place])
    return apart if isfinite(apart) else None


def _rms_log2(parameter: Tensor) -> float:
    size = rms(parameter)
    return log2(size) if 0 < size < inf else -inf
