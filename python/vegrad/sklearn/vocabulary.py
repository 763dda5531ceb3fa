"""The words of scikit-learn for layers, parameters and edits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vegrad.flow.edits import (
    Clip,
    Edit,
    Initialize,
    LearningRate,
    ScaleData,
    ScaleTarget,
    SetActivation,
    Together,
)
from vegrad.flow.site import LAYERED, Site
from vegrad.flow.wording import Vocabulary, listed, named
from vegrad.sklearn.bridge import SIGMOID

PARAMETER = re.compile(r"layers\.(\d+)\.(weight|bias)")
ATTRIBUTES = {
    "weight": "coefs_",
    "bias": "intercepts_",
    "weights": "coefs_",
    "biases": "intercepts_",
}
LOGISTIC = {theirs: name for name, theirs in SIGMOID.items()}


def renamed(name: str) -> str:
    """Return "coefs_[3]" for "layers.3.weight"."""
    found = PARAMETER.fullmatch(name)
    return name if found is None else f"{ATTRIBUTES[found[2]]}[{found[1]}]"


class EstimatorVocabulary(Vocabulary):
    """Layers have numbers, edits are arguments; those that only vegrad's estimators have are said.

    Args:
        own: True if it is an estimator of vegrad's.
        times: the learning rate of vegrad's optimizer over `learning_rate_init`.
    """

    def __init__(self, *, own: bool = False, times: float = 1.0) -> None:
        self._whose = "" if own else " (of vegrad.sklearn's estimators)"
        self.times = times
        self.normalization = f'norm="layer"{self._whose}'
        self.skips = f"residual=True{self._whose}"

    def site(self, site: Site) -> str:
        """Name a layer by its number, its weights by their attribute."""
        if site.place is None or site.kind not in LAYERED:
            return {"x": "X", "target": "y"}.get(site.name or site.kind, super().site(site))
        if site.kind in ATTRIBUTES:
            return f"{ATTRIBUTES[site.kind]}[{site.place}]"
        layer = f"layer {site.place}"
        return layer if site.kind == "layer" else f"the {site.kind} of {layer}"

    def sites(self, sites: Sequence[Site]) -> str:
        """Name layers by their numbers: layers 3–5, 9."""
        if all(site.kind == "layer" and site.place is not None for site in sites):
            return named([site.place for site in sites if site.place is not None])
        return super().sites(sites)

    def parameters(
        self, names: Sequence[str], rows: tuple[int, int] | None = None, gate: str = ""
    ) -> str:
        """Name parameters by their attributes; rows of vegrad's are columns of scikit-learn's."""
        part = "" if rows is None else f"[..., {rows[0]}:{rows[1]}]"
        return listed([f"{renamed(name)}{part}" for name in names])

    def activation(self, name: str) -> str:
        """Write the argument for an activation."""
        return f'activation="{LOGISTIC.get(name, name)}"'

    def scheme(self, name: str) -> str:
        """Write the argument for an initialization."""
        return f'init="{name}"{self._whose}'

    def edit(self, edit: Edit) -> str:
        """Say what an edit does, as an instruction."""
        match edit:
            case ScaleData():
                return "put a StandardScaler before it: make_pipeline(StandardScaler(), …)"
            case ScaleTarget():
                return "scale y: TransformedTargetRegressor(…, transformer=StandardScaler())"
            case LearningRate(rate):
                return f"set learning_rate_init={rate / self.times:.2g}"
            case Together((SetActivation(name), Initialize())) if self._whose:
                return f"use {self.activation(name)}"
            case Clip(limit):
                return f"clip the gradients, clip={limit * self.times:.2g}{self._whose}"
        return super().edit(edit)
