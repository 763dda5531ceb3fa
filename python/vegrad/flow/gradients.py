"""Gradients that were recorded, without the network that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.arrays.measurement import Measurement
from vegrad.flow.trend import Along


@dataclass(frozen=True)
class Gradients:
    """Gradients that were recorded, and those of them that make a chain, from the input on."""

    norms_log2: Mapping[str, float]
    chain: tuple[str, ...]
    biases: tuple[str, ...] = ()
    """The chain of the biases, looked at where that of the weights shows nothing."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """log10 of ‖gradient‖/‖parameter‖ by name, if parameters were given."""
    measurement: Measurement | None = None
    """All that one read of them tells; None of a history, which has only their norms."""

    def sizes(self, names: Sequence[str]) -> FloatArray:
        """Return log2 of the norms of these gradients."""
        return np.array([self.norms_log2[name] for name in names])

    @cached_property
    def along_weights(self) -> Along | None:
        """The sizes along the chain, if two are known."""
        return Along.through(self.sizes(self.chain), self.chain, "weights")

    @cached_property
    def along_biases(self) -> Along | None:
        """The sizes along the chain of the biases, if two are known."""
        return Along.through(self.sizes(self.biases), self.biases, "biases")
