"""A reading: all that one forward and backward pass of a network tells, as plain data.

Every front end turns a pass of its kind of network into a `Reading`; the rules know nothing else.
It holds names and float64 numbers, no tensors of any framework. Sizes are carried as logarithms,
so that they are right where the dtype of the network underflows or overflows. What costs further
passes is asked for only where a rule needs it: `fresh_drift`, `Cell.if_changed`. It is a graph:
`operations` as they ran, each with the places of those that its input comes from. Where layers
follow each other on one way, `chain` has it with its gradient flow; else `modules` and `gradients`
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log2, nan, prod
from typing import Any, Protocol

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.flow.cell import Cell
from vegrad.flow.data import (
    Compared,
    Input,
    KnownLoss,
    Mixing,
    NonFiniteData,
    NonFiniteValue,
    Penalty,
    Stored,
    Undefined,
)
from vegrad.flow.edits import Edit
from vegrad.flow.flow import Flow
from vegrad.flow.gradients import Gradients
from vegrad.flow.lags import Lags
from vegrad.flow.time_flow import TimeFlow
from vegrad.flow.trend import Gains
from vegrad.flow.watched import Watched
from vegrad.flow.wording import Vocabulary
from vegrad.theory.expected import ExpectedFlow

INPUT = -1  # the place of what no operation has made
MAPS = {
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}

# Operations that take some values and leave others, which may be anything.
HIDES = {"where", "masked_fill", "nan_to_num", "nansum", "nanmean", "nanmedian"}


@dataclass(frozen=True)
class Operation:
    """One operation of a pass, as it was called."""

    kind: str
    """linear, conv2d, layer_norm, activation's name, add, matmul, embedding, loss, …"""
    name: str = ""
    """The path of the module or layer that it belongs to, if that is known."""
    below: tuple[int, ...] = ()
    """Places of the operations that its inputs come from; INPUT too."""
    parameters: tuple[str, ...] = ()
    rms_log2: float = nan
    """log2 of the root mean square of its output; nan if it was not measured."""
    delta_log2: float = nan
    """log2 of the norm of the loss's gradient with respect to its output; nan likewise."""
    flat: float = nan
    """Share of its output that is flat: elements of an activation where its derivative is next to
    0, rows of a softmax with all weight on one key."""
    alike: float = nan
    """Share of its output's size that all rows have in common: 1 where they are all the same."""
    keys: float = nan
    """Share of their size by which the keys of attention differ; nan of all else."""
    lost: bool = False
    """True if its output is not finite."""
    edge: str = ""
    """The cause, by its stable name, for which its output or its derivative is not finite with the
    inputs that it had: they are at an edge of what it is made for. "" if they are not."""
    factors: tuple[int | None, ...] = ()
    """Those of `below` that only multiply what layers made, as masks and adjacency matrices do."""


