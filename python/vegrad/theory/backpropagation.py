"""The gradient on its way down through the layers of `propagation`.

`descend` follows D = ∂loss/∂h of every layer, from the last one down: which rows it lies in, how
alike the rows' gradients are, and how much of it lies along the signal h. From these `gains` has
the mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖² for every two neighbours, δ being ∂loss/∂z.

It must guarantee that nothing overflows: sizes are logarithms, or relative to the layer above. It
leaves out the targets (see `expected`) and what is of higher order in 1/n.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, log, sqrt
from typing import NamedTuple

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.theory.propagation import Data, Layer, average, log_or_less, mean, within_one

UNKNOWN = 0.4  # standard deviation of the part of ∂loss/∂h along h, relative to what is assumed
BEYOND = 0.5  # standard deviation, in units of 1/n, of what the leading order leaves out
# The share of ‖∂loss/∂z‖² along outputs z of variance q is most · q/(q + half).
ALONG_OUTPUTS = {  # loss: most, half
    "mse": (1.0, 1.0),
    "binary_cross_entropy": (0.32, 1.3),
    "cross_entropy": (0.1, 1.0),
}


class Gain(NamedTuple):
    """Growth of ‖δ‖² from layer l + 1 to the layer l below: ln ‖δ_l‖²/‖δ_{l+1}‖² over draws."""

    mean: float
    variance: float


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The gradient D = ∂loss/∂h of a layer, but for its size."""

    layer: Layer
    shares: FloatArray
    """Share of each row in ‖D‖²: (R,)."""
    alike: FloatArray
    """Cosines of two rows' D, as root mean squares: (K,)."""
    aligned: float
    """Share of ‖D‖² that lies along h."""
    surplus: float | None = None
    """In the last layer, where δ depends on W: the relative excess of ‖Wᵀδ‖² that comes of it."""

    @cached_property
    def slope_of_rows(self) -> FloatArray:
        """‖δ‖²/‖D‖² of each row, relative to that of all rows together: (R,)."""
        return np.exp(self.layer.log_slopes - self.log_slope)

    @cached_property
    def log_slope(self) -> float:
        """The ln ‖δ‖²/‖D‖² of all rows together, which the slopes φ′ decide."""
        most = float(self.layer.log_slopes.max())
        return most + log(float(self.shares @ np.exp(self.layer.log_slopes - most)))

    @cached_property
    def kept(self) -> FloatArray:
        """Share of each row in ‖δ‖²: (R,)."""
        return self.shares * self.slope_of_rows

    @cached_property
    def alike_square(self) -> float:
        """The mean square of alike."""
        return mean(self.alike**2)

    @cached_property
    def slope_covariance(self) -> float:
        """The mean over pairs of rows of the covariance that the units' slopes give their ‖δ‖²."""
        return mean((1.0 + 2.0 * self.alike**2) * self.layer.slope_covariances)

    @property
    def excess(self) -> float:
        """Share of ‖D‖² along h, less the share along any other direction."""
        return self.aligned - (1.0 - self.aligned) / max(self.layer.shape.outputs - 1, 1)

    @cached_property
    def favour(self) -> float:
        """Factor by which the layer's slopes let more of ‖D‖² through than E φ′²."""
        return max(1.0 + self.excess * self.layer.alignment.bonus, 1e-3)

    @cached_property
    def grown(self) -> float:
        """‖Wᵀδ‖²/‖D‖², if D were independent of the signal."""
        shape = self.layer.shape
        return shape.inputs * shape.weight_variance * exp(min(self.log_slope, 50.0))

    @property
    def noise(self) -> float:
        """Part of `total` that comes through the weights at random."""
        return self.grown * self.favour

    @property
    def held(self) -> float:
        """Share of ‖δ‖² that Wᵀ is sure to pass on, being orthogonal."""
        shape = self.layer.shape
        return min(1.0, shape.inputs / shape.outputs) if shape.orthogonal else 0.0

    @cached_property
    def gained(self) -> float:
        """‖D‖² along h of the layer below, relative to this layer's ‖D‖²."""
        shape, alignment = self.layer.shape, self.layer.alignment
        if self.surplus is not None:
            return self.noise * (1.0 / shape.inputs + self.surplus)
        rest = (1.0 - self.aligned) / shape.outputs
        return self.aligned * alignment.along + rest * alignment.across

    @cached_property
    def total(self) -> float:
        """‖D‖² of the layer below, along its h and across, relative to this layer's ‖D‖²."""
        shape, straight, noise = self.layer.shape, self.layer.alignment.straight, self.noise
        drawn = self.gained + noise * (1.0 - 1.0 / shape.inputs)
        if not shape.skip:
            return drawn + self.held * (noise - drawn)
        # What the skip connection brings along h is a part of `gained` already.
        counted = (1.0 - self.aligned) * max(1.0 - straight, 0.0) / shape.outputs
        return drawn + 1.0 - self.aligned * straight - counted

    @property
    def below(self) -> FloatArray:
        """Share of each row in ‖D‖² of the layer below: (R,)."""
        shape = self.layer.shape
        if not shape.weight_variance:
            return self.shares
        weights = log(shape.inputs * shape.weight_variance) + self.layer.log_slopes
        grown = np.logaddexp(0.0, weights) if shape.skip else weights
        shares = self.shares * np.exp(grown - grown.max())
        return np.asarray(shares / shares.sum())


