"""Norms of a model's activations and gradients at every step, and where the first NaN came from.

    monitor = Monitor(model)
    ...  # train as always
    print(monitor.report())

Forward hooks read each layer's output, tensor hooks the gradient that comes back to it (δ), and a
hook of optimizers reads the parameters' gradients as the step will use them: zero-copy, in vegrad's
kernels. What is usual is done by `_core.Watch` without a Python frame; what is not, here. Forward
passes without gradients (evaluation) are not looked at, nor, since hooks would break the graph,
what torch.compile has compiled: of it there are the parameters' gradients.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import inf, nan, sqrt
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from vegrad import _core
from vegrad.arrays.checks import FloatArray, as_count
from vegrad.torch.models import state
from vegrad.torch.monitor.history import MonitorHistory, NonFinite
from vegrad.torch.monitor.modules import (
    Back,
    Hook,
    first_sample,
    is_plain,
    is_watched,
    own_parameters,
    plain_name,
    tensor_in,
)
from vegrad.torch.monitor.report import Report, report
from vegrad.torch.norms import is_distributed, norms_of
from vegrad.torch.optimizer_step import CoreStep

_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class Monitor:
    """Watches a model while it trains.

    Args:
        model: any module, wrapped (DistributedDataParallel, fully_shard, torch.compile) or not;
            wrap it first.
        every: look at every so many steps only; the others cost a microsecond a module.
        optimizer: the one whose steps count. None: every optimizer with a parameter of the model;
            those that step one after another, without a forward pass between, take one step.
        backward: also read the gradients that come back to the outputs of modules with weights.
        details: at every so many steps that are looked at, zeros and subnormals are counted too.
        keep: how many steps `history` keeps.

    A step ends when the optimizer is about to take it, so that accumulated gradients are read once;
    without one, call `step()`. Gradients are read as they are then, after any clipping in place.
    """

    def __init__(
        self,
        model: Module,
        every: int = 1,
        *,
        optimizer: Optimizer | None = None,
        backward: bool = True,
        details: int = 100,
        keep: int = 10_000,
    ) -> None:
        if not isinstance(model, Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, not {type(optimizer).__name__}")
        self.every, self.details = as_count("every", every, 1), as_count("details", details, 1)
        keep = min(as_count("keep", keep, 1), sys.maxsize)
        self.steps = 0
        """How many steps were taken."""
        named = [(plain_name(name), one) for name, one in model.named_parameters()]
        self.parameters = [name for name, _ in named]
        self._params = [one for _, one in named]
        watched = [(plain_name(n), m) for n, m in model.named_modules() if is_watched(m)]
        self.modules = [name or type(module).__name__ for name, module in watched]
        self._watched = [module for _, module in watched]
        self._own = [own_parameters(path, one) for path, one in watched]
        self.history = MonitorHistory(keep)
        self.nonfinite: NonFinite | None = None
        """Where the first NaN or inf came from."""
        self.subnormals: dict[str, float] = {}
        """Shares of the elements, "forward", "backward" and "gradients", when last counted."""
        self.flush_gain: float | None = None
        """How many times faster `measure_flush` found a step without subnormals."""
        self.probing = self._paused = False  # whether it is a diagnosis's own; or stands aside
        self._model, self._kind = model, type(model).__name__
        self._optimizer = optimizer
        self._pending: tuple[Any, Any] | None = None  # an optimizer of ours, in its step
        self._mine: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._last_optimizer: Any = lambda: None  # a weak reference; it is ours
        self._ender: Any = lambda: None  # of the one that ended the last step
        self._watch = _core.Watch(Tensor, _is_grad_enabled, OrderedDict, state, len(self.modules))
        self._squares, self._counts = self._watch.squares, self._watch.counts
        self._deltas = self._watch.deltas
        self._others: list[tuple[FloatArray, int, Tensor]] = []  # norms on other devices
        self._clear()
        # δ of an activation's output tells nothing that those of its neighbours do not.
        self._back = [
            Back(self._watch.backward_hook(place, partial(self._flowed, place)))
            if backward and own
            else None
            for place, own in enumerate(self._own)
        ]
        self._handles = [
            module.register_forward_hook(self._hook(place))
            for place, module in enumerate(self._watched)
        ]
        myself = weakref.ref(self)

        def about_to_step(optimizer: Any, *_: Any) -> None:
            monitor = myself()
            if monitor is not None and monitor._is_mine(optimizer):
                monitor._about_to_step(optimizer)

        def has_stepped(optimizer: Any, *_: Any) -> None:
            monitor = myself()
            if monitor is not None and monitor._pending is not None:
                monitor._has_stepped(optimizer)

        self._handles.append(register_optimizer_step_pre_hook(about_to_step))
        self._handles.append(register_optimizer_step_post_hook(has_stepped))

    def __repr__(self) -> str:
        return f"<Monitor of {self._kind}: {len(self.modules)} modules, {self.steps} steps>"

    def __deepcopy__(self, memo: Any) -> Monitor:
        return self  # a copy of the model has our hooks, which know that it is not the model

    def remove(self) -> None:
        """Takes all hooks off the model; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # What the hooks do ---------------------------------------------------------------------------

    def _hook(self, place: int) -> Hook:
        """The forward hook of a module."""
        ran = self._watch.forward_hook(
            place, self._watched[place], self._back[place], partial(self._ran, place)
        )
        return Hook(ran)

    def _clear(self) -> None:
        """What the step before has left, but for the numbers of `_watch`."""
        self._watch.on = self._on = self.steps % self.every == 0 and not self._paused
        self._counting = self._on and self.steps // self.every % self.details == 0
        self._watch.plain = not self._counting
        self._watch.seen = False
        if self._counting:
            self._tally = {"forward": [0, 0], "backward": [0, 0], "gradients": [0, 0]}
        if self._others:
            self._others = []

    def _is_mine(self, optimizer: Any) -> bool:
        if self._optimizer is not None:
            return optimizer is self._optimizer
        if optimizer is self._last_optimizer():
            return True
        if optimizer not in self._mine:
            now = [one for _, one in self._model.named_parameters()]  # others, if assigned since
            self._params = now if len(now) == len(self._params) else self._params
            own = set(map(id, self._params))
            held = (id(p) for group in optimizer.param_groups for p in group["params"])
            self._mine[optimizer] = not own.isdisjoint(held)
        if self._mine[optimizer]:
            self._last_optimizer = weakref.ref(optimizer)
        return self._mine[optimizer]

    def _ran(self, place: int, module: Module, inputs: Any, output: Any) -> None:
        """What `_watch` leaves to us."""
        if not self._on or not _is_grad_enabled():
            return
        if module is not self._watched[place] or (state.on and not self.probing):
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
                # As register_hook, whose handle takes longer than to read the output.
                output._backward_hooks = OrderedDict(monitor=back)
                function._register_hook_dict(output)
            else:
                output.register_hook(back)

    def _flowed(self, place: int, grad: Tensor | None) -> None:
        # None is of the outputs of an LSTM, where only its last state is used.
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
        """The norm of what is on another device stays there until the step. Whether it has one."""
        if is_distributed(tensor) or _is_wrapped(tensor):
            return False  # a part of a result, or of a vmap
        if tensor.is_meta or tensor.layout is not torch.strided:
            return False
        norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)
        self._others.append((found, place, norm))
        return True

    def _count(self, phase: str, tensor: Tensor | list[Tensor]) -> None:
        _, _, joint = _core.measure(tensor, False)
        self._tally[phase][0] += joint["subnormals"]
        self._tally[phase][1] += joint["count"]

    # The end of a step ---------------------------------------------------------------------------

    def step(self) -> None:
        """A step is about to be taken: reads the gradients. Optimizers call it."""
        if self._pending is not None:  # the last step has raised
            self._end(None)
        self._end(None)

    def _about_to_step(self, optimizer: Any) -> None:
        if self._pending is not None:  # the last step has raised
            self._end(None)
        if optimizer is not (ender := self._ender()):
            if ender is not None and not self._watch.seen:
                return  # it shares the step that another has ended
            self._ender = weakref.ref(optimizer)
        if self._on and isinstance(optimizer, CoreStep):
            self._pending = (optimizer, optimizer.clipped)
        else:
            self._end(None)

    def _has_stepped(self, optimizer: Any) -> None:
        """Ours leaves the gradients as they are, and has their norms."""
        if self._pending is not None and self._pending[0] is optimizer:
            fresh = optimizer.clipped is not self._pending[1]
            self._end(optimizer.norms() if fresh else None)

    def _end(self, known: dict[int, float] | None) -> None:
        if self._on:
            found = None if known or self._others else self._watch.record(self._params)
            if found is not None:
                self.history.add(self.steps, len(self._params), *found)
            else:
                with torch.no_grad():
                    self._record(known)
                self._watch.clear()
            if self.nonfinite is not None and self._was_skipped(self.nonfinite):
                self.nonfinite = None
        self.steps += 1
        self._pending = None
        self._clear()

    def _was_skipped(self, first: NonFinite) -> bool:
        """Whether a GradScaler has spared the parameters what was seen."""
        here = (first.phase, first.step) == ("backward", self.steps)
        return here and 0 < self.history[-1].gradient_norm < inf

    def _record(self, known: dict[int, float] | None) -> None:
        grads = [param.grad for param in self._params]
        norms = None
        if known is not None:
            sizes = [nan if g is None else known.get(id(p), -1.0)
                     for p, g in zip(self._params, grads, strict=True)]  # fmt: skip
            norms = None if -1.0 in sizes else np.array(sizes, np.float64)
        if norms is None:
            norms = norms_of(grads)
        sizes = norms.tolist()  # a few numbers are faster one by one than as arrays
        joint = sqrt(sum([size * size for size in sizes]))
        if not joint < inf:
            joint = self._joint_of(sizes, grads)
        if self._others:
            values = torch.stack([one.to(self._others[0][2]) for *_, one in self._others]).tolist()
            for (found, place, _), value in zip(self._others, values, strict=True):
                if found is self._squares:
                    found[place] += value * value
                else:
                    found[place] = sqrt(found[place] ** 2 + value * value)
        rms = np.full(len(self.modules), nan)
        np.divide(self._squares, self._counts, out=rms, where=self._counts > 0)
        deltas = np.where(self._deltas < 0, nan, self._deltas)
        numbers = np.concatenate([norms, np.sqrt(rms), deltas]).tobytes()
        self.history.add(self.steps, len(self._params), joint, numbers)
        if self._counting:
            if plain := [one for one in grads if is_plain(one)]:
                self._count("gradients", plain)
            self.subnormals = {
                phase: small / count for phase, (small, count) in self._tally.items() if count
            }

    def _joint_of(self, sizes: list[float], grads: list[Any]) -> float:
        """The joint norm where some gradients are missing, or not finite: those are noted."""
        wrong = [
            place
            for place, size in enumerate(sizes)
            if not size < inf and (grad := grads[place]) is not None and not grad.is_meta
        ]
        if not wrong:
            return sqrt(sum([size * size for size in sizes if size == size]))
        if self.nonfinite is None:
            self._find_gradient(wrong[0], grads)
        return sum([sizes[place] for place in wrong])

    # Where the first NaN or inf came from --------------------------------------------------------

    def _find_forward(self, place: int, module: Module, inputs: Any, output: Tensor) -> None:
        name, index = self.modules[place], first_sample(output)
        what = f"the output of {name} ({type(module).__name__})"
        source = tensor_in(inputs)
        why, wrong = "its input and weights are finite", ""
        # Also those of modules within, which it may use without calling them.
        for parameter, value in module.named_parameters():
            if not torch.isfinite(value).all():
                why = f"its {parameter} is not"
                wrong = (
                    f"{name}.{parameter}" if f"{name}.{parameter}" in self.parameters else parameter
                )
                break
        else:
            if source is not None and not torch.isfinite(source).all():
                why = "so is its input: the operation that made it is no module, or the data are"
        self._note(name, "forward", index, output, f"{what} is not finite; {why}", wrong)

    def _find_backward(self, place: int, grad: Tensor) -> None:
        name, index, last = self.modules[place], first_sample(grad), self._watch.last
        if last < 0:
            message = f"the gradient that comes to the output of {name} is not finite: that of the "
            message += "loss, or of what follows"
            return self._note(name, "backward", index, grad, message)
        after = self.modules[last]
        message = f"the backward pass of {after}, or of what lies between it and {name}, makes a "
        message += f"gradient that is not finite of one that is, for the output of {name}"
        self._note(after, "backward", index, grad, message)

    def _find_gradient(self, place: int, grads: list[Any]) -> None:
        name = self.parameters[place]
        module = name.rpartition(".")[0] or self._kind
        message = f"the gradient of {name} is not finite"
        message += "" if self.nonfinite else ", although those that flow through the modules are"
        self._note(module, "gradient", None, grads[place], message)

    def _note(
        self, module: str, phase: str, index: int | None, bad: Tensor, message: str, wrong: str = ""
    ) -> None:
        value = "NaN" if bool(torch.isnan(bad).any()) else "inf"
        where = f", sample {index} of the batch" if index is not None else ""
        message = f"{value} at step {self.steps}{where}: {message}"
        self.nonfinite = NonFinite(module, phase, self.steps, index, message, wrong)

    # What comes of it ----------------------------------------------------------------------------

    def scalars(self) -> dict[str, float]:
        """The last step as a flat dictionary for a logger; empty before the first step."""
        if not len(self.history):
            return {}
        last = self.history[-1]
        found = {"gradient_norm": last.gradient_norm}
        found |= {f"gradient_norm/{n}": float(x) for n, x in zip(self.parameters,
                  last.gradient_norms, strict=True) if x == x}  # fmt: skip
        for title, values in (
            ("activation_rms", last.activation_rms),
            ("delta_norm", last.delta_norms),
        ):
            pairs = zip(self.modules, values.tolist(), strict=True)
            found |= {f"{title}/{name}": value for name, value in pairs if value == value}
        found |= {f"subnormal_share/{phase}": share for phase, share in self.subnormals.items()}
        return found | {"nonfinite": float(self.nonfinite is not None)}

    def report(self) -> Report:
        """What the last step says: a Diagnosis that prints a table of the modules.

        Raises:
            ValueError: before the first step.
        """
        if not len(self.history):
            raise ValueError("a monitor must have seen a step before it can report, not none")
        return report(self, self._own, self._kind)

    def measure_flush(self, step: Callable[[], Any], repeats: int = 5) -> float:
        """How many times faster `step()` is with torch.set_flush_denormal(True): medians, in turns.

        They are counted, not looked at, and run on one thread: the setting is the calling one's,
        and those started before keep theirs. So set it before a program's first operation.
        """
        repeats = as_count("repeats", repeats, 1)
        if not callable(step):
            raise TypeError(f"step must be a function that does a step, not {type(step).__name__}")
        flushed = float(torch.tensor(5e-324, dtype=torch.float64) * 1) == 0.0
        times: dict[bool, list[float]] = {False: [], True: []}
        self._paused, self._on, self._watch.on = True, False, False
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for turn in range(2 * repeats + 2):
                torch.set_flush_denormal(bool(turn % 2))
                start = time.perf_counter()
                step()
                if turn > 1:
                    times[bool(turn % 2)].append(time.perf_counter() - start)
        finally:
            torch.set_flush_denormal(flushed)
            torch.set_num_threads(threads)
            self._paused = False
            self._clear()
        self.flush_gain = median(times[False]) / median(times[True])
        return self.flush_gain
