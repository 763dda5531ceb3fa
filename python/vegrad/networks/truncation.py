"""How far back a gradient has to go: the window that a tolerance needs, and what each one loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, sqrt
from os import PathLike
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, FloatArray, as_count, as_fraction
from vegrad.arrays.files import plain
from vegrad.arrays.shown import shown
from vegrad.diagnosis.rules.memory import TOLD
from vegrad.flow.lags import Lags
from vegrad.flow.wording import exp2
from vegrad.networks.mlp import MLP
from vegrad.networks.network import check_network
from vegrad.networks.reading import first_nonfinite
from vegrad.networks.rnn import RNN
from vegrad.pictures import Figure, kept
from vegrad.reports import notebook
from vegrad.reports.truncation import draw, summary, text
from vegrad.theory.truncation import truncation_error

SCHEMES = ("sliding", "chunked")
# A window that is longer than this part of the whole saves little: where the gradient does not
# shrink on its way back, a longer sequence would need a longer one.
LONG = 0.5

Window = int | tuple[int, int]


@dataclass(frozen=True, eq=False)
class TruncationErrors:
    """The loss of each window: arrays with an entry for each that was measured, shortest first."""

    window: npt.NDArray[np.int64]
    """Steps that are gone back, or layers from the top."""
    every: npt.NDArray[np.int64]
    """Steps after which a window ends; 0 where there is but one."""
    error: FloatArray
    """‖truncated - full‖/‖full‖ of the whole gradient, all parameters together."""
    cosine: FloatArray
    """Of the angle between the two."""
    expected: FloatArray
    """The error by `vegrad.theory.truncation_error`, from the gain alone."""


@dataclass(frozen=True, eq=False)
class Truncation:
    """The smallest window that a tolerance allows, and what other windows lose."""

    noun: str
    """What is gone back: "steps" or "layers"."""
    total: int
    """T or L, the steps or layers of a full pass."""
    scheme: str
    """ "sliding", "chunked", "last" (the loss enters at the last step only) or "layers"."""
    tolerance: float
    """The relative error that is allowed."""
    window: Window | None
    """The smallest one, as `backward(truncation=…)` takes it; None if none is worth while.

    The error need not fall with every step that a window grows. All longer ones that were measured
    are within the tolerance; the next shorter one is not.
    """
    gain: float
    """The factor of the gradient's size a step or a layer, measured; nan if there is none."""
    errors: TruncationErrors
    """The curve of error and cosine over the window."""
    parts: Mapping[str, float]
    """The relative error of each parameter's gradient at the window, the largest first."""
    beyond: float = 0.0
    """The share of the targets that the data tell only by steps that the window leaves out; 0 if
    there is none, or that is not known."""

    @property
    def summary(self) -> str:
        """The result in a sentence or two."""
        return summary(self)

    def __repr__(self) -> str:
        return f"<Truncation: {self.summary}>"

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return notebook.truncation(self)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw error and cosine over the window; return matplotlib's figure.

        Args:
            path: a file to write, whose suffix gives the format.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the suffix is unknown.
            OSError: the file cannot be written; nothing half-written is left.
        """
        return kept(draw(self), path)

    def to_dict(self) -> dict[str, object]:
        """Return plain lists, numbers and names for JSON; nan is None."""
        errors = {name: column.tolist() for name, column in vars(self.errors).items()}
        result = vars(self) | {"errors": errors, "summary": self.summary}
        return {name: plain(entry) for name, entry in result.items()}


# Measurements ----------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Error and cosine of one window, and the error of each parameter."""

    error: float
    cosine: float
    parts: dict[str, float]


