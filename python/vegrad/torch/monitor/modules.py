"""The modules of a model that a monitor watches, their names, and the tensors that they return."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.torch.fused.sequential import FusedMLP
from vegrad.torch.gradient_norms import is_distributed

_PLAIN = (torch.nn.modules.dropout._DropoutNd, torch.nn.Identity, torch.nn.Flatten)
_is_compiling = torch.compiler.is_compiling
T = TypeVar("T")
Slots: TypeAlias = MutableMapping[int, Callable[..., object]]
Ran: TypeAlias = Callable[[Module, tuple[object, ...], object], None]
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def plain_name(name: str) -> str:
    """Return the name that a parameter or module has in the model without wrappers."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def wrapped(model: Module) -> Iterator[Module]:
    """Yield a model, then what is within it if it wraps one for processes or for the compiler."""
    yield model
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, Module) and type(model).__module__.startswith("torch."):
            yield from wrapped(inner)
            return


def own_parameters(path: str, module: Module) -> list[str]:
    """Return the names of the parameters that are the module's own, not those of modules in it."""
    found = module.named_parameters(recurse=isinstance(module, FusedMLP))
    return [f"{path}.{name}" if path else name for name, _ in found]


def is_watched(module: Module) -> bool:
    """Return True for modules that compute: with parameters of their own, or without children."""
    if isinstance(module, _PLAIN):
        return False
    if isinstance(module, FusedMLP):  # it has both, and does not call its layers' hooks
        return True
    if next(module.parameters(recurse=False), None) is not None:
        return type(module).forward is not torch.nn.modules.module._forward_unimplemented
    return not module._modules and type(module) is not Module


