"""Words, made last: numbers, sites and edits as sentences.

Rules say what they found in templates such as "the gradient is multiplied by {gain:share} in
passing {site}". `render` fills them in from a finding's evidence, sites and edit; how a layer, a
parameter or an edit is called is the business of a `Vocabulary`, of which every front end has its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, inf, isfinite, isnan, log2, log10, nan
from string import Formatter
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import visible
from vegrad.flow.edits import (
    AddSkips,
    Chrono,
    Clip,
    Edit,
    Initialize,
    LearningRate,
    Lsuv,
    Normalize,
    Orthogonal,
    Redraw,
    Scale,
    ScaleData,
    ScaleTarget,
    SetActivation,
    SetCell,
    Shift,
    Steady,
    Together,
    Truncate,
    WeightDecay,
    Zero,
    parts,
)
from vegrad.flow.site import Site

DECADE = log2(10.0)  # the flow is in log2; limits are in decades, powers of ten
FEW = 3  # names that are written out
LONG = 300  # letters of what a template is filled with


class Vocabulary:
    """How layers, parameters and edits are called; a front end overrides what it calls otherwise.

    The words of this class are those of a network whose layers have numbers and names.
    """

    def site(self, site: Site) -> str:
        """Name a site within a sentence."""
        name = site.name or site.kind
        if site.kind in ("weights", "biases", "activation"):
            return f"the {site.kind} of {name}"
        if site.kind == "parameter" and site.rows:
            return f"{name}[{site.rows[0]}:{site.rows[1]}]"
        return name

    def sites(self, sites: Sequence[Site]) -> str:
        """Name several sites: the weights of a, b and c."""
        if len(sites) > 1 and all(site.kind == "weights" and site.name for site in sites):
            return f"the weights of {listed([site.name for site in sites])}"
        return listed([self.site(site) for site in sites])

    def parameters(
        self, names: Sequence[str], rows: tuple[int, int] | None = None, gate: str = ""
    ) -> str:
        """Name parameters, or those of their rows that belong to a gate."""
        part = "" if rows is None else f"[{rows[0]}:{rows[1]}]"
        those = "that" if len(names) == 1 else "those"
        return listed([f"{name}{part}" for name in names]) + (
            f" ({those} of the {gate} gate)" if gate else ""
        )

    def activation(self, name: str) -> str:
        """Name an activation as this front end's code does."""
        return f"the activation {name}"

    def scheme(self, name: str) -> str:
        """Name an initialization as this front end's code does."""
        return "each layer's own initialization" if name == "default" else f"{name} weights"

    normalization = "layer normalization"
    skips = "skip connections"
    exchanges = "exchange axes by a transpose"
    """What changes the places of axes."""
    batch_first = "put the steps on the first axis, and the rows on the second"
    """What a module needs whose first axis is another than the rows'."""
    trains = "train in training mode"
    """What switches normalizations and dropout to training."""
    tells_loss = "record the loss too"
    """What makes the loss of a training's steps known."""
    cuts = "something that cuts the gradient off"
    """Calls after which no gradient comes back."""
    off = "something that switches gradients off"
    """A call within which no gradients are made."""
    freezing = "freeze them"
    """A way to leave parameters out of the training."""
    keeping = "register them with the network"
    """A way to make parameters known, as an instruction."""
    loss = "the loss function"
    decay = "the weight decay"
    empties = "empty the gradients once for every step, before the backward pass"
    steps = "let the optimizer step after the backward pass"
    keeps = "look in the loop for what sets the weights back"
    unscales = "scale the gradients back before they are clipped"
    undoing = ", and undo that when predicting"
    """What else a target that is scaled needs."""
    holds = "give them to the optimizer; if they are to stay as they are, let them need no gradient"
    registers = "keep them where the network lists its parameters"

    def edit(self, edit: Edit) -> str:
        """Say what an edit does, as an instruction."""
        match edit:
            case Scale(names, factor, rows, gate):
                return f"multiply {self.parameters(names, rows, gate)} by {factor:.3g}"
            case Zero(names, rows, gate):
                return f"set {self.parameters(names, rows, gate)} to 0"
            case Shift(names, amount, rows, gate):
                return f"add {amount:.3g} to {self.parameters(names, rows, gate)}"
            case Orthogonal(names):
                return f"draw {self.parameters(names)} again, orthogonal"
            case Chrono(names, _, steps):
                gates = self.parameters(names[:1])
                return f"draw {gates} for time scales up to {steps} steps (chrono)"
            case Steady(names):
                return f"change {self.parameters(names)} until gradients keep their size"
            case Redraw(names):
                return f"draw {self.parameters(names)} again"
            case Initialize(scheme):
                return f"use {self.scheme(scheme)}"
            case Lsuv():
                return "scale each layer's weights on the data (LSUV)"
            case AddSkips():
                return f"use {self.skips}"
            case Normalize(on):
                return f"{'use' if on else 'leave out'} {self.normalization}"
            case SetActivation(name):
                return f"use {self.activation(name)}"
            case SetCell(name, steps):
                scales = f", with time scales up to {steps} steps (chrono)" if steps else ""
                return f"use {name.upper()} cells{scales}"
            case ScaleData():
                return "scale the columns of x to mean 0 and standard deviation 1"
            case ScaleTarget():
                return "scale the target to mean 0 and standard deviation 1"
            case LearningRate(rate):
                return f"set the learning rate to {rate:.2g}"
            case WeightDecay(decay):
                return f"set the weight decay to {decay:.2g}"
            case Clip(limit):
                return f"clip the gradients' global norm at {limit:.2g}"
            case Truncate(every, back):
                return f"go back {back} steps from every {every}"
            case Together():
                return self._together(parts(edit))
        raise TypeError(f"edit must be one of vegrad.flow.edits, not {type(edit).__name__}")

    def _together(self, edits: Sequence[Edit]) -> str:
        match edits:
            case [SetActivation(name), Initialize(scheme)]:
                return f"use {self.activation(name)} with {self.scheme(scheme)}"
        scales = [edit for edit in edits if isinstance(edit, Scale)]
        if len(scales) == len(edits) > FEW:
            shown = [f"{self.parameters(one.parameters, one.rows)} by {one.factor:.3g}"
                     for one in scales[:FEW]]  # fmt: skip
            return f"multiply {', '.join(shown)} and {len(scales) - FEW} more"
        return " and ".join(self.edit(edit) for edit in edits)


