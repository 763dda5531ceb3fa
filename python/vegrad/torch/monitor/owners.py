"""Parameters that get gradients, and that no optimizer steps or the model does not list."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from vegrad.torch.monitor.modules import plain_name
from vegrad.torch.monitor.updates import can_be_sampled, few

AGAIN = 100  # steps after which optimizers are looked for again
STRANGERS = 10  # steps of other optimizers alone, after which this model's are asked for
DEPTH = 3  # of lists and dictionaries within each other


def held_by_any() -> set[int]:
    """Return the ids of all parameters that any optimizer of this process holds.

    The optimizers are looked for among all objects there are, which takes a while.
    """
    held: set[int] = set()
    for one in gc.get_objects():
        if issubclass(type(one), Optimizer):
            for group in getattr(one, "param_groups", ()):
                held.update(map(id, group["params"]))
    return held


def hidden_parameters(model: Module) -> dict[str, Parameter]:
    """Return the parameters in lists and dictionaries of a model, which it does not list."""
    listed = set(map(id, model.parameters()))
    found: dict[str, Parameter] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OWN and isinstance(value, list | tuple | Mapping):
                where = f"{path}.{name}" if path else name
                for parameter, one in _within(where, value, DEPTH):
                    if id(one) not in listed and id(one) not in map(id, found.values()):
                        found[plain_name(parameter)] = one
    return found


_OWN = frozenset(vars(Module()))


def _within(path: str, value: object, depth: int) -> Iterator[tuple[str, Parameter]]:
    if isinstance(value, Parameter):
        yield path, value
    elif isinstance(value, Module):
        for name, one in value.named_parameters():
            yield f"{path}.{name}", one
    elif depth and isinstance(value, list | tuple | Mapping):
        pairs: Iterable[tuple[object, object]]
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, one in pairs:
            yield from _within(f"{path}[{key!r}]", one, depth - 1)


class Owners:
    """A search for parameters of a model that get gradients and are not stepped.

    Only those count that have not changed since the first step: some train by hand.

    Args:
        model: the model.
        stepped: ids of the parameters that an optimizer has stepped, which is added to.
    """

    def __init__(self, model: Module, stepped: set[int]) -> None:
        self._model, self._stepped = model, stepped
        self._start: dict[int, Tensor] | None = None
        """A few elements of each parameter after the first step, by id."""
        self._asked: tuple[int, set[int]] = (0, set())
        self.strangers = 0
        """Steps of optimizers that have no parameter of the model, before its own first one."""
        self.tell: Callable[[], None] = lambda: None
        """Called once, if after a few of these steps it seems that there are to be no others."""

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the parameters as they are after the first step."""
        if self._start is None:
            everything = [*self._model.parameters(), *hidden_parameters(self._model).values()]
            self._start = {id(one): few(one).clone() for one in everything if can_be_sampled(one)}

    def see_stranger(self) -> None:
        """Note that an optimizer of other parameters has stepped, and none of the model's."""
        self.strangers += 1
        self.begin()
        if self.strangers == STRANGERS and self.strayed():
            self.tell()

    def strayed(self) -> tuple[str, ...]:
        """Return the model's parameters with gradients if steps were taken, but none of theirs."""
        named = {plain_name(name): one for name, one in self._model.named_parameters()}
        got = {name: _has_gradient(one) for name, one in named.items() if one.requires_grad}
        if self._stepped or self.strangers <= 1 or not any(got.values()):
            return ()
        suspects = {name: named[name] for name, has in got.items() if has}
        found = self._search(suspects, self.strangers)
        return found if len(found) == len(suspects) else ()

    def unheld(self, gradients: Mapping[str, bool], step: int) -> tuple[str, ...]:
        """Return the parameters, of those with `gradients`, that no optimizer has.

        Args:
            gradients: True for each that has had a gradient at each of the last steps.
            step: the number of steps that were taken.
        """
        named = {plain_name(name): one for name, one in self._model.named_parameters()}
        return self._search({n: one for n, one in named.items() if gradients.get(n)}, step)

    def unregistered(self, step: int) -> tuple[str, ...]:
        """Return the parameters with a gradient that the model does not list."""
        hidden = hidden_parameters(self._model)
        return self._search({n: one for n, one in hidden.items() if _has_gradient(one)}, step)

    @torch.no_grad()
    def _search(self, suspects: Mapping[str, Tensor], step: int) -> tuple[str, ...]:
        start = self._start or {}
        still = {
            name: one
            for name, one in suspects.items()
            if one.requires_grad
            and id(one) not in self._stepped
            and id(one) in start
            and bool((few(one) == start[id(one)]).all())
        }
        asked, held = self._asked
        if any(id(one) not in held for one in still.values()) and (
            not held or step >= asked + AGAIN
        ):
            self._asked = step, held = step, held_by_any()
        return tuple(name for name, one in still.items() if id(one) not in held)


def _has_gradient(one: Tensor) -> bool:
    grad = one.grad
    return grad is not None and not grad.is_meta and (grad.is_sparse or bool(grad.any()))
