"""The records of a monitor: its history, and the first value that was not finite."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import nan
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.reading import Reading
from vegrad.reports.values import count_of


@dataclass(frozen=True)
class NonFinite:
    """The first NaN or inf that a monitor has seen."""

    module: str
    """Path of the module whose operation made it."""
    phase: str
    """ "forward", "loss" (what the backward pass begins with), "backward" (a gradient flowing
    through) or "gradient" (of a parameter)."""
    step: int
    """Number of steps that had been taken."""
    batch_index: int | None
    """The first sample that has one; None if the first axis is not the batch's."""
    value: str
    """ "NaN", or "inf" if there is no NaN."""
    count: int
    """Number of elements that are not finite, in the tensor that was seen first."""
    module_class: str = ""
    """Name of the module's class; known in the forward phase only."""
    parameter: str = ""
    """A parameter of the module that is not finite itself; "" if there is none."""
    input_finite: bool = True
    """False if the module's input was not finite; known in the forward phase only."""
    in_part: bool = False
    """True if this process has a part only of the module's parameters."""
    output_of: str = ""
    """In the backward phase: the gradient that came to `module` was finite, and the one that came
    to the output of this other module was not. "" if no gradient was finite before it."""
    gradient_of: str = ""
    """In the gradient phase: the parameter whose gradient is not finite."""
    unseen: bool = False
    """True if nothing is known of the modules in that step: they are compiled."""
    processes: int = 1
    """The number of processes that share the gradients."""
    cause: str = ""
    """The cause, by its stable name, where an operation of the loss is to blame."""
    operation: str = ""
    """That operation."""
    reading: Reading | None = field(default=None, repr=False, compare=False)
    """Another pass of the model on the same input, read operation by operation."""
    epsilon: float = nan
    """The optimizer's ε, if that is 0 in the dtype of the parameter that is not finite."""
    growth: float = nan
    """Growth of the outputs of modules since the step before, the largest; nan if not known."""

    @property
    def seen_in(self) -> str:
        """The phase in which it was seen.

        "unseen" if nothing is known of the modules, "elsewhere" if another process may have made
        it.
        """
        if self.phase == "gradient" and (self.unseen or self.processes > 1):
            return "unseen" if self.unseen else "elsewhere"
        return self.phase

    @property
    def message(self) -> str:
        """One sentence: the value, when and where it was seen, and what had been finite before."""
        where = "" if self.batch_index is None else f", sample {self.batch_index} of the batch"
        said = {
            "forward": self._forward,
            "loss": self._loss,
            "backward": self._backward,
            "gradient": self._gradient,
        }
        return f"{self.value} at step {self.step}{where}: {said[self.phase]()}"

    def _forward(self) -> str:
        what = f"the output of {self.module} ({self.module_class}) is not finite"
        if self.parameter:
            return f"{what}; its {self.parameter.removeprefix(f'{self.module}.')} is not"
        if self.input_finite and self.in_part:
            return f"{what}; its input is finite, and so is this process's part of its weights"
        if self.input_finite:
            return f"{what}; its input and weights are finite"
        return (
            f"{what}; neither is its input: the operation that made it is no module, or the data "
            "are not finite"
        )

    def _loss(self) -> str:
        return "the loss is not finite, though the outputs of all modules are"

    def _backward(self) -> str:
        if not self.output_of:
            return (
                f"the gradient that comes to the output of {self.module} is not finite: that of "
                "the loss, or of what follows"
            )
        return (
            f"the backward pass of {self.module}, or of what lies between it and {self.output_of}, "
            f"makes a gradient that is not finite of one that is, for the output of "
            f"{self.output_of}"
        )

    def _gradient(self) -> str:
        what = f"the gradient of {self.gradient_of} is not finite"
        if self.unseen:
            return f"{what}, and no module was seen"
        though = f"{what}, although those that flow through the modules are"
        return though if self.processes == 1 else f"{though} in this process"

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Record:
    """One step of a monitor's history; nan where nothing was seen."""

    step: int
    gradient_norm: float
    """Joint norm of all parameters' gradients."""
    gradient_norms: FloatArray
    """Norm of each parameter's gradient, in the order of `Monitor.parameters`."""
    activation_rms: FloatArray
    """Root mean square of each module's output, in the order of `Monitor.modules`."""
    delta_norms: FloatArray
    """Norm of the gradient with respect to each module's output, in the same order."""
    loss: float = nan
    """The loss of which the gradients were taken, without a GradScaler's factor."""

    def __repr__(self) -> str:
        sizes = f"gradient norm {self.gradient_norm:.4g}, loss {self.loss:.4g}"
        return f"<Record of step {self.step}: {sizes}>"


class Columns(NamedTuple):
    """Steps as arrays, a row each: (S,), and (S, M) for M modules."""

    step: FloatArray
    loss: FloatArray
    norm: FloatArray
    rms: FloatArray
    delta: FloatArray


_PLACES = {"step": 0, "gradient_norm": 2, "loss": 4}  # of fields, in what is kept of a step


