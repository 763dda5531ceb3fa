"""Weights of PyTorch models drawn anew, as lines of code that do it.

The code is what a cure's patch shows and what is run: `model` is the model, and torch and nn are
imported. What is not trained keeps its values.
"""

from __future__ import annotations

import re
from inspect import signature
from math import prod, sqrt
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import Module

from vegrad.theory.meanfield import CRITICAL_SIGMA_B, critical_point
from vegrad.torch.models import is_measurable
from vegrad.treatment.script import quoted

Lines = tuple[str, ...]

TABLES = (nn.Embedding, nn.EmbeddingBag)
# Modules that have ways of their own to draw matrices, which no name of a scheme speaks of.
OTHERS = (*TABLES, nn.RNNBase, nn.RNNCellBase)
# Methods by which modules draw the weights of a module that is given, as they are mostly called.
OWN = ("_init_weights", "init_weights_", "init_")
# Names of parameters that are added or looked up, not multiplied with.
ADDED = re.compile(r"pos|tok|emb|cls|class|table|mask|bias|query|queries")
TOKENS = 0.02  # standard deviation of class and position tokens (Dosovitskiy et al. 2021)
SCHEMES = {
    "he_normal": 'nn.init.kaiming_normal_(drawn, nonlinearity="relu")',
    "he_uniform": 'nn.init.kaiming_uniform_(drawn, nonlinearity="relu")',
    "glorot_normal": "nn.init.xavier_normal_(drawn)",
    "glorot_uniform": "nn.init.xavier_uniform_(drawn)",
    "lecun_normal": "nn.init.normal_(drawn, std=drawn[0].numel() ** -0.5)",
    "orthogonal": "nn.init.orthogonal_(drawn)",
}


def drawn(activation: str, seed: int) -> Lines:
    """Draw orthogonal weights, and biases, on the activation's edge of chaos.

    The last layer's weights have a standard deviation of 1/√fan_in and its biases are 0.
    """
    sigma_b = CRITICAL_SIGMA_B.get(activation, 0.0)
    point = critical_point(activation, sigma_b)
    sigma_w = point.sigma_w if point is not None else sqrt(2.0)
    return (
        f"torch.manual_seed({seed})",
        "layers = [one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv1d,"
        " nn.Conv2d, nn.Conv3d))]",
        "for layer in layers:",
        f"    sigma_w, sigma_b = (1.0, 0.0) if layer is layers[-1] else ({sigma_w:.6g}, "
        f"{sigma_b:.6g})",
        "    fan_in = layer.weight[0].numel()",
        "    wide = max(fan_in, len(layer.weight)) / fan_in",
        "    nn.init.orthogonal_(layer.weight, gain=sigma_w * wide**0.5)",
        "    if layer.bias is not None:",
        "        nn.init.normal_(layer.bias, std=sigma_b)",
    )


def initialized(model: Module, scheme: str, seed: int) -> Lines | None:
    """Draw all weights from an initialization, with biases of 0.

    "default" is each module's own `reset_parameters()`, with the matrices of modules without
    uniform within ±1/√fan_in, and then what the model's `_init_weights(module)`, as many call it,
    does to each, or that of its parts. None if PyTorch has none of this name.
    """
    if scheme == "default":
        own = _own_ways(model)
        return (f"torch.manual_seed({seed})", *_uniform(_raw(model)), *_every_reset(), *own)
    if scheme not in SCHEMES:
        return None
    lines = [
        f"torch.manual_seed({seed})",
        "layers = [one for one in model.modules() if isinstance(one, (nn.Linear,"
        " nn.modules.conv._ConvNd)) and one.weight.requires_grad]",
        # Transposed, the weights of all are shaped (outputs, inputs, ...).
        'weights = [one.weight.transpose(0, 1) if getattr(one, "transposed", False)'
        " else one.weight for one in layers]",
        *_more_weights(_own_matrices(model)),
        "with torch.no_grad():",
        "    for weight in weights:",
        "        drawn = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)",
        f"        weight.copy_({SCHEMES[scheme]})",
        "    for layer in layers:",
        "        if layer.bias is not None:",
        "            layer.bias.zero_()",
    ]
    return tuple(lines)


KEPT = (
    "with torch.no_grad():",
    "    for name, value in kept.items():",
    "        model.get_parameter(name).copy_(value)",
)


def reset(module: str, further: str = "") -> Lines:
    """Let a module draw its own parameters if it can, and on a further condition; both are code."""
    return (
        f"    module = {module}",
        '    own = getattr(module, "reset_parameters", None)',
        '    own = own or getattr(module, "_reset_parameters", None)',
        f"    if own is not None{further}:",
        "        own()",
    )


def has_own(model: Module) -> bool:
    """Return True if a model, or a part of it, draws the weights of a module that is given."""
    return bool(_own_ways(model))


def _own_ways(model: Module) -> Lines:
    """Let the model draw the weights of its modules, or the largest parts that do so.

    () if some parameters are frozen, which would be drawn too.
    """
    if not all(one.requires_grad for one in model.parameters()):
        return ()
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        within = any(path.startswith(f"{above}.") or not above for above in found)
        ways = [name for name in OWN if _draws(getattr(module, name, None))]
        if ways and not within:
            found[path] = ways[0]
    parts = {path: f'model.get_submodule("{path}")' if path else "model" for path in found}
    return tuple(f"{parts[path]}.apply({parts[path]}.{way})" for path, way in found.items())


