"""Which operation made what is not finite: the walk through the graph of a pass.

Forward, values that are not finite are followed from the loss down to the first operation that made
one of inputs that were finite. Back, it is the operation nearest the loss to whose output a finite
gradient came, and from whose input none went on. What masks leave out never comes to the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf, isnan

from vegrad.flow.reading import HIDES, INPUT, Operation, Reading
from vegrad.flow.site import Site

DATA = {"nonfinite-input": "data", "nonfinite-target": "target"}
CUTS = {"detached", "no-derivative"}
LOGARITHMS = {"log", "log2", "log10", "log1p", "xlogy", "special_xlogy"}
OF_LOSS = {"empty-loss", "loss-normalizer"}  # causes that a division within the model has not


@dataclass(frozen=True)
class Culprit:
    """An operation that is to blame, and why."""

    operation: Operation
    place: int
    cause: str
    back: bool = False
    """True if the loss is finite, and only the gradient is not."""


def made_forward(reading: Reading) -> Culprit | None:
    """Return the operation that made what is not finite in the loss; None if none is to blame."""
    everything = reading.everything
    if reading.raised:
        reach = {n for n, one in enumerate(everything) if one.lost}
    else:
        reach = _lost_above(reading, [len(everything) - 1, len(reading.operations) - 1])
    blamed = [n for n in sorted(reach) if _is_edge(everything[n])]
    if not blamed:
        return None
    # A mean over nothing, though each of its terms would be lost too.
    empty = [n for n in blamed if everything[n].edge == "empty-loss"]
    place = empty[0] if empty and everything[blamed[0]].edge in DATA else blamed[0]
    return Culprit(everything[place], place, _cause(reading, place))


def made_back(reading: Reading) -> Culprit | None:
    """Return the operation from which the gradient is not finite any more; None if none is known.

    Where one of its inputs is not finite, the one that made that is to blame.
    """
    everything, takers = reading.everything, taken_by(reading)
    lost = {one.name for one in reading.parameters.values() if one.lost}
    suspects = list[Culprit]()
    for place in range(len(everything) - 1, -1, -1):
        one = everything[place]
        if isnan(one.delta_log2) or one.delta_log2 == inf:
            continue
        inputs = list(measured_below(reading, place))
        came = any(
            everything[n].delta_log2 == inf and not _is_lost_above(reading, n, takers)
            for n in inputs
        )
        if came or lost.intersection(one.parameters):
            unseen = [n for n in inputs if isnan(everything[n].delta_log2)]
            passed = next((n for n in unseen if _is_edge(everything[n])), place)
            suspects.append(_behind(reading, place if _is_edge(one) else passed))
    return next((one for one in suspects if one.operation.edge), next(iter(suspects), None))


def taken_by(reading: Reading) -> dict[int, list[int]]:
    """Return the operations that take what each one makes."""
    takers: dict[int, list[int]] = {}
    for place, one in enumerate(reading.everything):
        for below in one.below:
            takers.setdefault(below, []).append(place)
    return takers


def _is_lost_above(reading: Reading, place: int, takers: dict[int, list[int]]) -> bool:
    """Return True if a gradient that is not finite came to one of those that take this output."""
    everything, ahead, seen = reading.everything, [place], set[int]()
    while ahead:
        for n in takers.get(ahead.pop(), []):
            if everything[n].delta_log2 == inf:
                return True
            if isnan(everything[n].delta_log2) and n not in seen:
                seen.add(n)
                ahead.append(n)
    return False


def _behind(reading: Reading, place: int) -> Culprit:
    """Blame an operation below which the gradient is lost, or what made its input."""
    everything = reading.everything
    one = everything[place]
    lost = sorted(_lost_above(reading, one.below))
    origin = next((n for n in lost if _is_edge(everything[n])), place)
    blamed = everything[origin]
    if not _is_edge(blamed):
        beyond = "dtype-range" if reading.dtype == "float16" else "overflow"
        return Culprit(one, place, "domain-edge" if _decomposes(one) else beyond, True)
    cause = _cause(reading, origin)
    hidden = cause == "where-branch" or (blamed.lost and _is_hidden(reading, origin))
    if hidden and cause not in DATA and cause not in ("masked-row", "dtype-range"):
        cause = "where-branch"
    return Culprit(blamed, origin, cause, True)


def _decomposes(one: Operation) -> bool:
    """Return True of decompositions, whose derivative divides by differences of eigenvalues."""
    return one.kind.startswith("linalg") or one.kind in ("svd", "qr", "symeig", "pinverse")


def _is_hidden(reading: Reading, place: int) -> bool:
    """Return True if a where() or the like takes what an operation makes, or what is made of it."""
    above, everything = {place}, reading.everything
    for n in range(place + 1, len(everything)):
        if above.intersection(everything[n].below):
            if everything[n].kind in HIDES:
                return True
            if not everything[n].parameters:
                above.add(n)
    return False


def _is_edge(one: Operation) -> bool:
    """Return True if an operation may have made what is not finite."""
    if one.edge in ("norm-of-one", "masked-row"):
        return one.lost
    return bool(one.edge) and one.edge not in CUTS and one.edge != "zero-vectors"


def measured_below(reading: Reading, place: int) -> Iterator[int]:
    """Yield the operations that an input comes from, through those where no δ was measured."""
    everything, seen = reading.everything, set[int]()
    ahead = list(everything[place].below)
    while ahead:
        n = ahead.pop()
        if n == INPUT or n in seen:
            continue
        seen.add(n)
        yield n
        if isnan(everything[n].delta_log2):
            ahead += everything[n].below


def _lost_above(reading: Reading, tops: Iterable[int]) -> set[int]:
    """Return the operations whose values are not finite and come to some without a break."""
    everything = reading.everything
    ahead = [n for n in tops if n != INPUT]
    loss, found = len(reading.operations) - 1, set[int]()
    while ahead:
        n = ahead.pop()
        one = everything[n]
        if n in found or not (one.lost or n == loss):
            continue
        found.add(n)
        ahead += [below for below in one.below if below != INPUT]
    return found


def _cause(reading: Reading, place: int) -> str:
    """Return the cause of an edge, by where it is: in the loss, or within the model."""
    cause, one = reading.everything[place].edge, reading.everything[place]
    within = place >= len(reading.operations)
    objective = within or (cause in OF_LOSS | {"domain-edge"} and is_objective(reading, place))
    if cause == "domain-edge" and objective and (within or one.kind in LOGARITHMS):
        return "loss-domain"
    return "zero-division" if cause in OF_LOSS and not objective else cause


def is_objective(reading: Reading, place: int) -> bool:
    """Return True if no operation with parameters stands between one and the loss."""
    above, everything = {place}, reading.everything
    for n in range(place + 1, len(everything)):
        if above.intersection(everything[n].below):
            if everything[n].parameters:
                return False
            above.add(n)
    return True


def site_of(reading: Reading, place: int) -> Site:
    """Return the site of an operation: a parameter, a module, the loss, or the model."""
    one = reading.everything[place]
    if place >= len(reading.operations) - 1:
        return Site("loss", "loss")
    if one.parameters:
        return Site("parameter", one.parameters[0])
    return Site("module", one.name) if one.name else Site("model", "the model")