# From the last layer down ----------------------------------------------------------------------


def descend(layers: list[Layer], loss: str, data: Data) -> list[Gradient]:
    """Return the gradient in every layer, from the last one down.

    On the way rows become less alike. The part along h is one of n directions if the loss does not
    depend on the outputs. It is more if the loss does, and in skip connections, where that
    direction grows faster than others.
    """
    gradients = [_last(layers[-1], loss, data)]
    alike = gradients[0].alike
    for layer in layers[-2::-1]:
        above = gradients[-1]
        shape = above.layer.shape
        through = above.grown / ((shape.skip + above.grown) or 1.0)
        alike = alike * (1.0 - through + through * above.layer.likeness)
        if not shape.orthogonal:  # Wᵀ turns two rows towards each other by chance.
            alike = np.sqrt(alike**2 + through**2 * (1.0 - alike**2) / shape.inputs)
        gradients.append(
            Gradient(
                layer=layer,
                shares=above.below,
                alike=within_one(alike),
                aligned=min(above.gained / (above.total or 1.0), 1.0),
            )
        )
    return gradients


def _last(layer: Layer, loss: str, data: Data) -> Gradient:
    """Return the gradient in the last layer, which the loss decides."""
    shape = layer.shape
    q = np.exp(np.minimum(layer.log_qs, 50.0))
    along = _along_outputs(loss, exp(min(mean(layer.log_qs), 50.0)))
    # Two rows' δ agree by chance in one of O directions (in one of O - 1 for cross-entropy, where
    # they sum to 0), and as far as their outputs agree by more than at q = 0. Their targets agree
    # by chance too, but rather so if the rows are alike.
    sizes = _sizes(loss, q, shape.outputs)
    chance = 1.0 / max(shape.outputs - (loss == "cross_entropy"), 1)
    share = 1.0 - mean(1.0 / sizes)
    follow = np.maximum(data.alike, 0.0) ** 2
    follow = (1.0 - share) ** 2 * (follow - mean(follow)) + (share * layer.alike) ** 2
    return Gradient(
        layer=layer,
        shares=sizes / sizes.sum(),
        alike=np.sqrt(np.clip(chance + (1.0 - chance) * follow, 0.0, 1.0)),
        aligned=0.0,
        surplus=(shape.outputs - 1.0) * along / shape.inputs,
    )


def _sizes(loss: str, q: FloatArray, outputs: int) -> FloatArray:
    """Return E ‖∂loss/∂z‖², up to a factor, for rows whose outputs z have variances q.

    Targets are as in `_along_outputs` and independent of z. It is exact for the squared error; for
    the others it is right to first order in q and in the limit.
    """
    if loss == "mse":
        return 1.0 + q
    return 1.0 + q / (q + (4.0 if loss == "binary_cross_entropy" else outputs))


def _along_outputs(loss: str, q: float) -> float:
    """Return the share of ‖∂loss/∂z‖² that lies along the outputs z, whose variance is q.

    It is for targets of variance 1, or labels, and is about right, as the targets are not known.
    """
    most, half = ALONG_OUTPUTS[loss]
    return most * q / (q + half)


# Gains -----------------------------------------------------------------------------------------


