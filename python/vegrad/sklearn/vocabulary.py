"""The words of scikit-learn for layers, parameters and edits."""

from __future__ import annotations

from collections.abc import Sequence

from vegrad.flow import edits
from vegrad.flow.edits import Edit
from vegrad.flow.site import Site
from vegrad.flow.wording import listed
from vegrad.networks.vocabulary import LayerVocabulary
from vegrad.sklearn.estimators.bridge import SIGMOID

PARTS = {"weights": "coefs_", "biases": "intercepts_"}
LOGISTIC = {theirs: name for name, theirs in SIGMOID.items()}


class EstimatorVocabulary(LayerVocabulary):
    """Edits are arguments; of those that only vegrad's `own` estimators have, that is said.

    `times` is the learning rate of the network's optimizer over `learning_rate_init`, `penalized`
    is `alpha` over its weight decay.
    """

    decay = "alpha"
    undoing = ""  # TransformedTargetRegressor does it

    def __init__(self, depth: int, *, own: bool, times: float, penalized: float) -> None:
        super().__init__(depth)
        self._whose = "" if own else " (of vegrad.sklearn's estimators)"
        self.times, self.penalized = times, penalized
        self.normalization = f'norm="layer"{self._whose}'
        self.skips = f"residual=True{self._whose}"

    def site(self, site: Site) -> str:
        """Name a layer by its number, its weights by their attribute."""
        if site.place is not None and site.kind in PARTS:
            return f"{PARTS[site.kind]}[{site.place}]"
        return super().site(site)

    def parameters(
        self, names: Sequence[str], rows: tuple[int, int] | None = None, gate: str = ""
    ) -> str:
        """Name parameters; rows of vegrad's are columns of scikit-learn's."""
        part = "" if rows is None else f"[..., {rows[0]}:{rows[1]}]"
        return listed([f"{name}{part}" for name in names])

    def activation(self, name: str) -> str:
        """Write the argument for an activation."""
        return f'activation="{LOGISTIC.get(name, name)}"'

    def scheme(self, name: str) -> str:
        """Write the argument for an initialization."""
        return f'init="{name}"{self._whose}'

    def edit(self, edit: Edit) -> str:
        """Say what an edit does, as an instruction."""
        match edit:
            case edits.ScaleData():
                return "put a StandardScaler before it: make_pipeline(StandardScaler(), …)"
            case edits.ScaleTarget():
                return "scale y: TransformedTargetRegressor(…, transformer=StandardScaler())"
            case edits.LearningRate(rate):
                return f"set learning_rate_init={rate / self.times:.2g}"
            case edits.WeightDecay(decay):
                return f"set alpha={decay * self.penalized:.2g}"
            case edits.Together((edits.SetActivation(name), edits.Initialize())) if self._whose:
                return f"use {self.activation(name)}"
            case edits.Clip(limit):
                return f"clip the gradients, clip={limit * self.times:.2g}{self._whose}"
        return super().edit(edit)