class MonitorHistory:
    """The last steps.

    It is a sequence of `Record`s; each field of a Record is also an attribute, an array with a row
    for each step. Of steps that were not looked at, the numbers of modules are nan.
    """

    looked: MonitorHistory
    """Of the last steps, as many, those that were looked at."""

    def __init__(self, keep: int, *, looks_only: bool = False) -> None:
        # Steps are kept as they come, since arrays take longer to make than to fill: step, number
        # of parameters, joint norm, the float64 numbers of gradients, activations and δ, and loss.
        self._steps: deque[tuple[int, int, float, bytes, float]] = deque(maxlen=keep)
        self.looked = self if looks_only else MonitorHistory(keep, looks_only=True)

    def add(
        self,
        step: int,
        parameters: int,
        joint: float,
        numbers: bytes,
        loss: float = nan,
        *,
        looked: bool = True,
    ) -> None:
        """Keep a step, as `_core.Watch.record` returns it."""
        self._steps.append(one := (step, parameters, joint, numbers, loss))
        if looked:
            self.looked._steps.append(one)

    def give_loss(self, loss: float) -> None:
        """Set the loss of the last step."""
        if self._steps:
            one = self._steps[-1]
            self._steps[-1] = (*one[:4], loss)
            if self.looked._steps and self.looked._steps[-1][0] == one[0]:
                self.looked._steps[-1] = self._steps[-1]

    @property
    def last_step(self) -> int:
        """The number of the last step."""
        return self._steps[-1][0]

    @property
    def newest(self) -> tuple[int, float, float] | None:
        """The last step's number, its loss and the joint norm of its gradients; None of none."""
        if not self._steps:
            return None
        step, _, joint, _, loss = self._steps[-1]
        return step, loss, joint

    @property
    def last_sizes(self) -> tuple[float, float]:
        """The last step's loss and the joint norm of its gradients."""
        _, _, joint, _, loss = self._steps[-1]
        return loss, joint

    @property
    def last_norms(self) -> FloatArray:
        """The norm of each parameter's gradient in the last step."""
        _, count, _, numbers, _ = self._steps[-1]
        return np.frombuffer(numbers, np.float64, count)

    def columns(self, first: int, last: int) -> Columns:
        """Return the first and the last so many steps as arrays, with the sizes last looked at.

        Steps before the model had the parameters that it has now are left out.
        """
        places = range(len(self._steps))
        few = places if len(places) <= first + last else [*places[:first], *places[-last:]]
        now = self._steps[-1]
        kept = [one for place in few if (one := self._steps[place])[1] == now[1]]
        kept = [one for one in kept if len(one[3]) == len(now[3])]
        looks = {one[0]: one[3] for one in self.looked._steps if len(one[3]) == len(now[3])}
        at = np.searchsorted(list(looks), [one[0] for one in kept], side="right") - 1
        seen = list(looks.values())
        parts = [seen[n] if n >= 0 else one[3] for n, one in zip(at, kept, strict=True)]
        values = np.frombuffer(b"".join(parts), np.float64).reshape(len(kept), -1)
        modules = (values.shape[1] - now[1]) // 2
        _, rms, deltas = np.split(values, [now[1], now[1] + modules], axis=1)
        numbers = np.array([(one[0], one[2], one[4]) for one in kept], np.float64)
        return Columns(numbers[:, 0], numbers[:, 2], numbers[:, 1], rms, deltas)

    def sizes(self, places: Iterable[int]) -> tuple[FloatArray, FloatArray]:
        """Return steps' numbers, joint norms and losses, (3, S), and norms of parameters, (S, P).

        The latter are nan where the model had other parameters than in the last step.
        """
        every = list(self._steps)
        kept = [every[place] for place in places]
        count = self._steps[-1][1]
        norms = np.full((len(kept), count), nan)
        for row, one in zip(norms, kept, strict=True):
            if one[1] == count:
                row[:] = np.frombuffer(one[3], np.float64, count)
        return np.array([(one[0], one[2], one[4]) for one in kept], np.float64).T, norms

    @property
    def numbers(self) -> FloatArray:
        """The number of each step, (S,)."""
        return np.array([step[0] for step in self._steps], np.float64)

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of each step."""
        return tuple(step[4] for step in self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"<MonitorHistory of {count_of(len(self), 'step')}>"

    def __getitem__(self, place: int) -> Record:
        return _record(*self._steps[place])

    def __iter__(self) -> Iterator[Record]:
        return (_record(*one) for one in self._steps)

    def __getattr__(self, name: str) -> Array:
        if name not in Record.__dataclass_fields__:
            raise AttributeError(f"history has no {name}")
        if (place := _PLACES.get(name)) is not None:  # asked at each judgement, of all steps
            return np.array([one[place] for one in self._steps])
        return np.array([getattr(one, name) for one in self])


def _record(step: int, parameters: int, joint: float, numbers: bytes, loss: float) -> Record:
    values = np.frombuffer(numbers, np.float64)
    modules = (len(values) - parameters) // 2
    norms, rms, deltas = np.split(values, [parameters, parameters + modules])
    return Record(step, joint, norms, rms, deltas, loss)


def growth(squares: FloatArray, counts: FloatArray, last: Record) -> float:
    """Return the largest growth of a module's output since a step; nan if none is known.

    Args:
        squares: Σ x² of each module's outputs.
        counts: how many elements they have.
        last: the step before.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sqrt(squares / counts) / last.activation_rms
    known = ratios[np.isfinite(ratios)]
    return float(known.max()) if known.size else nan