@dataclass(frozen=True)
class Parameter:
    """A parameter's size and that of its gradient; a normalization's statistics are some too."""

    name: str
    shape: tuple[int, ...]
    rms_log2: float = nan
    """log2 of the root mean square of its elements; -inf if all are 0."""
    mean: float = nan
    """Mean of its elements, where that is asked for."""
    role: str = ""
    """"map" (an input is multiplied with it), "table" (looked up), "norm" (a normalization's
    weights), "bias", "recurrent", "variance" (a normalization's running variance); "" of others."""
    trained: bool = True
    fans: tuple[int, int] = (0, 0)
    """fan_in and fan_out of a map."""
    blocks: tuple[float, ...] = ()
    """log2 of the root mean square of equal parts of its rows, where several maps stand in one."""
    batch_log2: float = nan
    """log2 of what the batch itself gives, of a running variance."""
    kurtosis: float = nan
    """Mean fourth power over the squared mean square: 1.8 if uniform, 3 if normal."""
    gradient_log2: float = nan
    """log2 of the norm of its gradient; -inf if that is 0, nan if there is none."""
    nonfinite: NonFiniteValue | None = None
    lost: bool = False
    """True if its gradient is not finite."""
    copies: tuple[bool, bool] = (False, False)
    """True if all its rows (the units that it makes) are equal, and all its columns (those that it
    takes)."""
    reached: bool = True
    """False if no way leads back to it from the loss."""

    @property
    def module(self) -> str:
        """The path of the module that it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def is_matrix(self) -> bool:
        """True of what an input is multiplied with, or looked up in."""
        return len(self.shape) > 1

    @property
    def through_log2(self) -> float:
        """log2 of the size of what a matrix makes of an input of size 1."""
        return self.rms_log2 + log2(max(prod(self.shape[1:]), 1)) / 2


@dataclass(frozen=True)
class Layer:
    """A layer of a chain: a map with weights, and what stands between it and the next one."""

    name: str
    """The path of its parameters, without ".weight"."""
    weight: str
    """The name of its weights; in words if they are made of other parameters."""
    bias: str | None
    norm: str | None = None
    """The normalization of its output, if there is one."""
    width: int = 0
    """Its units, or channels."""
    kind: str = "linear"
    rescaled: bool = False
    """True if the normalization divides what the layer makes by its size in the batch."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The one way through a network whose layers follow each other, nearest the input first."""

    layers: tuple[Layer, ...]
    flow: Flow
    activation: str
    """The activation of most hidden layers."""
    output: str = "identity"
    norm: str | None = None
    """The normalization of the hidden layers' pre-activations, if most have the same."""
    residual: bool = False
    """True if there are skip connections."""
    batches: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    """Gains (R, L - 1) of resampled batches of the same size; R may be 0."""
    resample: Callable[[], FloatArray] | None = None
    """Runs these batches, where `batches` are only near to what they give."""
    expected: ExpectedFlow | None = None
    drawn: bool = False
    """True if `expected` is from weights drawn anew, where theory has no formulas."""
    draw: Callable[[], ExpectedFlow | None] | None = None
    """Works out what weights drawn anew give, where theory has no formulas."""
    underflowed: tuple[int, ...] = ()
    """Layers whose weight gradient is 0 in the network's dtype, though not in truth."""
    overflowed: tuple[int, ...] = ()
    """Layers whose weight gradient is inf in the network's dtype, though not in truth."""
    begun: tuple[int, ...] = ()
    """Layers whose weights are exactly 0 and are changed by the first step."""
    cut: int = 0
    """How many layers, from the first on, no gradient comes back to."""
    exact: bool = True
    """False if there may be operations between the layers that the chain does not name."""

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the layers."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def gains(self) -> Gains:
        """The gains between the layers, with their trend and those that depart from it."""
        normalized = [self.norm is not None or one.rescaled for one in self.layers]
        return Gains.of_flow(self.flow, self.batches, np.array(normalized))


@dataclass(frozen=True)
class Effect:
    """The loss and the gradients of a network with something changed."""

    loss: float
    gradients_log2: Mapping[str, float]
    """log2 of the norm of each parameter's gradient; -inf if it is 0."""


class WhatIf(Protocol):
    """Passes of the network with other values, which leave it as it was."""

    passes: int
    """How many have been run."""

    def effect(self, edit: Edit | None) -> Effect | None:
        """Return loss and gradients had this been done, or nothing; None if it cannot be."""

    def reading(self, edit: Edit) -> Reading | None:
        """Read the network as if this had been done."""


@dataclass(frozen=True)
class Branch:
    """One sum x + f(x); sizes are root mean squares of a row of features, the median of all rows.

    A mean of all rows would be that of the few that a trained transformer makes thousands of times
    larger than the others, where it has no use for them (Sun et al. 2024, arXiv:2402.17762).
    """

    trail: tuple[str, ...]
    """Names of the parameters of f, in their order."""
    size: float
    """log2 of f(x)."""
    stream: float
    """log2 of x."""
    varies: float
    """log2 of f(x) less its mean: of what it makes of x, biases left out."""
    below: tuple[str, ...] = ()
    """Names of the parameters that made x, since the last sum."""