def gains(gradients: list[Gradient], data: Data) -> list[Gain]:
    """Return the gains of ‖δ‖² at layers 1 … L - 1, with the gradients as from `descend`.

    Rows whose δ is larger count for more, so that less averages out. Beside what is known of their
    sizes, the logarithms of these drift apart at random from the top down, by `scatter`. Where the
    rows' gains differ, this drift also moves the mean of the gains; rows that are alike drift
    together as the squares of Gaussians do, whose correlation is the square of the Gaussians'.
    """
    found = []
    scatter = log(1.0 + 2.0 / gradients[0].layer.shape.outputs)
    known = len(data.cosines) / data.rows
    together = np.maximum(data.cosines, 0.0) ** 2
    together[np.diag_indices_from(together)] -= 1.0 - known
    for upper, lower in pairwise(gradients):
        random = exp(min(scatter, 50.0))
        weight = min(1.0, random * known * float(lower.kept @ lower.kept))
        growth = _growth(lower, upper)
        gain = _gain(lower, upper, growth, weight)
        unlike = upper.kept * _unlike(lower, upper, growth.past)
        drift = (random - 1.0) * float(unlike @ together @ unlike)
        found.append(Gain(gain.mean, gain.variance + drift))
        apart = _drawn(lower, upper, growth.past, 1.0) - _drawn(lower, upper, growth.past, 0.0)
        scatter += max(apart, 0.0) / lower.layer.shape.outputs
    return found[::-1]


def _unlike(lower: Gradient, upper: Gradient, past: float) -> FloatArray:
    """Return the relative deviation of each row's gain of ‖δ‖² from the mean: (R,)."""
    gains = lower.slope_of_rows
    if past:
        gains = gains * (1.0 - past + past / upper.slope_of_rows)
    return np.asarray(gains / (upper.kept @ gains) - 1.0)


class _Growth(NamedTuple):
    """‖D_l‖² relative to ‖δ_{l+1}‖², before the part along h is taken into account."""

    log: float
    past: float
    """Share of ‖D_l‖² that came by the skip connection, past the layer."""


def _growth(lower: Gradient, upper: Gradient) -> _Growth:
    """Return the growth; D_l is Wᵀδ_{l+1}, plus D_{l+1} if layer l + 1 has a skip connection."""
    shape = upper.layer.shape
    through = log_or_less(lower.layer.shape.outputs * shape.weight_variance)
    if not shape.skip:
        return _Growth(through, 0.0)
    skipped = -upper.log_slope - log(upper.favour)
    both = float(np.logaddexp(skipped, through))
    return _Growth(both, exp(skipped - both) if through > -inf else 1.0)


def _gain(lower: Gradient, upper: Gradient, growth: _Growth, weight: float) -> Gain:
    """Return the gain from layer l + 1 (upper) to layer l (lower), where δ_l is D_l times φ′.

    `weight` is that of `average`.
    """
    if growth.log == -inf:
        return Gain(-inf, 0.0)
    below, above, past = lower.layer, upper.layer, growth.past
    n = below.shape.outputs
    drawn, kept = _drawn(lower, upper, past, weight), past * _slopes(upper, weight)
    aligned = log(max(upper.total / (above.shape.skip + upper.noise), 1e-3))
    mean = growth.log + (aligned + lower.log_slope + log(lower.favour))
    mean += log(max(1.0 - below.projected / n, 1e-3))
    mean += (kept - drawn) / (2.0 * n)
    variance = drawn / n + past * kept / above.shape.outputs
    moved = below.slope_per_q * sqrt(below.q_variance)
    moved -= past * above.slope_per_q * sqrt(above.q_variance)
    # The part along h began as a χ² of few degrees, and depends on targets that are not known.
    along = above.alignment.along / upper.total
    caught = upper.aligned * along * (1.0 - upper.aligned)
    grew = caught * (1.0 - 1.0 / max(along, 1.0))
    unknown = UNKNOWN * (
        (1.0 - upper.held) * ((upper.surplus or 0.0) + caught)
        + lower.aligned * abs(below.alignment.bonus)
    )
    return Gain(mean, variance + moved**2 + 2.0 * grew**2 + unknown**2 + (BEYOND / n) ** 2)


def _drawn(lower: Gradient, upper: Gradient, past: float, weight: float) -> float:
    """Return the variance, times n, that comes of the draw of layer l's n units and of Wᵀ."""
    spread = average(1.0, upper.alike_square, weight)
    through = 1.0 - past
    weights = through**2 * 2.0 * spread * (1.0 - upper.held) + 4.0 * past * through * spread
    return _slopes(lower, weight) + weights


def _slopes(gradient: Gradient, weight: float) -> float:
    """Return the variance of log_slope, times n, that comes of the draw of the layer's n units."""
    layer = gradient.layer
    drawn = average(3.0 * layer.slope_variance, gradient.slope_covariance, weight)
    return max(drawn - layer.slope_fixed * average(1.0, layer.alike_square, weight), 0.0)
