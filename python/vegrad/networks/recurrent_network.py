"""The base class of recurrent networks: their arguments, checked for a pass or a training."""

from __future__ import annotations

from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, FloatArray, as_target
from vegrad.arrays.measurement import norms
from vegrad.networks import sequences
from vegrad.networks.network import Network
from vegrad.networks.rows import Batch
from vegrad.networks.sequence_rows import SequenceRows, Shape
from vegrad.networks.sequences import Cuts, Lengths, State, Truncation, window_of

STATES = {"tanh": 1, "relu": 1, "lstm": 2, "gru": 1}
"""The number of arrays that the state of a cell has: h, or h and c."""
Window: TypeAlias = tuple[int, int]
Pass: TypeAlias = tuple[Array, Lengths | None, State | None]


class RecurrentNetwork(Network):
    """A network whose rows are sequences, with a target at the last step or at each."""

    few_tell = False

    @property
    def _every_step(self) -> bool:
        return bool(self.config["targets"] == "all")

    def _sequences(self, x: object, lengths: object, state: object) -> Pass:
        c = self.config
        batch = sequences.as_sequences(x, c["inputs"], self._dtype)
        rows, steps, _ = batch.shape
        found = sequences.as_lengths(lengths, rows, steps)
        if state is None:
            return batch, found, None
        shape = c["layers"], rows, c["hidden"]
        return batch, found, sequences.as_state(state, shape, STATES[c["cell"]], self._dtype)

    def _with_target(
        self, target: object, x: Array, lengths: Lengths | None, state: State | None
    ) -> tuple[Array, Array, Lengths | None, State | None]:
        outputs, loss = self.config["outputs"], self.config["loss"]
        if self._every_step:
            wanted = sequences.as_targets(
                target, x.shape[0], x.shape[1], lengths, outputs, self._dtype, loss
            )
        else:
            wanted = as_target(target, len(x), outputs, self._dtype, loss)
        return x, wanted, lengths, state

    def _window(self, truncation: object, x: object) -> tuple[Window | None, FloatArray | None]:
        """Return the core's window, and the factors of a truncation at random."""
        chosen = sequences.as_truncation(truncation)
        if not isinstance(chosen, Cuts):
            return window_of(chosen), None
        shape = np.shape(cast(npt.ArrayLike, x))
        steps = shape[1] if len(shape) == 3 else 0
        return None, np.ascontiguousarray(chosen.factors(steps), np.float64)

    def backward(
        self,
        x: object,
        target: object,
        *,
        lengths: object = None,
        state: object = None,
        truncation: Truncation = None,
        flow: bool = True,
    ) -> float:
        """Run a forward and a backward pass; return the loss and fill gradients and flow."""
        raise NotImplementedError

    def rows(
        self, x: object, target: object, lengths: object = None, truncation: object = None
    ) -> SequenceRows:
        """Return sequences to train on, checked as far as they need not be read for that."""
        c = self.config
        shape = Shape(c["inputs"], c["outputs"], self._dtype, c["loss"], self._every_step)
        return SequenceRows(shape, x, target, lengths, truncation)

    def batch(self, x: object, target: object, lengths: object = None) -> Batch:
        """Return arguments of a pass as contiguous arrays that the core takes.

        Raises:
            TypeError, ValueError: as `backward`.
        """
        sequence, wanted, found, _ = self._with_target(target, *self._sequences(x, lengths, None))
        return Batch(sequence, wanted, found)

    def weight_gradients_log2(self) -> FloatArray:
        """Return log2 of the norms of the weights' gradients, as far as the dtype holds them."""
        with np.errstate(divide="ignore"):
            return np.log2(norms({name: self._gradients[name] for name in self.weights}))