def truncation(
    network: MLP | RNN,
    x: npt.ArrayLike,
    target: npt.ArrayLike,
    tolerance: float = 0.1,
    *,
    lengths: npt.ArrayLike | None = None,
    state: object = None,
    scheme: str = "sliding",
    every: int | None = None,
) -> Truncation:
    """Find the smallest window whose gradient is within the tolerance of the full gradient.

    A recurrent network is measured at about 2 log2 T windows: the powers of two, and those between
    by bisection. Each takes a pass, or two if windows overlap. A multilayer perceptron needs one
    pass, since the layers above a cut keep their gradients; those below count as zero. The network
    is left as after a full `backward`.

    Args:
        network: a `vegrad.RNN` or `vegrad.MLP`.
        x: as for the network's `backward`; the gradient is that of the whole batch.
        target: as for `backward`.
        tolerance: the relative error that is allowed, from 0 to below 1.
        lengths: of the rows, for a recurrent network.
        state: where a recurrent network begins.
        scheme: for a loss at every step. "sliding": windows that overlap, so that each loss goes
            back far enough; "chunked": windows one after the other, in which half of the losses go
            back less than half of the window. The chunks' error falls only with the root of their
            length.
        every: k1, the steps after which a sliding window ends; half of the window if not given,
            which doubles the work of a full pass.

    Raises:
        TypeError, ValueError: as the network's `backward`; an unknown scheme; a full gradient that
            is zero or not finite, of which no part can be told.
    """
    tolerance = as_fraction("tolerance", tolerance)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, not {shown(scheme)}")
    check_network(network)
    if isinstance(network, MLP):
        if lengths is not None or state is not None or every is not None:
            raise TypeError("lengths, state and every are for recurrent networks only")
        return _of_layers(network, x, target, tolerance)
    return _Windows(network, x, target, lengths, state, scheme, every).result(tolerance)


def _of_layers(
    network: MLP, x: npt.ArrayLike, target: npt.ArrayLike, tolerance: float
) -> Truncation:
    network.backward(x, target)
    depth, gain = network.depth, network.flow.gain_log2
    full = _copied(network.gradients)
    largest, layer_of = _checked(full, x, target), {name: int(name.split(".")[1]) for name in full}
    squares = np.zeros(depth)
    for name, gradient in full.items():
        squares[layer_of[name]] += _square(gradient / largest)
    lost = np.cumsum([0.0, *squares])
    measured = {}
    for window in range(1, depth + 1):
        cut = depth - window
        error = sqrt(lost[cut] / lost[-1])
        parts = {name: float(layer_of[name] < cut) for name, array in full.items() if array.any()}
        measured[window] = Measured(error, sqrt(max(0.0, 1 - error**2)), parts)
    window = next(window for window in measured if measured[window].error <= tolerance)
    return _result("layers", depth, "layers", tolerance, window, _gain(gain), measured, lambda _: 1)


