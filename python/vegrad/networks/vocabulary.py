"""How `vegrad.MLP` names its layers, parameters and arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vegrad.flow.site import LAYERED, Site
from vegrad.flow.wording import Vocabulary, listed, named

PARAMETER = re.compile(r"layers\.(\d+)\.(weight|bias)")
PARTS = {"weight": "weights", "bias": "biases"}


class LayerVocabulary(Vocabulary):
    """Layers have numbers, and edits are arguments of `vegrad.MLP`."""

    normalization = 'norm="layer"'
    skips = "residual=True"

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def site(self, site: Site) -> str:
        """Name a layer by its number."""
        if site.place is None or site.kind not in LAYERED:
            return super().site(site)
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
        """Say "the weights of layers 3–5" of layers.3.weight to layers.5.weight."""
        found = [PARAMETER.fullmatch(name) for name in names]
        parts = {one[2] for one in found if one is not None}
        if None in found or len(parts) != 1:
            return listed(names)
        layers = [int(one[1]) for one in found if one is not None]
        where = "every layer" if len(layers) >= max(self._depth - 1, 2) else named(layers)
        return f"the {PARTS[parts.pop()]} of {where}"

    def activation(self, name: str) -> str:
        """Write the argument for an activation."""
        return f'activation="{name}"'

    def scheme(self, name: str) -> str:
        """Write the argument for an initialization."""
        return f'init="{name}"'


class RecurrentVocabulary(Vocabulary):
    """Parameters have PyTorch's names, and edits are arguments of `vegrad.RNN`."""

    def scheme(self, name: str) -> str:
        """Write the argument for an initialization."""
        return f'init="{name}"'
