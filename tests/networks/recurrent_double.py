"""A recurrent network made of the reference, with the methods that `vegrad.truncation` calls."""

from typing import Any

import numpy as np
from vegrad import RNN, TimeFlow

from tests import reference, reference_recurrent


class Double(RNN):
    """Weights N(0, size²/H), passes by tests/reference_recurrent.py."""

    def __init__(self, cell: str, targets: str, size: float = 1.0, seed: int = 0) -> None:
        super().__init__(3, 12, 2, cell=cell, targets=targets, dtype="float64", seed=seed)
        rng = np.random.default_rng(seed)
        for name, deviation in (("rnn.weight_ih_l0", 0.3), ("rnn.weight_hh_l0", size / 12**0.5)):
            shape = self.parameters[name].shape
            self.parameters[name][...] = deviation * rng.standard_normal(shape)
        self.passes = 0
        self.seen: dict[str, np.ndarray] = {}

    def backward(
        self, x: Any, target: Any, *, truncation: Any = None, factors: Any = None, **options: Any
    ) -> float:
        """Run a pass of the reference."""
        window = (truncation, truncation) if isinstance(truncation, int) else truncation
        done = reference_recurrent.run(
            self.parameters, x, target, **self.config, **options, window=window, factors=factors
        )
        for name, gradient in done.gradients.items():
            self.gradients[name][...] = reference.value(gradient)
        self.seen = done.flow
        self.passes += 1
        return done.loss

    @property
    def flow(self) -> TimeFlow:
        """The flow of the last pass."""
        return TimeFlow(
            **self.seen,
            every_step=self.config["targets"] == "all",
            through_cell=self.config["cell"] == "lstm",
        )
