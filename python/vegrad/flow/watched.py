"""Observations of a training from outside: its loop, its optimizer's steps, and its first NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Protocol

from vegrad.flow.course import Course
from vegrad.flow.finding import Finding
from vegrad.flow.recorded import Recorded


@dataclass(frozen=True, kw_only=True)
class LoopStep:
    """The calls of a training loop from one step of an optimizer to the next."""

    step: int
    backwards: int = 1
    """Backward passes whose gradients the step was to take."""
    kept: bool = False
    """True if the gradients of the step before had not been emptied."""
    passed: tuple[bool, ...] = ()
    """The same of the steps before it that were not looked at, as far as they are known."""
    emptied: bool = False
    """True if the gradients were emptied after the backward pass, so that the step took none."""
    dropped: int = 0
    """Backward passes before the step's own whose gradients were emptied and served nothing."""
    clip: str = ""
    """ "done"; "before" the backward pass; "scaled" for a clip of gradients that a loss scaler had
    not yet scaled back; "" if there was none."""
    limit: float = nan
    """The clip's largest norm, or value."""
    by_value: bool = False
    """True if the clip was of each element by itself."""
    before: float = nan
    """The joint norm before the clip; nan if it is not known."""
    scale: float = 1.0
    """The factor by which the gradients were scaled at a clip that was "scaled"."""
    norm: float = nan
    """The joint norm of the gradients that the step took; nan if it was not looked at."""
    holds: tuple[str, ...] = ()
    """Names of the parameters that the optimizer holds."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """One parameter at a step that was sampled: root mean squares of some of its elements."""

    name: str
    matrix: bool
    weight: float
    change: float
    gradient: float
    first: float
    """Of the weights in the first sample."""
    count: int = 0
    """Elements of the parameter."""
    inputs: int = 1
    """Those of a row of it: a matrix's fan_in."""
    still: float
    """Share of the elements with a gradient that the step has not changed; nan if none has one."""
    decay: float = 0.0
    """Of what weight decay adds, in units of `gradient` (or of `change`, see `decoupled`)."""
    decoupled: bool = False
    """True if the decay does not go through the gradient."""
    below_epsilon: float = nan
    """Share of the elements whose gradients' running size is below the optimizer's ε."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A step whose changes were sampled."""

    step: int
    optimizer: int
    """The number of the optimizer, where several have parameters of the model."""
    rate: float
    """The largest learning rate of its groups."""
    peak: float
    """The largest of all samples so far."""
    dtype: str
    updates: tuple[Update, ...]
    rough: bool = False
    """True if the steps are divided by the gradients' size, but are not averaged over steps."""

    @property
    def promise(self) -> float:
        """The most that the step would take off the loss, by its gradient."""
        return sum(one.count * one.change * one.gradient for one in self.updates if one.matrix)


@dataclass(frozen=True)
class Watched:
    """Observations of a monitor beside the sizes of modules."""

    step: int = 0
    norm: float = nan
    """Joint norm of all parameters' gradients."""
    nonfinite: FirstNonFinite | None = None
    growth: float = nan
    """Growth of gradients, outputs or loss over the few steps before that, the largest."""
    loops: tuple[tuple[LoopStep, ...], ...] = ()
    """The last steps of each optimizer."""
    losses: tuple[float, ...] = ()
    """The loss of each step that was looked at; nan where it is not known."""
    samples: tuple[Sample, ...] = ()
    """The first and the last steps whose changes were sampled."""
    course: Course | None = None
    """The steps that were looked at, as arrays."""
    unheld: tuple[str, ...] = ()
    """Parameters that get a gradient at each step, and that no optimizer holds or changes."""
    unregistered: tuple[str, ...] = ()
    """Parameters that get a gradient, though the model does not list them, nor any optimizer."""
    without: int = 0
    """The last steps in a row at which the network ran and no backward pass came to it."""
    idle: tuple[str, ...] = ()
    """Parameters of one optimizer among several, which run, are stepped and get no gradient."""
    zeros: int = 0
    """The last steps in a row at which its gradients were there and exactly 0, all of them."""
    passes: int = 0
    """Backward passes that were heard since the last one of this network."""
    strayed: tuple[str, ...] = ()
    """Parameters with gradients of a network of which no optimizer has a parameter, though some
    have stepped."""
    in_copies: int = 0
    """Steps of copies of a network, each after a run of the copy, that was never run itself."""
    unstepped: int = 0
    """Backward passes whose gradients were replaced by the next one's, of a network whose
    optimizer has never stepped and whose parameters have never changed; 0 if it steps."""
    recorded: Recorded | None = None
    """The steps, where they are all that is known of a training."""
    second: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
    """By a cause that sizes suggest: what a diagnosis of the model found at that step."""


class FirstNonFinite(Protocol):
    """Where the first NaN or infinity of a training came from."""

    @property
    def step(self) -> int:
        """The number of steps that had been taken."""

    @property
    def phase(self) -> str:
        """One of "forward", "loss", "backward" and "gradient"."""

    @property
    def module(self) -> str:
        """The path of the module whose operation made it."""

    @property
    def seen_in(self) -> str:
        """The phase in which it was seen, or what there is instead.

        "unseen" if nothing is known of the modules in that step, "elsewhere" if all was finite in
        this process, and others share its gradients.
        """

    @property
    def parameter(self) -> str:
        """The module's parameter that is not finite itself, if one is."""

    @property
    def cause(self) -> str:
        """The cause, where an operation of the loss is to blame; "" otherwise."""

    @property
    def operation(self) -> str:
        """That operation."""

    @property
    def epsilon(self) -> float:
        """The optimizer's ε, if that is 0 in the dtype of the parameter; nan otherwise."""

    @property
    def reading(self) -> object:
        """A `Reading` of the network on the same input, operation by operation; None without."""

    @property
    def message(self) -> str:
        """All of it, in words."""
