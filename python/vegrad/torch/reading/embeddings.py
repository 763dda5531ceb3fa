"""What enters a residual stream, as an embedding does, and drowns all branches that are to come.

None of them is off then, and layer norms hide it from most gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, log10

import numpy as np
from torch import Tensor

from vegrad.flow.wording import DECADE, exp2, times
from vegrad.torch.models import rms
from vegrad.torch.reading import branches as single
from vegrad.torch.reading.branches import CRITICAL, DROWNS, OFF, Branch, OfBranch
from vegrad.torch.reading.trace import Trace

LARGE = 0.7  # decades of an embedding's size: none is drawn larger than PyTorch's, N(0, 1)
SMALL = -3.0  # decades: those that are drawn small are of 0.006 and more
STEEP = 1.5  # decades between the gradient of a table and those of matrices in branches
COMMON = 0.04  # decades within which sizes agree
NORMAL = 2.4  # kurtosis between that of uniform numbers, 1.8, and of normal ones, 3


def findings_of(
    trace: Trace, parameters: dict[str, Tensor], gradients: dict[str, float]
) -> list[OfBranch]:
    """What is wrong with branches, then with what they are added to.

    Args:
        trace: of a forward pass.
        parameters: of the model, by name.
        gradients: log2 of the norms of their gradients, of some.

    What enters a stream drowns its branches if it is 10 times as large as all they add together,
    and a parameter that made it is larger than any initialization makes it: small branches alone
    are fresh, after embeddings ~ N(0, 1) or with a LayerScale. So is an embedding that drowns those
    it is added to. One that is smaller than any begins is found by its gradient, which
    normalizations make as much larger.
    """
    found = single.findings_of(trace.branches, parameters, gradients)
    known = {one.parameter for one in found}
    maps = {f"{layer.name}.weight" for layer in trace.layers} - trace.tables
    for stream in _streams(trace.branches):
        names = [name for name in stream[0].below if name in parameters]
        off = [*_large(names, stream, parameters, maps),
               *_small(names, stream, parameters, maps, gradients)]  # fmt: skip
        found += [one for one in off if one.parameter not in known]
        known |= {one.parameter for one in off}
    return sorted(found, key=lambda finding: finding.kind)  # exploding, vanishing


def _streams(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Branches that are added to the same stream, until something is made of all of it."""
    stream: list[Branch] = []
    for branch in branches:
        if branch.below and stream:
            yield stream
            stream = []
        stream.append(branch)
    if stream:
        yield stream


def _large(
    names: Sequence[str], stream: Sequence[Branch], parameters: dict[str, Tensor], maps: set[str]
) -> list[OfBranch]:
    """The parameter that is furthest beyond any fresh one, where it drowns something."""
    beyond = {name: _beyond(name, parameters, maps) for name in names}
    worst = max(names, key=lambda name: beyond[name], default="")
    if not worst or beyond[worst] <= 0:
        return []
    evidence = {"factor": _factor(worst, names, parameters, maps)}
    entering, sizes = stream[0].stream, np.array([branch.size for branch in stream])
    over = (entering - float(np.logaddexp2.reduce(2.0 * sizes)) / 2.0) / DECADE
    later = names[names.index(worst) + 1 :]  # a normalization among them takes the size away
    if DROWNS <= over < inf and not any(_scales(name, parameters) for name in later):
        count = (
            "the branch adds" if len(stream) == 1 else f"all {len(stream)} branches together add"
        )
        message = f"what {worst} makes enters the residual stream {times(over * DECADE)} as large "
        message += f"as what {count}: they are drowned"
        severity, evidence["stream"] = "critical" if over >= CRITICAL else "warning", 10.0**over
        return [_finding(severity, message, worst, [*names, *_within(stream)], evidence)]
    beside = _tables(names, parameters, maps)
    least = min(beside, key=beside.__getitem__, default=worst)
    if worst not in beside or beside[worst] - beside[least] < OFF:
        return []
    apart = times((beside[worst] - beside[least]) * DECADE)
    message = f"{worst} is {apart} as large as {least}, to which it is added: that is drowned"
    return [_finding("warning", message, worst, names, evidence)]


