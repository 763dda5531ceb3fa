"""What a monitor keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray


@dataclass(frozen=True)
class NonFinite:
    """The first NaN or inf that a monitor has seen."""

    module: str
    """Path of the module whose operation made it."""
    phase: str
    """ "forward", "backward" (a gradient flowing through) or "gradient" (of a parameter)."""
    step: int
    """How many steps had been taken."""
    batch_index: int | None
    """The first sample that has one, if the first axis is the batch's."""
    message: str
    parameter: str = ""
    """One of the module that is not finite itself."""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Record:
    """One step; nan where nothing was seen."""

    step: int
    gradient_norm: float
    """Joint norm of all parameters' gradients."""
    gradient_norms: FloatArray
    """Of each parameter, in the order of `Monitor.parameters`."""
    activation_rms: FloatArray
    """Root mean square of each module's output, in the order of `Monitor.modules`."""
    delta_norms: FloatArray
    """Norm of the gradient with respect to each module's output."""


class MonitorHistory:
    """The last steps that were looked at; columns are arrays with a row a step."""

    def __init__(self, keep: int) -> None:
        # As they come, since arrays are slower to make than to fill: step, number of parameters,
        # joint norm, and the float64 numbers of gradients, activations and δ.
        self._steps: deque[tuple[int, int, float, bytes]] = deque(maxlen=keep)

    def add(self, step: int, parameters: int, joint: float, numbers: bytes) -> None:
        """Keeps a step: what `_core.Watch.record` gives of it."""
        self._steps.append((step, parameters, joint, numbers))

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: int) -> Record:
        return _record(*self._steps[place])

    def __iter__(self) -> Iterator[Record]:
        return (_record(*one) for one in self._steps)

    def __getattr__(self, name: str) -> Any:
        if name not in Record.__dataclass_fields__:
            raise AttributeError(f"history has no {name}")
        return np.array([getattr(one, name) for one in self])


def _record(step: int, parameters: int, joint: float, numbers: bytes) -> Record:
    values = np.frombuffer(numbers, np.float64)
    modules = (len(values) - parameters) // 2
    norms, rms, deltas = np.split(values, [parameters, parameters + modules])
    return Record(step, joint, norms, rms, deltas)
