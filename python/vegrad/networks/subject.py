"""Own networks as a subject: what `vegrad.diagnose` and `vegrad.cure` ask of them."""

from __future__ import annotations

from typing import Any, Self

from vegrad.flow.edits import Edit
from vegrad.flow.reading import Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.networks import reading
from vegrad.networks.editor import clone, edited
from vegrad.networks.mlp import MLP
from vegrad.networks.vocabulary import LayerVocabulary


class NetworkSubject:
    """A `vegrad.MLP`."""

    def __init__(self, network: MLP) -> None:
        if not isinstance(network, MLP):
            raise TypeError(f"network must be a vegrad.MLP, not {type(network).__name__}")
        self.network = network
        self.vocabulary = LayerVocabulary(network.depth)

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        """Run the network forward and back on a batch and write down what that tells."""
        return reading.read(self.network, x, target, resamples=resamples, seed=seed)

    def copy(self) -> Self:
        """Return a copy, to the bit."""
        return type(self)(clone(self.network))

    def apply(self, edit: Edit) -> Code | Refusal:
        """Do an edit in place, if its shape allows it; else to another network."""
        done = edited(self.network, edit)
        if isinstance(done, Refusal):
            return done
        self.network, code = done
        return code

    def write(self, other: Self) -> None:
        """Take over the parameters' values of another network of the same shape."""
        for name, array in other.network.parameters.items():
            self.network.parameters[name][...] = array
