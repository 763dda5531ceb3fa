"""The steps of a monitor: when one ends, and what is read of the gradients then."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from math import nan

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from vegrad._core import Clipped
from vegrad.torch.monitor.first import FirstLook, seen_at
from vegrad.torch.monitor.heap import keep_heap
from vegrad.torch.monitor.history import MonitorHistory
from vegrad.torch.monitor.loop import Loop
from vegrad.torch.monitor.modules import eager
from vegrad.torch.monitor.owners import Owners
from vegrad.torch.monitor.recording import RecordHooks
from vegrad.torch.monitor.scaling import FEW, Skipped, factor_of, is_skipped
from vegrad.torch.monitor.schedule import Schedule
from vegrad.torch.monitor.updates import Updates
from vegrad.torch.optimizer_step import CoreStep

LAST = 2  # as `_core.Quiet` says of the last step of a row


class StepHooks(RecordHooks):
    """Hooks of all optimizers, and the end of a step.

    A step ends when an optimizer of the model is about to step. vegrad's own optimizers leave the
    gradients as they are and have taken their norms, so that with them it ends after their step.
    """

    def __init__(
        self,
        model: Module,
        backward: bool,
        optimizer: Optimizer | None,
        schedule: Schedule,
        details: int,
        keep: int,
    ) -> None:
        super().__init__(model, backward)
        keep_heap()
        self.schedule, self.details = schedule, details
        self._history = MonitorHistory(keep)
        self.subnormals = {}
        self._paused = False
        self._joint, self._was_looked = nan, True
        self._optimizer = optimizer
        self._steps_quietly, self._stepped_quietly = self._quiet.steps(), self._quiet.stepped()
        self._pending: tuple[CoreStep, Clipped | None] | None = None
        """One of vegrad's optimizers that is in its step, and its report on the step before."""
        self._mine: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        """True for the optimizers, of those seen, that have parameters of the model."""
        self._last_optimizer: Callable[[], Optimizer | None] = lambda: None
        """A weak reference to the last optimizer that was found to be the model's."""
        self._ender: Callable[[], Optimizer | None] = lambda: None
        """A weak reference to the optimizer that has ended the last step."""
        self.loop = Loop(lambda: self._params)
        self.updates = Updates(lambda: self._params, lambda: self.parameters)
        self.first = FirstLook(model, self)
        self.owners = Owners(model, self.loop, self.first)
        self.skipped = Skipped()
        self._handles += self.first.handles
        self._begin()
        self._listen()
        self._handles += _optimizer_hooks(weakref.ref(self))

    def remove(self) -> None:
        """Take all hooks off the model; the records stay."""
        self.first.remove()
        super().remove()

    def _listen(self) -> None:
        """Begin to listen to backward passes, clips and a GradScaler's calls."""

    def _begin(self) -> None:
        """Begin a step; it is looked at if the schedule says so."""
        self.loop.over = True
        looking = not self._paused and self.schedule.wants(self.steps, self.first_step)
        self.loop.closely = looking
        self.first.look(looking)
        self._clear(looking, looking and self.schedule.looks % self.details == 0)

    @property
    def looking(self) -> bool:
        """True while the step in progress is looked at."""
        return self._on

    @property
    def watching(self) -> bool:
        """True while there is a step in progress that counts."""
        return not self._paused

    def _is_mine(self, optimizer: Optimizer) -> bool:
        """Return True if the optimizer's steps count."""
        if self._optimizer is not None:
            return optimizer is self._optimizer
        if optimizer is self._last_optimizer():
            return True
        if optimizer not in self._mine:
            # The model may have other parameters by now, if some were assigned.
            now = [one for _, one in self._model.named_parameters()]
            self._params = now if len(now) == len(self._params) else self._params
            own = set(map(id, self._params))
            held = (id(p) for group in optimizer.param_groups for p in group["params"])
            self._mine[optimizer] = not own.isdisjoint(held)
        if self._mine[optimizer]:
            self._last_optimizer = weakref.ref(optimizer)
        return self._mine[optimizer]

    def step(self, loss: float | Tensor | None = None) -> None:
        """Read the gradients: a step is about to be taken. Optimizers call this by themselves.

        Args:
            loss: the loss. Where an optimizer of the model ends the steps, giving it does not end
                one too: it is the loss of the step that was just taken, or of the one in progress.
        """
        if loss is not None:
            value = float(loss.detach() if isinstance(loss, Tensor) else loss)
            if self._ender() is not None and self.loop.over:
                self.history.give_loss(value)
                return
            self.loop.give(value)
            if self._ender() is not None:
                return
        if self._pending is not None:  # the last step has raised, so that nobody ended it
            self._end(None)
        self._end(None)

    def has_gone_back(self) -> None:
        """Take in that a backward pass is over, if it was the model's."""
        loop = self.loop
        if loop.depth or loop.passes or not loop.has_gone_back:
            return
        self.owners.see_pass()
        if loop.closely:
            empty = loop.began_empty and loop.scale is None
            few = loop.steps.few(self._params)
            loop.dropped.see_pass(few, self.first.call, began_empty=empty)
        if self.skipped.see(loop.scale, self.steps, began_empty=loop.began_empty):
            self._find_skipped()
            self.owners.tell()
        elif self.skipped.count == FEW and not self._on and self._will_be_skipped():
            self.schedule.ask()
            self._begin()

    def _is_without_steps(self) -> bool:
        """Return True if backward passes show that none of them is to be followed by a step."""
        return self.skipped.have_collapsed or self.owners.is_without_steps()

    def _about_to_step(self, optimizer: Optimizer) -> None:
        if self._pending is not None:  # as in step()
            self._end(None)
        if optimizer is not (ender := self._ender()):
            if ender is not None and not (self._watch.seen or self.loop.has_gone_back):
                return  # without a pass between them, two optimizers share one step
            self._ender = weakref.ref(optimizer)
        lost = seen_at(self.steps, self.nonfinite)  # which is to be told before the step
        if not self._paused and isinstance(optimizer, CoreStep) and not lost:
            self._pending = (optimizer, optimizer.clipped)
        elif not self._glance(optimizer, None):
            self._end(None)

    def _has_stepped(self, optimizer: Optimizer) -> None:
        """End the step of one of vegrad's optimizers, with the norms that it has taken."""
        if self._pending is not None and self._pending[0] is optimizer:
            fresh = self._pending[0].clipped is not self._pending[1]
            if not (fresh and self._glance(optimizer, self._pending[0].clipped)):
                self._end(self._pending[0].norms() if fresh else None)
        if self.updates.is_taking:
            self.updates.after(optimizer)
        if self._was_looked:
            self.owners.begin()
            is_due = self.loop.stepped(optimizer, self.steps - 1, self._joint)
        else:
            is_due = self.loop.steps.passes(optimizer, self._params)
        if is_due:
            self._is_to_judge()

    def _is_to_judge(self) -> None:
        """Note that it is time to judge the training."""

    def _end(self, known: dict[int, float] | None) -> None:
        """End a step; `known` has norms of gradients, by the parameter's id."""
        self._joint, self._was_looked = nan, self._on
        if self.loop.over:  # no pass of the model came
            self.loop.reset()
        if not self._paused:
            self.schedule.took(self._on)
            found = None if known or self._others else self._read()
            if found is not None:
                self._joint = found[0]
                self._history.add(
                    self.steps, len(self._params), *found, self.loop.loss(), looked=self._on
                )
            else:
                with torch.no_grad():
                    self._record(known)
                self._watch.clear()
            if self.nonfinite is not None and self._was_skipped(self.nonfinite):
                self.nonfinite = None
        self.first.step_ends()
        self._counted += 1
        self._pending = None
        self._begin()

    @property
    def history(self) -> MonitorHistory:
        """The last steps: their loss and the norms of their gradients, and what looks have seen."""
        self._catch_up()
        return self._history

    def _catch_up(self) -> None:
        """Take in the steps that were only glanced at."""

    def _wake(self) -> None:
        """Go on in Python with the step in progress, if it was `_quiet`'s."""

    def _begin_row(self) -> None:
        """Leave the next steps to `_quiet`, if they are likely to be as usual."""

    def _row_ends(self) -> None:
        """Take in a row of steps of `_quiet`, and begin another or a look."""

    def _glance(self, optimizer: Optimizer, report: Clipped | None) -> bool:
        """End a step that is not looked at, if it is as usual; return False if it is not."""
        return False


