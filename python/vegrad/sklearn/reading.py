"""A reading of a network whose parameters have scikit-learn's names."""

from __future__ import annotations

from dataclasses import replace

from vegrad.flow.edits import Edit
from vegrad.flow.reading import Effect, Reading
from vegrad.networks.what_if import ScaledInputs

ATTRIBUTES = {"weight": "coefs_", "bias": "intercepts_"}


def renamed(name: str) -> str:
    """Return "coefs_[3]" for "layers.3.weight"."""
    _, layer, part = name.split(".")
    return f"{ATTRIBUTES[part]}[{layer}]"


class Renamed(ScaledInputs):
    """A what-if whose gradients have scikit-learn's names."""

    def effect(self, edit: Edit | None) -> Effect | None:
        """Return loss and gradients had this been done, None if that is not known."""
        found = super().effect(edit)
        return found and Effect(
            found.loss, {renamed(n): v for n, v in found.gradients_log2.items()}
        )


def in_its_words(got: Reading) -> Reading:
    """Return the reading of a network with other names of parameters and data."""
    problem = got.problem and replace(got.problem, name={"x": "X"}.get(got.problem.name, "y"))
    chain, of = got.chain, {name: renamed(name) for name in got.parameters}
    if chain is None:  # nothing could be run
        return replace(got, problem=problem)
    layers = [replace(one, weight=of[one.weight], bias=of[str(one.bias)]) for one in chain.layers]
    what_if = got.what_if
    if isinstance(what_if, ScaledInputs):
        what_if = Renamed(what_if.network, what_if.x, what_if.run)
    return replace(
        got,
        chain=replace(chain, layers=tuple(layers)),
        parameters={of[n]: replace(one, name=of[n]) for n, one in got.parameters.items()},
        operations=tuple(
            replace(one, parameters=tuple(of[n] for n in one.parameters)) for one in got.operations
        ),
        inputs=tuple(replace(one, name="X") for one in got.inputs),
        what_if=what_if,
    )