@dataclass(frozen=True)
class Module:
    """A module that was watched: the sizes of its output, of δ there, and of its gradients."""

    name: str
    activation_rms: float
    delta: float
    """Norm of the loss's gradient with respect to its output; nan if it was not looked at."""
    gradient: float
    """Joint norm of its own parameters' gradients; nan if there are none."""
    weighted: bool
    """True if it has parameters of its own."""
    begun: bool = False
    """True if its output was 0 at first, and the first step changes that."""
    kind: str = ""
    """The name of its class."""
    outer: bool = False
    """True if modules with weights ran within it: δ at its output is that of the last of them."""

    @property
    def chained(self) -> bool:
        """True if it is a link of the chain of modules with weights."""
        return self.weighted and not self.outer


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that one pass of a network tells."""

    vocabulary: Vocabulary
    about: Mapping[str, Any]
    """The network, described by name and value, for the head of a report."""
    dtype: str = "float64"
    loss: float | None = None
    loss_kind: str = ""
    """The name of a known loss; "" of one's own."""
    operations: tuple[Operation, ...] = ()
    """Those of the model, and the loss as the last."""
    loss_operations: tuple[Operation, ...] = ()
    """Those within the loss; their places go on from those of `operations`."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """By name, in the order of the network."""
    tables: frozenset[str] = frozenset()
    """Names of embeddings."""
    chain: Chain | None = None
    time_flow: TimeFlow | None = None
    """The flow through the steps of a recurrent network, as far as the pass itself shows it."""
    branches: tuple[Branch, ...] = ()
    cells: tuple[Cell, ...] = ()
    memory: int = 0
    """How far back, in steps, lies what the task needs, as the user says; 0 if nothing was said."""
    lags: Lags | None = None
    """What the data tell of that, where targets are one a sequence."""
    modules: tuple[Module, ...] = ()
    watched: Watched | None = None
    gradients: Gradients | None = None
    losses: tuple[KnownLoss, ...] = ()
    """Those of known kinds that the loss consists of."""
    compared: tuple[Compared, ...] = ()
    """Outputs beside targets, in the order in which the loss took them."""
    inputs: tuple[Input, ...] = ()
    draws_itself: bool = False
    """True if the network has a way of its own to draw its weights, which `Initialize("default")`
    uses: what that gives is what its author meant."""
    what_if: WhatIf | None = None
    """Answers what would be, had something been changed."""
    problem: NonFiniteData | None = None
    """Why nothing was run, if nothing was."""
    data: tuple[NonFiniteData, ...] = ()
    """Values of the inputs and targets that are not finite, though the pass was run: the network
    or the loss may leave them out."""
    unregistered: tuple[str, ...] = ()
    """Parameters that the network uses and trains, and does not have."""
    raised: str = ""
    """The error that ended the pass, where what is not finite made one."""
    stored: Stored | None = None
    """What the dtype has of the gradients, where it may have lost most of them."""
    penalty: Penalty | None = None
    """The one that the network is trained with, if there is one."""
    mixing: tuple[Mixing, ...] = ()
    """Operations for which the outputs of rows depend on the rows beside them."""
    undefined: Undefined | None = None
    """What a distribution has refused, which ended the pass."""

    def __repr__(self) -> str:
        counts = f"{len(self.operations)} operations, {len(self.parameters)} parameters"
        return f"<Reading of {counts}, loss {self.loss}>"

    @cached_property
    def everything(self) -> tuple[Operation, ...]:
        """All operations in the order of their places, those within the loss too."""
        return (*self.operations, *self.loss_operations)

    @cached_property
    def maps(self) -> frozenset[str]:
        """The weights of linear maps and convolutions."""
        named = (one for one in self.operations if one.kind in MAPS and one.parameters)
        found = (one.parameters[0] for one in named)
        return frozenset(found) - self.tables
