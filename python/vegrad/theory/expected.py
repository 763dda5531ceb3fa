"""The flow that theory expects of a network at initialization, and how far chance moves it.

`propagation` takes the signal up through the layers and `backpropagation` takes the gradient back
down; this module looks at the data first and then turns both into what a measurement of the flow
would show, with a standard deviation for each number. A diagnosis compares the two: a layer that is
many deviations off is not what its initialization makes it.

It must guarantee honest spreads: nineteen out of twenty measurements lie within two of them, for
any width, depth, activation and data. Norms of random products are log-normal (Hanin & Nica 2020,
arXiv:1812.05994), so that everything is done on logarithms. Chance averages out over rows as far as
the rows are unlike, so that each row's size and the correlations between rows go through the layers
too (Cho & Saul 2009 has the map for rectifiers; here it is that of any activation). The means are
those of mean-field theory with each layer's own widths (Schoenholz et al. 2017, arXiv:1611.01232;
Yang & Schoenholz 2017, arXiv:1712.08969, for skip connections).

It leaves out the targets, of which it knows nothing but the loss. Theory takes the gradient for
independent of the signal. It is not, because the loss depends on the outputs; this is a term of
order 1/n, and is followed as the part of D = ∂loss/∂h that lies along h, with a spread of its own
for what the targets might be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, log
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray, as_array
from vegrad.theory.backpropagation import BEYOND, descend, gains
from vegrad.theory.gaussian import check_positive
from vegrad.theory.propagation import Data, Layer, Shape, forward, through

LN2 = log(2.0)
ROWS = 256  # the most rows whose sizes and likeness are looked at
GROUPS = 24  # of pairs of rows, sorted by how much alike they are


class Configured(Protocol):
    """A network with the config of a `vegrad.MLP`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Arguments of the constructor."""


class HasGains(Protocol):
    """A measured flow."""

    @property
    def gain_log2(self) -> FloatArray:
        """log2 ‖δ_l‖/‖δ_{l+1}‖: (L - 1,)."""


@dataclass(frozen=True)
class ExpectedFlow:
    """The `Flow` of a network whose weights are as large as their initialization makes them.

    Float64 arrays with one entry a layer, the layer nearest the input first; the gains have one
    entry fewer. Spreads are standard deviations in log2 over the draws of the weights: nineteen
    out of twenty measurements lie within two of them.
    """

    activation_rms: FloatArray
    """Root mean square of the layer's output, the geometric mean over draws."""
    activation_rms_std: FloatArray
    """Spread of log2 activation_rms."""
    delta_log2: FloatArray
    """log2 ‖δ_l‖/‖δ_L‖, relative to the last layer, whose δ the loss decides; 0 there."""
    delta_log2_std: FloatArray
    """Spread of delta_log2, taking the gains as independent."""
    gain_log2: FloatArray
    """log2 ‖δ_l‖/‖δ_{l+1}‖."""
    gain_log2_std: FloatArray
    """Spread of gain_log2."""

    @classmethod
    def of_draws(cls, outputs: Sequence[FloatArray], deltas: Sequence[FloatArray]) -> ExpectedFlow:
        """Return mean and spread over networks whose weights are drawn alike.

        Args:
            outputs: of each, log2 of the root mean squares of its layers' outputs (L,).
            deltas: of each, log2 ‖δ_l‖ (L,).
        """
        with np.errstate(invalid="ignore"):
            sizes = np.array([outputs, [one - one[-1] for one in deltas]])
            rms, delta, gains = *sizes, sizes[1, :, :-1] - sizes[1, :, 1:]
            means = 2.0 ** rms.mean(axis=0), delta.mean(axis=0), gains.mean(axis=0)
            return cls(means[0], _spread(rms), means[1], _spread(delta), means[2], _spread(gains))

    def deviations(self, flow: HasGains) -> FloatArray:
        """Return by how many spreads each measured gain differs from the expected one, (L - 1,).

        By chance one in twenty lies beyond ±2, and hardly any beyond ±4.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            apart: FloatArray = (flow.gain_log2 - self.gain_log2) / self.gain_log2_std
        return apart

    def __repr__(self) -> str:
        return f"<ExpectedFlow of {len(self.delta_log2)} layers>"


def expected_flow(network: Configured, x: object = None, *, input_rms: float = 1.0) -> ExpectedFlow:
    """Return the flow that theory expects of `network` at initialization, from its config alone.

    Args:
        network: a `vegrad.MLP`, of which only the config is read (sizes, activation, output, init
            with its sigmas, residual, norm, loss).
        x: the inputs (B, I) that will be measured. Their size, number and likeness then narrow the
            spreads, as chance averages out over unlike rows. Without them the spreads are those of
            one row, or of many that move alike.
        input_rms: root mean square of the inputs; used if there is no x.

    Raises:
        TypeError, ValueError: x is not a finite (B, I) array that has anything but zeros; input_rms
            is not a positive number.
    """
    config = network.config
    data = _data(x, input_rms, config["sizes"][0])
    return _flow(forward(config, data), config["loss"], data)


def flow_through(shapes: Sequence[Shape], loss: str, x: object) -> ExpectedFlow:
    """Return the `expected_flow` of layers of these shapes, of any network, on the inputs x (B, I).

    Raises:
        TypeError, ValueError: as `expected_flow`.
    """
    data = _data(x, 1.0, shapes[0].inputs)
    return _flow(through(shapes, data), loss, data)


def _flow(layers: list[Layer], loss: str, data: Data) -> ExpectedFlow:
    found = gains(descend(layers, loss, data), data)
    gain = np.array([one.mean for one in found]) / (2.0 * LN2)
    variance = np.array([one.variance for one in found]) / (4.0 * LN2**2)

    def summed_from_the_top(values: FloatArray) -> FloatArray:
        return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])

    with np.errstate(over="ignore"):
        rms = np.exp(np.array([layer.log_power for layer in layers]) / 2.0)
    beyond = BEYOND / np.array([layer.shape.outputs for layer in layers])
    rms_variance = np.array([layer.power_variance for layer in layers]) + beyond**2
    return ExpectedFlow(
        activation_rms=rms,
        activation_rms_std=np.sqrt(rms_variance) / (2.0 * LN2),
        delta_log2=summed_from_the_top(gain),
        delta_log2_std=np.sqrt(summed_from_the_top(variance)),
        gain_log2=gain,
        gain_log2_std=np.sqrt(variance),
    )


def _data(x: object, input_rms: float, inputs: int) -> Data:
    input_rms = check_positive("input_rms", input_rms)
    if x is None:
        return Data(
            log_powers=np.array([2.0 * log(input_rms)]),
            rows=1,
            alike=np.ones(1),
            cosines=np.ones((1, 1)),
        )
    rows = as_array(x, "x").astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != inputs or not len(rows):
        raise ValueError(f"x must be of shape (B, {inputs}), not {rows.shape}")
    power = float(np.mean(rows**2))
    if not (isfinite(power) and power > 0):
        raise ValueError(f"x must be finite and not all zero, got a mean square of {power}")
    some = rows[:: -(-len(rows) // ROWS)]  # every k-th row, so that at most ROWS are left
    squares = np.mean(some**2, axis=1)
    unit = some / np.sqrt(np.where(squares > 0, squares, 1.0) * inputs)[:, None]
    cosines = unit @ unit.T
    np.minimum(np.maximum(cosines, -1.0, out=cosines), 1.0, out=cosines)  # but for rounding
    # Groups are means over thousands of pairs, which float32 sorts in half the time.
    pairs = np.sort(cosines[_pairs(len(some))].astype(np.float32))
    groups = max(min(GROUPS, len(pairs)), 1)
    first = len(pairs) * np.arange(groups) // groups
    counts = np.diff(first, append=len(pairs))
    alike = np.add.reduceat(pairs, first, dtype=np.float64) / counts if len(pairs) else np.ones(1)
    return Data(
        log_powers=np.log(np.maximum(squares, 1e-6 * power)),
        rows=len(rows),
        alike=alike,
        cosines=cosines,
    )


@cache
def _pairs(rows: int) -> npt.NDArray[np.bool_]:
    """Return True for each pair of different rows once: (rows, rows)."""
    return np.triu(np.ones((rows, rows), bool), 1)


def _spread(values: FloatArray) -> FloatArray:
    """Return half of the width about the mean in which 19 of 20 further drawings lie.

    The quantile of Student's t is expanded in that of the normal distribution, 1.96.
    """
    degrees, z = len(values) - 1, 1.96
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    wider: FloatArray = values.std(axis=0, ddof=1) * t / 2.0 * (1.0 + 1.0 / len(values)) ** 0.5
    return wider
