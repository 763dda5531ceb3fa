"""Name parameters that a model uses and does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn import Module

DEEP = 4  # levels of lists and mappings that are looked into


def names_of_strangers(model: Module, strangers: Mapping[int, Tensor]) -> tuple[str, ...]:
    """Return the paths of parameters that lie in lists, or the shapes of those found nowhere.

    Args:
        model: the model that uses them.
        strangers: parameters by id.
    """
    if not strangers:
        return ()
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if strangers.keys() - found.keys():
                for name, tensor in _kept(f"{path}.{key}" if path else key, value, DEEP):
                    if id(tensor) in strangers:
                        found.setdefault(id(tensor), name)
    return tuple(
        found.get(key, f"a parameter of shape {tuple(one.shape)}") for key, one in strangers.items()
    )


def _kept(name: str, value: object, deep: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that a value holds, with their paths."""
    if isinstance(value, nn.Parameter):
        yield name, value
    elif isinstance(value, Module):
        for path, one in value.named_parameters():
            yield f"{name}.{path}", one
    elif deep and isinstance(value, list | tuple | set):
        for number, one in enumerate(value):
            yield from _kept(f"{name}[{number}]", one, deep - 1)
    elif deep and isinstance(value, Mapping):
        for key, one in value.items():
            yield from _kept(f"{name}[{key!r}]", one, deep - 1)
