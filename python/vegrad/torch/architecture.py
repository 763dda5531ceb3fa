"""Other architectures for a torch model, as lines of code that change it.

The code exchanges activations, and adds normalization or skip connections. It is what a cure's
patch shows and what is run to apply it: `model` is the model, and torch and nn are imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import getsource
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import Module

from vegrad.torch import models
from vegrad.torch.activations import MODULES
from vegrad.torch.schemes import Lines

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
# Runs of children, from the first to before the second number, by the path of their nn.Sequential.
Units = dict[str, list[tuple[int, int]]]


class Residual(nn.Module):
    """A skip connection: x + scale · branch(x)."""

    def __init__(self, branch: nn.Module, scale: float) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum, of the shape of x."""
        return x + self.scale * self.branch(x)


def importable(model: Module, pasted: type[Module] | None) -> None:
    """Make `Residual`s of this file of the modules whose class a patch has defined.

    Their class could not be imported by name, so that the model could not be pickled, nor saved
    whole by `torch.save`.
    """
    for module in model.modules():
        if type(module) is pasted:
            module.__class__ = Residual


def module_of(activation: str) -> str:
    """Return PyTorch's name for the module of an activation of vegrad's."""
    return next(module.__name__ for module, row in MODULES.items() if row.ours == activation)


def activated(names: list[str], new: str) -> Lines:
    """Put the activation `new` in place of modules."""
    return (f"for name in {_named(names)}:", f"    model.set_submodule(name, nn.{new}())")


def activations(model: Module, x: object, kinds: tuple[type[Module], ...] = ()) -> list[str]:
    """Return the names of the activations that run for x, without those of the model's output.

    An activation is the output's if what it returns meets no further weights on its way there. It
    is part of what the model means, as the sigmoid is that makes probabilities.

    Args:
        model: the model.
        x: some rows, which are run; if None, all activations are returned.
        kinds: classes of activations; by default all that vegrad knows.
    """
    made: dict[int, list[object]] = {}

    def keep(module: Module, inputs: object, output: object) -> None:
        nodes = [one.grad_fn for one in models.tensors_in(output)]
        made.setdefault(id(module), []).extend(node for node in nodes if node is not None)

    found = [
        (name, one)
        for name, one in model.named_modules(remove_duplicate=False)
        if name and type(one) in (kinds or tuple(MODULES))
    ]
    if x is None:
        return [name for name, _ in found]
    unique = {id(one): one for _, one in found}.values()
    handles = [one.register_forward_hook(keep) for one in unique]
    try:
        with models.untouched(model):
            tail = _after_the_weights(models.tensors_in(models.called(model, x)))
    finally:
        for handle in handles:
            handle.remove()
    inner = {key for key, nodes in made.items() if not any(node in tail for node in nodes)}
    return [name for name, one in found if id(one) in inner]


def _after_the_weights(outputs: Iterable[Tensor]) -> set[object]:
    """Return the nodes of the graph from the outputs back to the last layers' weights."""
    waiting = [one.grad_fn for one in outputs if one.grad_fn is not None]
    seen = set[object](waiting)
    while waiting:
        node = waiting.pop()
        nexts = [one for one, _ in node.next_functions if one is not None]
        if any(map(_is_weight, nexts)):
            continue
        waiting += [one for one in nexts if one not in seen]
        seen.update(nexts)
    return seen


def _is_weight(node: Node) -> bool:
    """Return True of a node that is a matrix of weights, or only turns one."""
    while len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return getattr(getattr(node, "variable", None), "ndim", 0) > 1


def has_norm(model: Module) -> bool:
    """Return True if a module of the model normalizes."""
    return any(isinstance(one, NORMS) for one in model.modules())


def normalized(model: Module, names: list[str]) -> Lines:
    """Add a normalization of each row after each of these layers."""
    linear = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    others = [name for name in names if name not in linear]
    norms = {
        "nn.LayerNorm(layer.out_features)": linear,
        "nn.GroupNorm(1, layer.out_channels)": others,
    }
    return tuple(
        line
        for norm, chosen in norms.items()
        for line in (followed(chosen, norm) if chosen else ())
    )


def followed(names: list[str], module: str) -> Lines:
    """Put a module behind each of these layers; its code may speak of the `layer`."""
    return (
        f"for name in {names!r}:",
        "    layer = model.get_submodule(name)",
        f"    model.set_submodule(name, nn.Sequential(layer, {module}))",
    )