# Templates --------------------------------------------------------------------------------------


def render(template: str, values: Mapping[str, object], vocabulary: Vocabulary) -> str:
    """Fill in a template such as "{site} has {count:d} values of {largest:.3g}".

    Sites and edits are named by the vocabulary, and `{words.loss}` and the like are its own words.
    A name takes the format `scheme` if it is that of an initialization. Numbers take Python's
    formats and three more: `times` writes a factor (0.21×), `share` the same as a plain number
    (0.21), and `power` a size of which the log10 is given (1e-32). A factor may be given by its
    `Log2`.
    """
    return _Template(vocabulary).vformat(template, (), {**values, "words": vocabulary})


class Log2(float):
    """The log2 of a factor, to be written as the factor: also beyond the range of floats."""


class _Template(Formatter):
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def format_field(self, value: Any, format_spec: str) -> str:
        words = self._vocabulary
        if isinstance(value, Site):
            return visible(words.site(value), LONG)
        if isinstance(value, Edit):
            return words.edit(value)
        if isinstance(value, tuple) and all(isinstance(one, Site) for one in value):
            return words.sites(value)
        if format_spec == "scheme":
            return words.scheme(value)
        if format_spec in ("times", "share"):
            log = value / DECADE if isinstance(value, Log2) else log10_or_less(value)
            size = power(log, digits=1)
            return size + ("×" if format_spec == "times" else "")
        if format_spec == "power":
            return power(value)
        if format_spec == "d":
            return str(int(value))
        written = format(value, format_spec)
        return visible(written, LONG) if isinstance(value, str) else written


# Numbers ----------------------------------------------------------------------------------------


def times(log2_factor: float) -> str:
    """Write a factor of which the log2 is given: 0.21×, 1.04×, 3.1e-12×."""
    return power(log2_factor / DECADE, digits=1) + "×"


def power(log10_size: float, digits: int = 0) -> str:
    """Write a size of which the log10 is given, also beyond floats: 0.34, 1e-32, 2e+5000."""
    if not isfinite(log10_size):
        return "?" if isnan(log10_size) else "0" if log10_size < 0 else "inf"
    if abs(log10_size) < 3:
        value = 10.0**log10_size
        if value < 0.995:
            return f"{value:#.2g}"
        return f"{value:.2f}" if value < 9.995 else f"{value:#.3g}".rstrip(".")
    exponent = floor(log10_size)
    mantissa = f"{10.0 ** (log10_size - exponent):.{digits}f}"
    if mantissa.startswith("10"):
        mantissa, exponent = f"{1.0:.{digits}f}", exponent + 1
    return f"{mantissa}e{exponent:+d}"


def listed(names: Sequence[str]) -> str:
    """Write names one after another; of more than a few, the first and the last."""
    names = [visible(name) for name in names]
    if len(names) > FEW:
        return f"{names[0]} to {names[-1]} ({len(names)} in all)"
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def named(layers: Sequence[int]) -> str:
    """Write numbers of layers: "layer 3", "layers 3–5, 9"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(texts)}"


def exp2(value: float) -> float:
    """Return 2 to the power of `value`, 0 or inf where a float ends."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp2(np.float64(value)))


def exp10(value: float) -> float:
    """Return 10 to the power of `value`, 0 or inf where a float ends."""
    return exp2(value * DECADE)


def log10_or_less(value: float) -> float:
    """Return the log10 of a size, -inf of 0 and nan of what is none."""
    return log10(value) if value > 0 else -inf if value == 0 else nan


def median(values: Sequence[float]) -> float:
    """Return the median of a few numbers, for which NumPy's takes 20 times as long."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def finite_mean(values: FloatArray) -> float:
    """Return the mean of the finite values; 0 if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else 0.0
