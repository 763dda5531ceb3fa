"""Parameters that get gradients, and that no optimizer steps or the model does not list."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from vegrad.torch.models import tensors_in
from vegrad.torch.monitor.first import FirstLook
from vegrad.torch.monitor.loop import Loop
from vegrad.torch.monitor.modules import plain_name
from vegrad.torch.monitor.updates import can_be_sampled, few

AGAIN = 100  # steps after which optimizers are looked for again
STRANGERS = 10  # steps of other optimizers alone, after which this model's are asked for
SOME = 20  # backward passes whose gradients nobody has stepped, after which a report says so
MANY = 100  # after which it is told at once
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
        loop: its loop, which knows the parameters that an optimizer has stepped.
        first: what knows the model's last call.
    """

    def __init__(self, model: Module, loop: Loop, first: FirstLook) -> None:
        self._model, self._loop, self._first = model, loop, first
        self._stepped = loop.steps.ids
        self._start: dict[int, Tensor] | None = None
        """A few elements of each parameter after the first backward pass or step, by id."""
        self._asked: tuple[int, set[int]] = (0, set())
        self.strangers = 0
        """Steps of optimizers that have no parameter of the model, before its own first one, each
        after a backward pass of the model."""
        self.passes = 0
        """Backward passes of the model before its first step."""
        self._unused = 0
        """Those of them that found the gradients of the one before gone."""
        self.copied = 0
        """Steps of optimizers that have the parameters of a copy, each after a call of the copy."""
        self._is_due = self._others = False
        """`_others`: other optimizers have stepped; `_is_due`: there was a pass since they did."""
        self.tell: Callable[[], None] = lambda: None
        """Called if after a few of these steps, or many of these passes, it seems that there are to
        be no others."""

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the parameters as they are when this is called first."""
        if self._start is None:
            everything = [*self._model.parameters(), *hidden_parameters(self._model).values()]
            self._start = {id(one): few(one).clone() for one in everything if can_be_sampled(one)}

    def see_pass(self) -> None:
        """Note that a backward pass of the model is over, if nobody has stepped yet."""
        loop = self._loop
        if self._stepped:
            return
        self.begin()
        self._is_due = True
        if loop.scale is not None:  # which leaves out steps, as long as it has not found its factor
            return
        self.passes += 1
        if self.passes == 1 or not loop.began_empty or not self._model.training:
            return
        if any(one.requires_grad for one in tensors_in(self._first.call)):
            return  # what is asked for may be the gradient of the data
        self._unused += 1
        # One row at a time is how gradients of single samples are taken, to be read by hand.
        if self._unused % MANY == 0 and not _is_one_row(self._first.call) and self.unstepped():
            self.tell()

    def unstepped(self) -> int:
        """Return the number of backward passes, if an optimizer is there that never steps.

        0 if there are few, if they may be adding up to a step that is to come, if no optimizer has
        the model's parameters, or another one steps, or if some have changed: some train by hand.
        """
        if self._stepped or self._others or self._unused < SOME:
            return 0
        trained = [one for one in self._model.parameters() if one.requires_grad]
        if not all(map(self.is_still, trained)):
            return 0
        held = held_by_any()
        return self.passes if any(id(one) in held for one in trained) else 0

    def see_stranger(self, optimizer: Optimizer, *, counts: bool) -> None:
        """Note that an optimizer of other parameters has stepped, and none of the model's.

        Args:
            optimizer: the optimizer.
            counts: True if no step of the model was seen, not even one that the user ended.
        """
        if not self._stepped and not self.passes:
            self._see_copy(optimizer)
        if self._stepped or not self._is_due:  # nothing was done with this model since the last
            return
        self._is_due, self._others = False, True
        self.strangers += counts
        if counts and self.strangers == STRANGERS and self.strayed():
            self.tell()

    def _see_copy(self, optimizer: Optimizer) -> None:
        called, self._first.copy = self._first.copy, None
        if called is None or (copy := called()) is None:
            return
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        if held.isdisjoint(map(id, copy.parameters())):
            return
        self.begin()
        self.copied += 1
        if self.copied == MANY and self.in_copies():
            self.tell()

    def in_copies(self) -> int:
        """Return the number of steps of copies, if they are many and the model has none of them."""
        alone = not self._stepped and not self.passes and self.copied > SOME
        return self.copied if alone and all(map(self.is_still, self._model.parameters())) else 0

    def is_without_steps(self) -> bool:
        """Return True if it is clear that no optimizer of the model will step."""
        return bool(self.strayed() or self.unstepped() or self.in_copies())

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
        still = {
            name: one
            for name, one in suspects.items()
            if one.requires_grad and id(one) not in self._stepped and self.is_still(one)
        }
        asked, held = self._asked
        if any(id(one) not in held for one in still.values()) and (
            not held or step >= asked + AGAIN
        ):
            self._asked = step, held = step, held_by_any()
        return tuple(name for name, one in still.items() if id(one) not in held)

    @torch.no_grad()
    def is_still(self, one: Tensor) -> bool:
        """Return True if a parameter is known to be what it was at the beginning."""
        start = (self._start or {}).get(id(one))
        return start is not None and bool((few(one) == start).all())


def _is_one_row(call: object) -> bool:
    """Return True of a model's arguments if the first tensor in them is a single row."""
    given = next(tensors_in(call), None)
    return given is not None and given.ndim > 0 and len(given) == 1


def _has_gradient(one: Tensor) -> bool:
    grad = one.grad
    return grad is not None and not grad.is_meta and (grad.is_sparse or bool(grad.any()))