def skipped(units: Units) -> Lines:
    """Put skip connections round runs of modules, their branches scaled."""
    scale = branch_scale(sum(map(len, units.values())))
    places = ", ".join(f"{path!r}: {_listed(runs)}" for path, runs in units.items())
    return (
        *_definition(),
        f"for path, runs in {{{places}}}.items():",
        "    inside = model.get_submodule(path)",
        "    for first, last in reversed(runs):",
        f"        inside[first] = Residual(inside[first:last], {scale!r})",
        "        del inside[first + 1 : last]",
    )


def skipped_layers(names: list[str]) -> Lines:
    """Put skip connections round single layers, wherever they are called: before the activation."""
    return (
        *_definition(),
        f"for name in {_named(names)}:",
        f"    layer = Residual(model.get_submodule(name), {branch_scale(len(names))!r})",
        "    model.set_submodule(name, layer)",
    )


def _definition() -> Lines:
    """Define `Residual`, as this file does."""
    return ("", *getsource(Residual).splitlines(), "", "")


def branch_scale(count: int) -> float:
    """Return 1/√depth, so that branches add up to about e (Zhang et al. 2019, arXiv:1901.09321)."""
    return float(f"{1 / sqrt(count):.3g}")


def _listed(runs: list[tuple[int, int]]) -> str:
    """Return runs as code, in a short form if they are alike and evenly spaced."""
    (first, end), (last, _) = runs[0], runs[-1]
    step = runs[1][0] - first if len(runs) > 1 else 0
    alike = [(n, n + end - first) for n in range(first, last + 1, step)] if step else []
    if len(runs) > 3 and runs == alike:
        return f"[(n, n + {end - first}) for n in range({first}, {last + 1}, {step})]"
    return repr(runs)


def _named(names: list[str]) -> str:
    """Return names as code, in a short form if they are numbered in even steps."""
    before, _, first = names[0].rpartition(".")
    path = f"{before}." if before else ""
    last = names[1 if len(names) > 1 else 0].rpartition(".")[2]
    if len(names) > 3 and first.isdigit() and last.isdigit():
        step = int(last) - int(first)
        end = int(first) + len(names) * step
        numbers = range(int(first), end - step + 1, step) if step > 0 else range(0)
        if names == [f"{path}{n}" for n in numbers]:
            every = "" if step == 1 else f", {step}"
            return f'[f"{path}{{n}}" for n in range({first}, {numbers.stop}{every})]'
    return repr(names)


def shrunk(factor: float) -> Lines:
    """Multiply the output layer's weights by a factor; `layers` are those that `drawn` drew."""
    return ("with torch.no_grad():", f"    layers[-1].weight.mul_({factor!r})")


def units_of(model: Module, names: list[str], x: Any) -> Units:
    """Return the runs of modules that a skip connection can go round, by their nn.Sequential.

    A run begins with a named layer and goes on to the last module before the next one whose output
    is shaped as the run's input.
    """
    shapes = _shapes(model, x)
    units: Units = {}
    for path, container in model.named_modules():
        if type(container) is not nn.Sequential:
            continue
        children = list(container)
        starts = [n for n, child in enumerate(children) if any(_own(path, str(n), child, names))]
        for first, after in pairwise([*starts, len(children)]):
            seen = [shapes.get(id(child), (None, None)) for child in children[first:after]]
            ends = [n for n, (_, gone) in enumerate(seen, first + 1) if gone == seen[0][0]]
            if ends and seen[0][0] is not None:
                units.setdefault(path, []).append((first, ends[-1]))
    return units


def square_layers(model: Module, names: list[str], x: Any) -> list[str]:
    """Return the named layers whose outputs are shaped as their inputs."""
    shapes = _shapes(model, x)
    seen = {name: shapes.get(id(model.get_submodule(name))) for name in names if name}
    return [name for name, found in seen.items() if found is not None and found[0] == found[1]]


def _own(path: str, key: str, child: Module, names: list[str]) -> Iterator[str]:
    """Yield the named layers that are this child or lie in it, outside any nn.Sequential in it."""
    whole = f"{path}.{key}" if path else key
    for name in names:
        if name == whole:
            yield name
        elif name.startswith(f"{whole}."):
            inside = child
            between = [inside]
            for part in name[len(whole) + 1 :].split(".")[:-1]:
                inside = inside.get_submodule(part)
                between.append(inside)
            if not any(type(one) is nn.Sequential for one in between):
                yield name


def _shapes(model: Module, x: Any) -> dict[int, tuple[torch.Size, torch.Size]]:
    """Return the shapes of the first input and of the output of each module, by the module's id."""
    found: dict[int, tuple[torch.Size, torch.Size]] = {}

    def hook(module: Module, inputs: tuple[object, ...], output: object) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            found[id(module)] = (inputs[0].shape, output.shape)

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        with models.untouched(model):
            models.called(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return found
