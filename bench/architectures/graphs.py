"""Architectures of torch_geometric, which tell the classes of a graph's nodes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures import tasks
from architectures.registry import add
from architectures.tasks import CLASSES, Case

INPUTS, WIDTH = 16, 32


class Layers(nn.Module):
    """Graph layers with ReLU between them, and linear layers before and after."""

    def __init__(self, make: Callable[[int, int], nn.Module], depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(make(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        """Compute logits of each node."""
        x = torch.relu(self.first(x))
        for layer in self.layers:
            x = functional.relu(layer(x, *edges))
        return self.last(x)


# The class of the layers, their number, and their options.
ROWS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("TransformerConv", 3, {"heads": 4, "concat": False}),
    ("ChebConv", 3, {"K": 3}),
    ("TAGConv", 3, {}),
    ("ARMAConv", 3, {"num_stacks": 2}),
    ("GATv2Conv", 3, {"heads": 4, "concat": False}),
    ("ResGatedGraphConv", 4, {}),
    ("GraphConv", 3, {"aggr": "mean"}),
    ("FeaStConv", 3, {"heads": 2}),
)


def of_nodes(model: nn.Module, more: tuple[Tensor, ...] = ()) -> Case:
    """Let a model tell the classes of the nodes."""
    x, edges, y = tasks.network(width=INPUTS)
    return Case(model, tasks.labels, (x, edges, *more), y, rows=False, rate=1e-2)


def library() -> Any:
    """Import the layers of torch_geometric."""
    return importlib.import_module("torch_geometric.nn")


def listed(name: str, depth: int, options: dict[str, Any]) -> None:
    """Put a stack of layers into the list."""
    add(f"torch_geometric/{name}")(
        lambda: of_nodes(Layers(lambda i, o: getattr(library(), name)(i, o, **options), depth))
    )


for row in ROWS:
    listed(*row)


@add("torch_geometric/GPSConv")
def gps() -> Case:
    def make(inputs: int, outputs: int) -> nn.Module:
        local = library().GINConv(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU()))
        return library().GPSConv(outputs, local, heads=4)

    return of_nodes(Layers(make, 3))


@add("torch_geometric/GatedGraphConv")
def gated() -> Case:
    return of_nodes(Layers(lambda i, o: library().GatedGraphConv(o, 4), 1))


@add("torch_geometric/RGCNConv")
def relations() -> Case:
    edges = tasks.network(width=INPUTS)[1]
    kinds = (edges[0] + edges[1]) % 3
    return of_nodes(Layers(lambda i, o: library().RGCNConv(i, o, 3), 2), (kinds,))


@add("torch_geometric/GraphUNet")
def unet() -> Case:
    return of_nodes(library().GraphUNet(INPUTS, WIDTH, CLASSES, depth=3))
