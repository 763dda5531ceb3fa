"""The model's last call, held so that it can be looked at again, and the first NaN or inf.

What the model was called with is held by reference, without its graph, until it is called again,
and so is the gradient that came to its output: when a value that is not finite is seen, or sizes
that may have several causes, the model is run again on it (`reading.second_look`). Of the loss, the
operations next to it are held while the backward pass runs (loss_graph.py), and one of PyTorch's
own losses with its target as long as the call (known_loss.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module

from vegrad import _core
from vegrad.flow.reading import Reading
from vegrad.torch.gradient_norms import is_distributed
from vegrad.torch.models import state
from vegrad.torch.monitor.baseline import Baseline
from vegrad.torch.monitor.history import NonFinite
from vegrad.torch.monitor.known_loss import (
    KnownLoss,
    doubtful_term,
    known_loss,
    numbers_of,
    towards,
)
from vegrad.torch.monitor.loop import Loop
from vegrad.torch.monitor.loss_graph import Node, at_risk, blamed, kept
from vegrad.torch.monitor.modules import Back, CallHook, Hooked, wrapped
from vegrad.torch.monitor.schedule import Schedule
from vegrad.torch.reading.second_look import full_look, passes_again, second_look

Arguments: TypeAlias = tuple[tuple[object, ...], Mapping[str, object]]
LARGE = 1 << 24  # elements of an output, from which the gradient that comes to it is not held
LOSS = "the loss"
AGAIN = 8  # steps after which the operations of a loss are walked again
MANY = 400  # operations of a graph that are looked at once a loss is not finite
SKIPS = 3  # passes under a GradScaler that are not finite before one of them is looked at


class Watching(Protocol):
    """A monitor, as far as it matters here."""

    nonfinite: NonFinite | None
    loop: Loop
    schedule: Schedule
    _quiet: _core.Quiet

    @property
    def steps(self) -> int:
        """Number of steps that were taken."""

    @property
    def looking(self) -> bool:
        """True while the step is looked at."""

    @property
    def watching(self) -> bool:
        """True while there is a step that counts."""

    def replay(self, run: Callable[[], object]) -> None:
        """Run a step that was not looked at again, by `run`."""


class FirstLook:
    """A listener that looks again at the step in which the first NaN or inf was seen.

    Args:
        model: the model.
        monitor: its monitor.
    """

    def __init__(self, model: Module, monitor: Watching) -> None:
        around = list(wrapped(model))
        self._model, self._monitor = around[-1], monitor
        self._heard = next((one for one in around if _is_compiled(one)), self._model)
        """Where calls are heard: what is compiled calls no hooks from within."""
        self._looked: NonFinite | None = None
        """The one that was looked at."""
        self._nodes: list[Node] = []
        self._scaled, self._skips, self._depth = False, 0, 0
        self.risky, self._calls, self._one_call = False, 0, True
        """`risky`: an operation of the loss is to be looked at in each step."""
        self.baseline = Baseline()
        self.copy: weakref.ref[Module] | None = None  # of the model, which was called
        self._held: Arguments | None = None
        """What the model was last called with, until it is called again."""
        self._begin(None)
        self.clear()
        called = monitor._quiet.called(self._heard, self._called)
        self.handles = [self._heard.register_forward_pre_hook(CallHook(called), with_kwargs=True)]
        self._hooked = Hooked()
        self._hooked.after(self._heard, CallHook(self._returned))

    def look(self, on: bool) -> None:
        """Begin a step that is looked at or not."""
        self._hooked.put(on or self.risky)

    def remove(self) -> None:
        """Take off the hooks that come and go."""
        self._hooked.remove()

    def clear(self) -> None:
        """End a step: its call is no longer asked for what is not finite."""
        self.call: Arguments | None = None

    def _begin(self, call: Arguments | None) -> None:
        self.call = self._held = call
        self._delta: Tensor | None = None
        self._loss: KnownLoss | None = None
        self.term: KnownLoss | None = None
        """Of a sum of losses one that is doubtful; a loss times -1."""
        self._made: tuple[int, ...] = ()

    # The model's calls --------------------------------------------------------------------------

    def _called(
        self, module: Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        if (
            module is self._heard
            and not state.on
            and torch.is_grad_enabled()
            and self._monitor.watching
        ):
            call = tuple(map(_alone, args)), {n: _alone(one) for n, one in kwargs.items()}
            if self._monitor._quiet.on:
                return self._monitor._quiet.hold(call)
            self._monitor.schedule.begins()
            if self._monitor.looking or self.risky:
                self._begin(call)
                self._calls += 1
            else:
                self.call = call

    def _returned(self, module: Module, args: object, output: object) -> None:
        if module is not self._heard:
            self.copy = weakref.ref(module)
        if module is not self._heard or state.on or self.call is None:
            return
        self._made = numbers_of(output)
        if self._is_new():
            self._look(None)
        elif isinstance(output, Tensor) and output.requires_grad and output.numel() < LARGE:
            output.register_hook(Back(self._came))

    def _came(self, delta: Tensor) -> None:
        if self.call is not None and not state.on:
            self._delta = delta.detach()

    # The loop's calls ---------------------------------------------------------------------------

    def backward_begins(self, roots: Sequence[object], weights: Sequence[Tensor | None]) -> None:
        """Look at the loss, and hold what its operations have saved."""
        self._depth += 1
        if self._depth > 1 or self.call is None or self._monitor.nonfinite is not None:
            return
        begun = self._monitor.loop.root
        if isinstance(begun, float) and isfinite(begun) and not self._monitor.looking:
            if self.risky:
                self._nodes = kept(roots, lost=False)
            return
        root = roots[0] if len(roots) == 1 else None
        if not isinstance(root, Tensor) or root.numel() != 1:
            return
        self.baseline.see(root, self._monitor.steps)
        self._loss = known_loss(root, self._made)
        self.term = None if self._loss is not None else doubtful_term(root, self._made)
        self._one_call, self._calls = self._calls == 1, 0
        if self._loss is None and self.term is None and not self._one_call:
            self._held = None  # whose δ came to which call is not known
        if root.device.type != "cpu":
            return
        value = float(root.detach())
        if isfinite(value) or self._monitor.loop.scaling.were_finite:
            # A loss that is of no operation at risk is rarely of one later.
            turn = self._monitor.steps % AGAIN == 0 or self._monitor.steps < AGAIN
            if self.risky or (turn and self._monitor.looking):
                self._nodes = kept(roots, lost=False)
                self.risky = at_risk(self._nodes)
        elif _reaches(root, set(map(id, self._model.parameters()))):
            self.replay()
            if self._is_new():
                self._look(None)
                return
            what = "NaN" if value != value else "inf"
            first = NonFinite(LOSS, "loss", self._monitor.steps, None, what, 1)
            if not self._blame(first, kept(roots, lost=True, most=MANY), value):
                self._monitor.nonfinite = first
                self._look(None)

    def backward_ends(self) -> None:
        """Tell what made the gradient that is not finite, if one was seen in this pass."""
        self._depth -= 1
        nodes, self._nodes = self._nodes, []
        scaled, self._scaled = self._scaled, False
        if self._depth:
            return
        delta, looking = self._delta, self._monitor.looking
        if nodes and delta is not None and not (looking or bool(torch.isfinite(delta).all())):
            self.replay()
        if not self._is_new():
            return
        first = self._monitor.nonfinite
        if first is not None and not first.output_of and self._blame(first, nodes, None):
            return
        if not scaled or self._skips == SKIPS:
            self._look(self._delta)
        self._skips += scaled

    def _blame(self, first: NonFinite, nodes: Sequence[Node], loss: float | None) -> bool:
        """Note which operation of the loss made what is not finite, if one is to blame.

        `loss` is None if it is finite, and only its gradient is not.
        """
        found = blamed(nodes, loss is not None, loss is None or loss != loss)
        if found is not None:
            self._looked = replace(first, cause=found.cause, operation=found.operation)
            self._monitor.nonfinite = self._looked
        return found is not None

    def scaled(self, scaler: GradScaler, raw: object, result: object) -> None:
        """Remember that the next loss is scaled: its gradients may overflow, and are skipped."""
        self._scaled = True

    def step_ends(self) -> None:
        """Look at a gradient that was seen to be not finite only now, and let go of the call."""
        if self._is_new():
            self._look(self._delta)
        self.clear()

    def replay(self) -> None:
        """See which module of a step that was not looked at was not finite first."""
        if (call := self.call) is not None and not _is_sharded(self._model):
            self._monitor.replay(partial(passes_again, self._model, *call, self._delta))

    def again(self, *, of_term: bool = False, further: bool = False) -> Reading | None:
        """Return a reading of the model on its last call, as a diagnosis makes one.

        None if it cannot be run again, or its gradient is not known. `of_term` reads it under the
        doubtful term of its loss alone, if that is a sum with one; `further` leaves what asks the
        model again, for other weights.
        """
        call, loss = self._held, self._loss
        if loss is None and of_term:
            loss = self.term
        elif loss is None and self._delta is not None and self._one_call:
            loss = KnownLoss(towards, self._delta)
        if call is None or loss is None or _is_sharded(self._model):
            return None
        return full_look(self._model, *call, loss.function, loss.target, further=further)

    @property
    def is_doubtful(self) -> bool:
        """True if one of PyTorch's losses may not be made for the output or the target."""
        return self.term is not None or (self._loss is not None and self._loss.doubtful)

    def _is_new(self) -> bool:
        first = self._monitor.nonfinite
        return first is not None and first is not self._looked and not first.parameter

    def _look(self, delta: Tensor | None) -> None:
        """Run the model again, and keep what that tells with what was seen."""
        first, call = self._monitor.nonfinite, self.call
        if first is None:
            return
        if call is not None and not _is_sharded(self._model):
            self.call = None
            first = replace(first, reading=second_look(self._model, *call, delta))
        self._monitor.nonfinite = self._looked = first


def seen_at(step: int, first: NonFinite | None) -> bool:
    """Return True if the first NaN or inf was seen in this step."""
    return first is not None and first.step == step


def _is_compiled(model: Module) -> bool:
    return "_orig_mod" in model._modules


def _is_sharded(model: Module) -> bool:
    return any(map(is_distributed, model.parameters()))


def _alone(value: object) -> object:
    """Return an argument without the graph that made it, which is not to be kept alive."""
    if isinstance(value, Tensor):
        return value if value.grad_fn is None else value.detach().requires_grad_()
    if type(value) is list or type(value) is tuple:
        several = [_alone(one) for one in value]
        return tuple(several) if type(value) is tuple else several
    if type(value) is dict:
        return {name: _alone(one) for name, one in value.items()}
    return value


def _reaches(root: Tensor, ids: set[int]) -> bool:
    """Return True if a graph leads to one of these parameters."""
    ahead, seen = [root.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in ids:
            return True
        ahead += [one for one, _ in node.next_functions]
    return False