class _Windows:
    """Truncated passes of a recurrent network on one batch."""

    def __init__(
        self, network: RNN, x: npt.ArrayLike, target: npt.ArrayLike, lengths: object,
        state: object, scheme: str, every: int | None,
    ) -> None:  # fmt: skip
        self._network = network
        one_a_row = self._network.config["targets"] == "last" and lengths is None
        self._lags = Lags.of(np.asarray(x), np.asarray(target)) if one_a_row else None
        self._backward = partial(network.backward, x, target, lengths=lengths, state=state)
        self._scheme = "last" if network.config["targets"] == "last" else scheme
        if every is not None and self._scheme != "sliding":
            raise ValueError('every goes with scheme="sliding" and losses at every step')
        self._every = None if every is None else as_count("every", every, 1)
        self._full = self._gradients(None)
        self._gain = _gain(network.flow.passed_log2)
        self._largest = _checked(self._full, x, target)
        self._steps = int(network.flow.passed_log2.shape[1])
        if self._every is not None and self._every > self._steps:
            raise ValueError(f"every must be at most {self._steps} steps, not {every}")
        self._measured = {self._steps: Measured(0.0, 1.0, dict.fromkeys(self._full, 0.0))}

    def result(self, tolerance: float) -> Truncation:
        """Measure windows until the smallest is found."""
        window = self._search(tolerance)
        self._backward()
        measured = dict(sorted(self._measured.items()))
        found = _result("steps", self._steps, self._scheme, tolerance, window, self._gain, measured,
                        self._every_of)  # fmt: skip
        told = 0.0 if self._lags is None or found.window is None else self._lags.told(window)[1]
        return replace(found, beyond=told if told >= TOLD else 0.0)

    def _search(self, tolerance: float) -> int:
        """Return a window that is within the tolerance while the next shorter one is not.

        T counts as within; then comes the shortest power of two above which all are, and from
        there on bisection.
        """
        least = self._every or 1
        grid = [least << n for n in range(64) if least << n < self._steps]
        within = [self._measure(window).error <= tolerance for window in grid] + [True]
        grid.append(self._steps)
        place = len(grid) - 1
        while place and within[place - 1]:
            place -= 1
        high, low = grid[place], grid[place - 1] if place else least - 1
        while high - low > 1:
            middle = (low + high) // 2
            if middle >= least and self._measure(middle).error <= tolerance:
                high = middle
            else:
                low = middle
        return high

    def _every_of(self, window: int) -> int | None:
        """Return the steps after which a window of this length ends, None if there is but one."""
        if self._scheme == "sliding":
            return self._every or max(1, window // 2)
        return window if self._scheme == "chunked" else None

    def _measure(self, window: int) -> Measured:
        every = self._every_of(window)
        sliding = self._scheme == "sliding" and every is not None and window > 1
        got = self._gradients((every, window) if sliding and every is not None else window)
        full, dots, errors, sizes = self._full, 0.0, {}, {}
        own = 0.0
        for name, wanted in full.items():
            there, here = wanted / self._largest, got[name] / self._largest
            errors[name], sizes[name] = _square(here - there), _square(there)
            dots, own = dots + float(np.vdot(here, there)), own + _square(here)
        whole = sum(sizes.values())
        cosine = dots / sqrt(own * whole) if own else 0.0
        parts = {name: sqrt(errors[name] / sizes[name]) for name in full if sizes[name]}
        found = Measured(sqrt(sum(errors.values()) / whole), min(1.0, cosine), parts)
        self._measured[window] = found
        return found

    def _gradients(self, window: Window | None) -> dict[str, FloatArray]:
        self._backward(truncation=window)
        return _copied(self._network.gradients)


def _result(
    noun: str, total: int, scheme: str, tolerance: float, window: int, gain: float,
    measured: Mapping[int, Measured], every_of: Callable[[int], int | None],
) -> Truncation:  # fmt: skip
    every = [every_of(one) for one in measured]
    expected = []
    for one, step in zip(measured, every, strict=True):
        by_formula = truncation_error(gain, total, one, step) if isfinite(gain) else np.nan
        expected.append(0.0 if one == total else by_formula)
    errors = TruncationErrors(
        np.array(list(measured)),
        np.array([step or 0 for step in every]),
        np.array([one.error for one in measured.values()]),
        np.array([one.cosine for one in measured.values()]),
        np.array(expected),
    )
    small = window < total and (not gain >= 1 or window <= LONG * total)
    step = every_of(window)
    found: Window = (step, window) if scheme == "sliding" and step and window > 1 else window
    parts = sorted(measured[window].parts.items(), key=lambda part: -part[1])
    return Truncation(
        noun, total, scheme, tolerance, found if small else None, gain, errors,
        dict(parts) if small else {},
    )  # fmt: skip


def _gain(log2_gains: FloatArray) -> float:
    """Return the gain a step of the layer that passes on most, from (L, T) or (L,) of log2."""
    means = []
    for row in np.atleast_2d(log2_gains):
        known = row[~np.isnan(row)]
        if known.size:
            finite = known[np.isfinite(known)]
            means.append(float(finite.mean()) if finite.size else float(known[0]))
    return exp2(max(means)) if means else float("nan")


def _copied(gradients: Mapping[str, Array]) -> dict[str, FloatArray]:
    return {name: array.astype(np.float64) for name, array in gradients.items()}


def _checked(gradients: Mapping[str, FloatArray], x: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Return the largest size of an element, which is neither 0 nor without end.

    If it is, data that are not finite may be the reason.
    """
    largest = max(float(np.max(np.abs(array), initial=0.0)) for array in gradients.values())
    if not isfinite(largest) or largest == 0:
        what = "zero" if largest == 0 else "not finite"
        for name, given in (("x", x), ("target", target)):
            first = first_nonfinite(np.asarray(given))
            if first is not None:
                what += f", since {name}{list(first.index)} is {first.value}"
                break
        raise ValueError(f"the full gradient must be finite and not zero, but it is {what}")
    return largest


def _square(array: FloatArray) -> float:
    return float(np.vdot(array, array))