def _draws(way: object) -> bool:
    return callable(way) and len(signature(way).parameters) == 1


def _every_reset() -> Lines:
    """Let each module draw its own: a parent after its children, with which it may do more.

    Embeddings are first: where a layer shares their weights, these are drawn as the layer's.
    """
    return (
        "order = list(model.modules())[::-1]",
        "order.sort(key=lambda one: not isinstance(one, (nn.Embedding, nn.EmbeddingBag)))",
        "for one in order:",
        *reset("one", " and all(one.requires_grad for one in module.parameters())"),
    )


class Matrix(NamedTuple):
    """A parameter that something is multiplied with, of a module that is no layer of PyTorch."""

    name: str
    tensor: Tensor
    fan_in: int
    transposed: bool
    """True if it is shaped (inputs, outputs), or a stack of such."""


def has_reset(module: Module) -> bool:
    """Return True if a module can draw its own parameters."""
    return hasattr(module, "reset_parameters") or hasattr(module, "_reset_parameters")


def alone(model: Module, name: str) -> Lines:
    """Draw a parameter whose module has no `reset_parameters()`.

    Matrices are uniform within ±1/√fan_in, what is added or looked up is normal and small, as
    class tokens are; of vectors, biases are 0 and others 1.
    """
    path, _, leaf = name.rpartition(".")
    matrix = _matrix(name, model.get_submodule(path), model.get_parameter(name))
    if matrix is not None:
        return _uniform([matrix])
    tensor = model.get_parameter(name)
    if tensor.ndim != 1 or (ADDED.search(leaf) and "bias" not in leaf):
        how = f"nn.init.normal_({{}}, std={TOKENS})"
    else:
        how = "nn.init.zeros_({})" if "bias" in leaf else "nn.init.ones_({})"
    return (how.format(f"model.get_parameter({quoted(name)})"),)


def _matrix(name: str, module: Module, tensor: Tensor) -> Matrix | None:
    """Return a parameter as a matrix; None if it is a vector, or added or looked up."""
    leaf, shape = name.rpartition(".")[2], tensor.shape
    if tensor.ndim < 2 or min(shape) < 2 or isinstance(module, TABLES) or ADDED.search(leaf):
        return None
    if tensor.ndim > 3:
        return Matrix(name, tensor, prod(shape[1:]), transposed=False)
    # A vector beside it, the bias, is as long as the outputs; a stack multiplies from the right.
    beside = {len(one) for one in module.parameters(recurse=False) if one.ndim == 1}
    transposed = tensor.ndim == 3 or (shape[1] in beside and shape[0] not in beside)
    return Matrix(name, tensor, shape[-2] if transposed else shape[-1], transposed)


def _matrices(model: Module) -> list[tuple[Module, Matrix]]:
    """Return the trained matrices of modules that are no layers of PyTorch."""
    layers, found = (nn.Linear, nn.modules.conv._ConvNd, *OTHERS), []
    for path, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if isinstance(module, layers) or not tensor.requires_grad:
                continue
            if not is_measurable(tensor) or "parametrizations." in name:
                continue
            matrix = _matrix(name, module, tensor)
            if matrix is not None:
                found.append((module, matrix))
    return found


def _raw(model: Module) -> list[Matrix]:
    """Return the matrices that no module would draw."""
    return [matrix for module, matrix in _matrices(model) if not has_reset(module)]


def _own_matrices(model: Module) -> list[Matrix]:
    """Return the matrices that a scheme may draw beside the layers' weights."""
    return [
        matrix
        for _, matrix in _matrices(model)
        if not matrix.tensor.is_complex() and matrix.tensor.ndim < 4
    ]


def _uniform(matrices: list[Matrix]) -> Lines:
    if not matrices:
        return ()
    bounds = {one.name: float(f"{one.fan_in**-0.5:.6g}") for one in matrices}
    weight = "model.get_parameter(name)"
    if any(one.tensor.is_complex() for one in matrices):
        weight = f"torch.view_as_real({weight}) if {weight}.is_complex() else {weight}"
    return (
        "with torch.no_grad():",
        f"    for name, bound in {bounds!r}.items():",
        f"        nn.init.uniform_({weight}, -bound, bound)",
    )


def _more_weights(matrices: list[Matrix]) -> Lines:
    plain = [one.name for one in matrices if not one.transposed]
    turned = [one.name for one in matrices if one.transposed and one.tensor.ndim == 2]
    stacks = [one.name for one in matrices if one.transposed and one.tensor.ndim == 3]
    lines = []
    if plain:
        lines.append(f"weights += [model.get_parameter(name) for name in {plain!r}]")
    if turned:
        lines.append(f"weights += [model.get_parameter(name).mT for name in {turned!r}]")
    if stacks:
        lines.append(f"weights += [m for name in {stacks!r} for m in model.get_parameter(name).mT]")
    return tuple(lines)
