"""The module hooks of a monitor: sizes of outputs and of gradients, and the first NaN among them.

`_core.Watch` does the usual case in C++, without a Python frame: a plain tensor on the CPU, finite,
and no elements to be counted. It calls the methods here for the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from vegrad import _core
from vegrad.arrays.checks import FloatArray
from vegrad.torch.gradient_norms import is_distributed, local_part
from vegrad.torch.models import state
from vegrad.torch.monitor.history import NonFinite
from vegrad.torch.monitor.modules import (
    Back,
    FirstRun,
    Hook,
    Hooked,
    first_sample,
    inner_places,
    is_watched,
    own_parameters,
    plain_name,
    tensor_in,
    wrapped,
)

_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class ModuleHooks:
    """The hooks on a model's modules, and the numbers of the step that they see."""

    nonfinite: NonFinite | None = None
    """The first NaN or inf, and the module that made it."""
    first_step = 0
    """Number of steps before the first that was watched."""
    _counted = 0
    """Number of steps that were taken, but for those that wait in `_quiet`."""

    def __init__(self, model: Module, backward: bool) -> None:
        named = [(plain_name(name), one) for name, one in model.named_parameters()]
        self.parameters = [name for name, _ in named]
        self._params = [one for _, one in named]
        watched = [(plain_name(n), m) for n, m in model.named_modules() if is_watched(m)]
        self.modules = [name or type(module).__name__ for name, module in watched]
        self._watched = [module for _, module in watched]
        self.classes = [type(module).__name__ for _, module in watched]
        self.own = [own_parameters(path, one) for path, one in watched]
        self.inner = inner_places(self._watched, self.own)
        """The numbers of the modules with weights within each, that may run in its place."""
        self._model, self.kind = model, type(list(wrapped(model))[-1]).__name__
        self._on = self._counting = False
        self._tally: dict[str, list[int]] = {}
        """Subnormal elements and all elements, by phase, in a step that counts them."""
        self._watch = _core.Watch(Tensor, _is_grad_enabled, OrderedDict, state, len(self.modules))
        self._quiet = _core.Quiet(Tensor, _is_grad_enabled, state)  # steps that nobody looks at
        self._squares, self._counts = self._watch.squares, self._watch.counts
        self._deltas = self._watch.deltas
        self._others: list[tuple[FloatArray, int, Tensor]] = []
        """Norms on other devices, which stay there until the step ends."""
        # The gradient of an activation's output tells nothing that those of its neighbours do not.
        self._back = [
            Back(self._watch.backward_hook(place, partial(self._flowed, place)))
            if backward and own
            else None
            for place, own in enumerate(self.own)
        ]
        self._handles: list[RemovableHandle] = []
        self._hooked = Hooked()
        self._order: list[int] = []
        for place, module in enumerate(self._watched):
            self._hooked.after(module, self._hook(place))
            self._hooked.before(module, FirstRun(partial(self._began, place)))
        self._replaying = False
        """True while a step that was not looked at is run again with the hooks on."""

    @property
    def steps(self) -> int:
        """Number of steps that were taken."""
        return self._counted + self._quiet.count

    @property
    def ran(self) -> int:
        """The number of modules that have ever run, with gradients or without."""
        return len(self._order)

    @property
    def run_order(self) -> list[int]:
        """The numbers of the modules in the order in which they first ran, then of all others."""
        ran = self._order
        return [*ran, *(place for place in range(len(self.modules)) if place not in ran)]

    def _began(self, place: int, module: Module) -> None:
        """Note that a module runs for the first time."""
        if module is self._watched[place] and place not in self._order:
            self._order.append(place)
            self._hooked.drop(module)

    def _hook(self, place: int) -> Hook:
        """Return the forward hook of a module."""
        ran = self._watch.forward_hook(
            place, self._watched[place], self._back[place], partial(self._ran, place)
        )
        return Hook(ran)

    def remove(self) -> None:
        """Take all hooks off the model; the records stay."""
        self._hooked.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _clear(self, looking: bool, counting: bool) -> None:
        """Begin a step: `looking` at it or not, `counting` its subnormal elements or not.

        The numbers of `_watch` have been cleared by then.
        """
        self._watch.on = self._on = looking
        self._hooked.put(looking)
        self._counting = counting
        self._watch.plain = not counting
        self._watch.seen = False
        if counting:
            self._tally = {"forward": [0, 0], "backward": [0, 0], "gradients": [0, 0]}
        self._others = []

    def _ran(self, place: int, module: Module, inputs: tuple[object, ...], output: Any) -> None:
        """Read a module's output, and hook the gradient that will come back to it."""
        if not self._on or not _is_grad_enabled():
            return
        if module is not self._watched[place] or (state.on and not self._replaying):
            return
        if type(output) is not Tensor:
            output = tensor_in(output)
            if output is None:
                return
        if not output.is_floating_point():
            return
        try:
            norm = _core.norm(output, 2.0)
            self._counts[place] += output.numel()
            self._squares[place] += norm * norm
            if not norm < inf and self.nonfinite is None:
                self._find_forward(place, module, inputs, output)
            if self._counting:
                self._count("forward", output)
        except (TypeError, ValueError):
            if self._elsewhere(self._squares, place, output):
                self._counts[place] += output.numel()
        if (back := self._back[place]) is not None and output.requires_grad:
            if output._backward_hooks is None and (function := output.grad_fn) is not None:
                # This is what register_hook does, without the handle that it returns: making that
                # takes longer than reading the output.
                output._backward_hooks = OrderedDict(monitor=back)
                function._register_hook_dict(output)
            else:
                output.register_hook(back)

    def _flowed(self, place: int, grad: Tensor | None) -> None:
        """Read the gradient that has come back to a module's output."""
        # It is None for the outputs of an LSTM of which only the last state is used.
        if not self._on or _is_compiling() or grad is None:
            return
        try:
            norm = _core.norm(grad, 2.0)
            before = self._deltas[place]
            self._deltas[place] = norm if before < 0 else sqrt(before * before + norm * norm)
            if norm < inf:
                self._watch.last = place
            elif self.nonfinite is None:
                self._find_backward(place, grad)
            if self._counting:
                self._count("backward", grad)
        except (TypeError, ValueError):
            if self._elsewhere(self._deltas, place, grad):
                self._deltas[place] = max(self._deltas[place], 0.0)

    def _elsewhere(self, found: FloatArray, place: int, tensor: Tensor) -> bool:
        """Take the norm of a tensor that is not ours on its own device; False if it has none."""
        if not _has_norm(tensor):
            return False
        norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)
        self._others.append((found, place, norm))
        return True

    def _count(self, phase: str, tensor: Tensor | list[Tensor]) -> None:
        """Add the subnormal elements of a tensor to the tally."""
        _, _, joint = _core.measure(tensor, False)
        self._tally[phase][0] += joint["subnormals"]
        self._tally[phase][1] += joint["count"]

    def _find_forward(
        self, place: int, module: Module, inputs: tuple[object, ...], output: Tensor
    ) -> None:
        """Note an output that is not finite, and if a parameter or the input was not before.

        The parameters of modules within count too, since a module may use them without calling
        those modules; of a DTensor this process's part.
        """
        name, source = self.modules[place], tensor_in(inputs)
        parameter = next((n for n, one in module.named_parameters() if not _is_finite(one)), "")
        self._note(
            "forward",
            name,
            output,
            first_sample(output),
            module_class=type(module).__name__,
            parameter=path if (path := f"{name}.{parameter}") in self.parameters else parameter,
            input_finite=source is None or _is_finite(source),
            in_part=any(map(is_distributed, module.parameters())),
            **self._before(dict(module.named_parameters()).get(parameter)),
        )

    def _before(self, bad: Tensor | None) -> dict[str, float]:
        """Return what the steps before tell of a parameter, or output, that is not finite."""
        return {}

    def _find_backward(self, place: int, grad: Tensor) -> None:
        """Note a gradient that is not finite, and the module that the last finite one came to."""
        name, last = self.modules[place], self._watch.last
        module, output_of = (name, "") if last < 0 else (self.modules[last], name)
        self._note("backward", module, grad, first_sample(grad), output_of=output_of)

    def _note(
        self, phase: str, module: str, bad: Tensor, batch_index: int | None, **facts: Any
    ) -> None:
        bad = bad.detach()
        value = "NaN" if bool(torch.isnan(bad).any()) else "inf"
        count = int((~torch.isfinite(bad)).sum())
        self.nonfinite = NonFinite(module, phase, self.steps, batch_index, value, count, **facts)


def _is_finite(tensor: Tensor) -> bool:
    # Detached: what an operation saves for its way back, a checkpoint counts as the model's.
    return bool(torch.isfinite(local_part(tensor.detach())).all())


def _has_norm(tensor: Tensor) -> bool:
    """Return True unless a tensor is part of a result only, of a vmap, or nowhere."""
    if is_distributed(tensor) or _is_wrapped(tensor):
        return False
    return not tensor.is_meta and tensor.layout is torch.strided