def _within(stream: Sequence[Branch]) -> Iterator[str]:
    for branch in stream:
        yield from branch.trail


def _tables(
    names: Sequence[str], parameters: dict[str, Tensor], maps: set[str]
) -> dict[str, float]:
    """Sizes of those that are looked up or added, not multiplied with; not of zeros."""
    sizes = {name: _size(parameters[name]) for name in names
             if name not in maps and parameters[name].ndim > 1}  # fmt: skip
    return {name: size for name, size in sizes.items() if isfinite(size)}


def _small(
    names: Sequence[str], stream: Sequence[Branch], parameters: dict[str, Tensor], maps: set[str],
    gradients: dict[str, float],
) -> list[OfBranch]:  # fmt: skip
    """Tables smaller than any fresh one, where their gradients are as much too large."""
    others = [gradients[name] for name in _within(stream) if name in gradients]
    others = [size for size in others if isfinite(size)]
    found = []
    for name, size in _tables(names, parameters, maps).items():
        apart = gradients.get(name, -inf) - float(np.median(others)) if others else -inf
        if size >= SMALL or not STEEP * DECADE <= apart < inf:
            continue
        message = f"{name} is so small that it gets {times(apart)} the gradient of matrices in the "
        message += "branches above it, as what it makes is divided by its size there"
        factor = _factor(name, names, parameters, maps)
        found.append(_finding("warning", message, name, names,
                              {"gradient": exp2(apart), "factor": factor}))  # fmt: skip
    return found


def _finding(
    severity: str, message: str, name: str, names: Sequence[str], evidence: dict[str, float]
) -> OfBranch:
    advice = f"multiply {name} by {evidence['factor']:.3g}."
    return OfBranch("exploding", severity, (), message, advice, evidence, "weights", name,
                    tuple(names))  # fmt: skip


def _beyond(name: str, parameters: dict[str, Tensor], maps: set[str]) -> float:
    """Decades by which a parameter is larger than any that is fresh."""
    own = parameters[name]
    if name in maps:
        others = [_through(parameters[one]) for one in maps if one in parameters and one != name]
        others = [size for size in others if isfinite(size)]
        return _through(own) - float(np.median(others)) - OFF if others else -inf
    if own.ndim > 1:
        return _size(own) - LARGE
    return _size(own) - OFF if _scales(name, parameters) else -inf  # they begin as 1


def _scales(name: str, parameters: dict[str, Tensor]) -> bool:
    """Whether it is a normalization's."""
    return parameters[name].ndim == 1 and name.endswith("weight")


def _factor(
    name: str, beside: Sequence[str], parameters: dict[str, Tensor], maps: set[str]
) -> float:
    """What makes it as large as it looks to have been drawn."""
    own = parameters[name]
    matrices = [parameters[one] for one in maps if one in parameters and one != name]
    if name in maps:
        return 10.0 ** (float(np.median([_through(one) for one in matrices])) - _through(own))
    if own.ndim < 2:
        return 10.0 ** (-_size(own))
    tables = [size for one, size in _tables(beside, parameters, maps).items()
              if one != name and SMALL <= size <= LARGE]  # fmt: skip
    return 10.0 ** ((float(np.median(tables)) if tables else _drawn(matrices)) - _size(own))


def _drawn(matrices: Sequence[Tensor]) -> float:
    """log10 of the size of an embedding in a model with these matrices.

    Who draws most of them from one normal distribution, whatever their shapes, does so with
    embeddings too; else these are PyTorch's.
    """
    sizes = [_size(one) for one in matrices if _kurtosis(one) > NORMAL]
    middle = float(np.median(sizes)) if sizes else 0.0
    alike = sum(abs(size - middle) < COMMON for size in sizes)
    return middle if 2 * alike > len(matrices) else 0.0


def _kurtosis(matrix: Tensor) -> float:
    values = matrix.detach().double()
    return float(values.pow(4).mean() / values.square().mean() ** 2)


def _size(parameter: Tensor) -> float:
    size = rms(parameter)
    return log10(size) if 0 < size < inf else -inf


def _through(matrix: Tensor) -> float:
    return _size(matrix) + log10(max(matrix[0].numel(), 1)) / 2