class Closure:
    """A closure that an optimizer's step calls for its gradients: only after that are they there.

    An optimizer may call it again and again, as LBFGS does: the first gradients are the step's.
    """

    def __init__(self, original: Callable[..., object], then: Callable[[], None]) -> None:
        self._original, self._then = original, then
        self._ended = False

    def call(self, *given: object, **named: object) -> object:
        """Call the closure, and tell that the gradients are there."""
        result = self._original(*given, **named)
        self.end()
        return result

    def end(self) -> None:
        """Tell that the gradients are there, unless that was told."""
        if not self._ended:
            self._ended = True
            self._then()


def _optimizer_hooks(myself: weakref.ref[StepHooks]) -> list[RemovableHandle]:
    """Hook all optimizers: the hooks are global, and must not keep the monitor alive."""
    closures: list[Closure] = []

    def about_to_step(
        optimizer: Optimizer, given: tuple[object, ...], named: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        closures.clear()
        closure = named.get("closure", given[1] if len(given) > 1 else None)
        if not callable(closure) or myself() is None:
            gradients_are_there(optimizer)
            return None
        closures.append(Closure(closure, partial(gradients_are_there, optimizer)))
        if "closure" in named:
            return given, {**named, "closure": closures[0].call}
        return (given[0], closures[0].call, *given[2:]), named

    def gradients_are_there(optimizer: Optimizer) -> None:
        monitor = myself()
        if monitor is None or monitor._steps_quietly(optimizer) or is_skipped(optimizer):
            return
        monitor._factor = factor_of(optimizer)
        monitor.loop.dropped.step_begins(monitor.loop.steps.few(monitor._params))
        if monitor._is_mine(optimizer):
            monitor._wake()
            count = monitor.steps - monitor.first_step + 1
            if monitor.watching and monitor.updates.wants(count, monitor._on):
                monitor.updates.before(optimizer, monitor.steps, count)
            monitor._about_to_step(optimizer)

    def has_stepped(optimizer: Optimizer, *_: object) -> None:
        monitor = myself()
        if monitor is None or is_skipped(optimizer):
            return
        for closure in closures:
            closure.end()
        monitor.loop.dropped.reset()
        if was_quiet := monitor._stepped_quietly():
            if was_quiet == LAST:
                monitor._row_ends()
        elif monitor._is_mine(optimizer):
            monitor._has_stepped(optimizer)
            monitor._begin_row()
        else:
            monitor.owners.see_stranger(optimizer, counts=not len(monitor.history))

    return [
        register_optimizer_step_pre_hook(eager(about_to_step)),
        register_optimizer_step_post_hook(eager(has_stepped)),
    ]
