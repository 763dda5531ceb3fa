"""Edits: changes to a network, its data or its training, as plain data.

A finding carries the edit that its advice describes, a remedy proposes edits to try, and every
front end knows how to apply them to its own kind of network. An edit names parameters as the front
end that made the reading names them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One change; the base of all of them."""


# Values of parameters: the network keeps its shape, so these can be done in place ---------------


@dataclass(frozen=True)
class Scale(Edit):
    """Multiply parameters by a factor; only the rows from `rows[0]` up to `rows[1]`, if given."""

    parameters: tuple[str, ...]
    factor: float
    rows: tuple[int, int] | None = None
    gate: str = ""
    """The gate that these rows belong to, for the words."""


@dataclass(frozen=True)
class Zero(Edit):
    """Set parameters to 0; only the rows from `rows[0]` up to `rows[1]`, if given."""

    parameters: tuple[str, ...]
    rows: tuple[int, int] | None = None
    gate: str = ""


@dataclass(frozen=True)
class Shift(Edit):
    """Add an amount to parameters; only to the rows from `rows[0]` up to `rows[1]`, if given."""

    parameters: tuple[str, ...]
    amount: float
    rows: tuple[int, int] | None = None
    gate: str = ""


@dataclass(frozen=True)
class Orthogonal(Edit):
    """Draw recurrent matrices again, each of the square blocks that they consist of orthogonal."""

    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Chrono(Edit):
    """Draw the bias of the gate that carries the state for time scales up to so many steps.

    It is the logarithm of uniform numbers, as Tallec & Ollivier 2018 do it (arXiv:1804.11188). The
    first of `parameters` gets it and the others, which are added to it, 0; `rows` are the gate's.
    The rows of `opposite`, of an LSTM's input gate, get the same with the other sign.
    """

    parameters: tuple[str, ...]
    rows: tuple[int, int]
    steps: int
    opposite: tuple[int, int] | None = None


@dataclass(frozen=True)
class Steady(Edit):
    """Change the recurrent weights until gradients keep their size from step to step.

    Done by `vegrad.theory.steadied`, driven by noise of the standard deviation `drive` in place of
    data.
    """

    parameters: tuple[str, ...]
    drive: float
    cell: str


@dataclass(frozen=True)
class Redraw(Edit):
    """Draw parameters again, from the initialization that they had."""

    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Initialize(Edit):
    """Draw all weights again, from another initialization.

    `scheme` is a name of `vegrad.MLP`'s `init`; "critical" keeps gradients at their size.
    """

    scheme: str


@dataclass(frozen=True)
class Lsuv(Edit):
    """Scale each layer's weights on the data, to pre-activations of standard deviation 1.

    With `orthogonal`, draw them again first (layer-sequential unit variance: Mishkin & Matas 2016,
    arXiv:1511.06422).
    """

    orthogonal: bool = False


# Architecture: a network of another shape -------------------------------------------------------


@dataclass(frozen=True)
class AddSkips(Edit):
    """Add skip connections; each of n branches is scaled by 1/√n (Zhang et al. 2019)."""


@dataclass(frozen=True)
class Normalize(Edit):
    """Normalize the pre-activations of hidden layers, row by row (layer norm).

    With `on=False` take a normalization away, where the network can do without.
    """

    on: bool = True


@dataclass(frozen=True)
class SetCell(Edit):
    """Put another recurrent cell in place of the one there is, with new weights: lstm or gru.

    Its gates' biases are drawn for time scales up to `steps` (chrono); 0 puts a bias of 1 at the
    gate that carries.
    """

    name: str
    steps: int = 0


@dataclass(frozen=True)
class SetActivation(Edit):
    """Replace the hidden layers' activation; `name` is one of `vegrad.activations`."""

    name: str


# Around the network -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleData(Edit):
    """Subtract from each column of x its mean and divide by its standard deviation."""


@dataclass(frozen=True)
class ScaleTarget(Edit):
    """Subtract from each column of the target its mean, and divide all by a standard deviation.

    It is that of all columns about their means, so that the mean square stays the same but for its
    unit.
    """


@dataclass(frozen=True)
class LearningRate(Edit):
    """Set the learning rate; a schedule is multiplied by rate/instead_of as a whole."""

    rate: float
    instead_of: float | None = None
    """The rate of the last step."""


@dataclass(frozen=True)
class WeightDecay(Edit):
    """Set the weight decay, an L2 penalty whose gradient is so many times the weights."""

    decay: float
    instead_of: float


@dataclass(frozen=True)
class Clip(Edit):
    """Clip the gradients' global norm at a limit."""

    limit: float


@dataclass(frozen=True)
class Truncate(Edit):
    """Go back `back` steps from every so many (`every`) of the losses along a sequence."""

    every: int
    back: int


@dataclass(frozen=True)
class Together(Edit):
    """Several edits that belong together, in their order."""

    edits: tuple[Edit, ...]


def parts(edit: Edit) -> tuple[Edit, ...]:
    """Return the single edits that an edit consists of."""
    if isinstance(edit, Together):
        return tuple(part for one in edit.edits for part in parts(one))
    return (edit,)


def together(*edits: Edit) -> Edit:
    """Join edits; a single one stays as it is."""
    return edits[0] if len(edits) == 1 else Together(edits)


IN_PLACE = (Scale, Zero, Shift, Orthogonal, Chrono, Steady, Redraw, Initialize)


def is_in_place(edit: Edit) -> bool:
    """Return True if an edit changes values of parameters only, and needs nothing but these."""
    return all(isinstance(part, IN_PLACE) for part in parts(edit))


ARCHITECTURE = (AddSkips, Normalize, SetActivation, SetCell)
TRAINING = (LearningRate, WeightDecay, Clip, Truncate)
SCALES = (ScaleData, ScaleTarget)
ONCE = (*SCALES, *TRAINING)


def keeps_shape(edit: Edit) -> bool:
    """Return True if an edit leaves the parameters' names and shapes as they are."""
    return not any(isinstance(part, ARCHITECTURE) for part in parts(edit))


def is_of_training(edit: Edit) -> bool:
    """Return True if an edit changes neither the network nor its data."""
    return all(isinstance(part, TRAINING) for part in parts(edit))


def replaces(edit: Edit, earlier: Edit) -> bool:
    """Return True if an edit leaves nothing of an earlier one."""
    return edit == earlier or (isinstance(edit, ONCE) and type(edit) is type(earlier))