def inner_places(watched: Sequence[Module], own: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the numbers of the modules with parameters within each; none within a single layer."""
    places = {id(one): place for place, one in enumerate(watched) if own[place]}
    return [
        [places[id(one)] for one in module.modules() if one is not module and id(one) in places]
        if not _is_layer(module)
        else []
        for module in watched
    ]


def _is_layer(module: Module) -> bool:
    """Return True if a module uses its parameters as PyTorch's do, whatever else it holds.

    So do adapters and parametrizations of such a module; a container that adds a table of positions
    or scales what its modules make does not.
    """
    return any(
        base.__module__.startswith("torch.nn.modules.")
        and not base.__module__.endswith((".module", ".container"))
        for base in type(module).__mro__
    )


def begins_at_zero(module: Module) -> bool:
    """Return True if some weight of a module is 0 and is trained, or is kept by several processes.

    Of those no process can tell alone.
    """
    trained = ((n, one) for n, one in module.named_parameters() if one.requires_grad)
    weights = [one for name, one in trained if not name.endswith("bias")]
    return any(is_distributed(one) or not bool(one.detach().any()) for one in weights)


def is_plain(tensor: Tensor | None) -> bool:
    """Return True if elements can be counted: real ones, dense, on the CPU, none elsewhere."""
    if tensor is None or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    return tensor.is_floating_point() and not is_distributed(tensor)


def tensor_in(output: object) -> Tensor | None:
    """Return the first tensor of floats in a module's inputs or outputs; None if there is none."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values: Iterable[object] = ()
    if isinstance(output, tuple | list):
        values = output
    elif isinstance(output, Mapping):
        values = output.values()
    elif is_dataclass(output):
        values = [getattr(output, one.name, None) for one in fields(output)]
    return next((found for value in values if (found := tensor_in(value)) is not None), None)


def first_sample(tensor: Tensor) -> int | None:
    """Return the first sample of a batch with an element that is not finite."""
    if tensor.ndim < 2:
        return None
    bad = ~torch.isfinite(tensor.detach()).flatten(1).all(1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


class Hook:
    """A forward hook in Python, which torch.compile can look into, unlike the core's.

    A copy of the model has the same hook, which knows that the copy is not the model. In a pickle
    the hook does nothing.
    """

    __slots__ = ("met", "ran")

    def __init__(self, ran: Ran) -> None:
        self.ran, self.met = ran, False

    def __call__(self, module: Module, inputs: tuple[object, ...], output: object) -> None:
        """Call `ran`, unless the module is being compiled."""
        if not _is_compiling():
            self.met = True
            self.ran(module, inputs, output)

    def __deepcopy__(self, memo: dict[int, object]) -> Hook:
        return self

    def __reduce__(self) -> tuple[type[Hook], tuple[Ran]]:
        return Hook, (unwatched,)


class FirstRun:
    """A forward pre-hook that is called until it is taken off, which its callable does."""

    __slots__ = ("met", "ran")

    def __init__(self, ran: Callable[[Module], None]) -> None:
        self.ran, self.met = ran, False

    def __call__(self, module: Module, inputs: tuple[object, ...]) -> None:
        """Call `ran`, unless the module is being compiled."""
        if not _is_compiling():
            self.met = True
            self.ran(module)

    def __deepcopy__(self, memo: dict[int, object]) -> FirstRun:
        return self

    def __reduce__(self) -> tuple[type[FirstRun], tuple[Callable[[Module], None]]]:
        return FirstRun, (_not_noted,)


class CallHook:
    """A hook of a whole model, with any arguments; otherwise as `Hook`."""

    __slots__ = ("called", "met")

    def __init__(self, called: Callable[..., None]) -> None:
        self.called, self.met = called, False

    def __call__(self, *given: object) -> None:
        """Call `called`, unless the model is being compiled."""
        if not _is_compiling():
            self.met = True
            self.called(*given)

    def __deepcopy__(self, memo: dict[int, object]) -> CallHook:
        return self

    def __reduce__(self) -> tuple[type[CallHook], tuple[Callable[..., None]]]:
        return CallHook, (_not_noted,)


AnyHook: TypeAlias = Hook | FirstRun | CallHook


def _not_noted(*_: object) -> None:
    """Do nothing, in place of a hook that was pickled."""


def unwatched(module: Module, inputs: tuple[object, ...], output: object) -> None:
    """Do nothing, in place of a hook that was pickled."""


class Hooked:
    """Hooks of modules that are put on for a step, and taken off again, at little cost.

    Those that were never called stay on: their modules may be compiled, and would be anew.
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[int, bool], tuple[Slots, int, AnyHook]] = {}
        self._on = True

    def after(self, module: Module, hook: Hook | CallHook) -> None:
        """Add a forward hook, which is on."""
        handle = module.register_forward_hook(hook)
        self._slots[id(module), True] = module._forward_hooks, handle.id, hook

    def before(self, module: Module, hook: FirstRun) -> None:
        """Add a forward pre-hook, which is on."""
        handle = module.register_forward_pre_hook(hook)
        self._slots[id(module), False] = module._forward_pre_hooks, handle.id, hook

    def drop(self, module: Module) -> None:
        """Take a module's forward pre-hook off for good."""
        hooks, key, _ = self._slots.pop((id(module), False))
        hooks.pop(key, None)

    def put(self, on: bool) -> None:
        """Put hooks on, or take them off."""
        if on is self._on:
            return
        self._on = on
        for hooks, key, hook in self._slots.values():
            if not hook.met:
                continue
            if on:
                hooks[key] = hook
            else:
                hooks.pop(key, None)

    def remove(self) -> None:
        """Take all hooks off for good."""
        for hooks, key, _ in self._slots.values():
            hooks.pop(key, None)
        self._slots = {}


def eager(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that torch.compile does not look into: a graph ends before its call."""
    outside = torch._disable_dynamo(function)

    @wraps(function)
    def call(*given: object, **named: object) -> T:
        # Whether this is compiled cannot be asked: what dynamo gives up it runs, and compiles what
        # that calls.
        return (outside if "torch._dynamo" in sys.modules else function)(*given, **named)

    return call


class Back(partial[None]):
    """A hook of a tensor, marked so that PyTorch does not warn when it saves the tensor without."""

    __torch_unserializable__ = True
