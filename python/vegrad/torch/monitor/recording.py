"""The record of a monitor's step: what hooks and gradients tell, and what was not finite."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan, sqrt

import numpy as np
import torch
from torch import Tensor

from vegrad.torch.gradient_norms import norms_of
from vegrad.torch.monitor.first import FirstLook
from vegrad.torch.monitor.history import MonitorHistory, NonFinite, growth
from vegrad.torch.monitor.hooks import ModuleHooks
from vegrad.torch.monitor.loop import Loop
from vegrad.torch.monitor.modules import is_plain
from vegrad.torch.monitor.scaling import unscaled
from vegrad.torch.monitor.schedule import Schedule
from vegrad.torch.monitor.updates import lost_epsilon


class RecordHooks(ModuleHooks):
    """The reading of a step's gradients, with what the hooks have seen of the step."""

    schedule: Schedule
    loop: Loop
    first: FirstLook
    subnormals: dict[str, float]
    """Shares of the elements, "forward", "backward" and "gradients", when last counted."""
    _history: MonitorHistory
    _paused = False
    _joint = nan
    _factor = 1.0
    """What a GradScaler has left in the gradients, for a fused step to take out."""

    def _read(self) -> tuple[float, bytes] | None:
        """Return what `_watch` records of the step."""
        start = self.schedule.now()
        found = self._watched_norms()
        if self._on:
            self.schedule.read(self.schedule.now() - start)
        return found

    def _watched_norms(self) -> tuple[float, bytes] | None:
        found = self._watch.record(self._params)
        if found is None or self._factor == 1:
            return found
        return unscaled(*found, len(self._params), self._factor)

    def _before(self, bad: Tensor | None) -> dict[str, float]:
        if not len(self._history.looked):
            return {}
        last = self._history.looked[-1]
        found = {"growth": growth(self._squares, self._counts, last)}
        if bad is not None and last.gradient_norm < inf:
            found["epsilon"] = lost_epsilon(self.loop.steps.optimizers, bad)
        return found

    @property
    def saw_modules(self) -> bool:
        """True if modules were seen in this step: none are without a look, or if compiled."""
        return self._on and bool(self._counts.any())

    def replay(self, run: Callable[[], object]) -> None:
        """Run a step of which no module was seen again, to see where it was not finite first.

        Its numbers are not kept.
        """
        if self.saw_modules or self._paused or self.nonfinite is not None:
            return
        looking = self._on
        self._hooked.put(True)
        self._on = self._watch.on = self._replaying = True
        try:
            run()
        finally:
            self._on = self._watch.on = looking
            self._replaying = False
            self._hooked.put(looking)
            self._watch.clear()
            self._others = []

    def _find_gradient(self, place: int, grad: Tensor) -> None:
        """Note a parameter's gradient that is not finite where all before it were."""
        name = self.parameters[place]
        unseen = self.first.call is None and not self.saw_modules
        module = name.rpartition(".")[0] or self.kind
        facts = {"gradient_of": name, "unseen": unseen, "processes": _processes()}
        self._note("gradient", module, grad, None, **facts)

    def _will_be_skipped(self) -> bool:
        """Return True if a gradient is not finite."""
        grads = [one.grad for one in self._params if one.grad is not None]
        return not all(norms_of(grads) < inf)

    def _find_skipped(self) -> None:
        """Note a gradient that is not finite, though no step is to take it."""
        if self.nonfinite is None:
            grads = [one.grad for one in self._params]
            self._joint_of(norms_of(grads).tolist(), grads)

    def _was_skipped(self, first: NonFinite) -> bool:
        """Return True if a GradScaler has kept what was seen from the parameters."""
        here = first.phase in ("backward", "gradient") and first.step == self.steps
        return here and 0 < self._history[-1].gradient_norm < inf

    def _record(self, known: dict[int, float] | None) -> None:
        """Add the step to the history, where `_watch` cannot."""
        grads = [param.grad for param in self._params]
        norms = None
        if known is not None:
            sizes = [
                nan if grad is None else known.get(id(param), -1.0)
                for param, grad in zip(self._params, grads, strict=True)
            ]
            norms = None if -1.0 in sizes else np.array(sizes, np.float64)
        if norms is None:
            norms = norms_of(grads) / self._factor
        sizes = norms.tolist()  # a few numbers are faster one by one than as arrays
        joint = sqrt(sum([size * size for size in sizes]))
        if not joint < inf:
            joint = self._joint_of(sizes, grads)
        self._joint = joint
        self._add_others()
        rms = np.full(len(self.modules), nan)
        np.divide(self._squares, self._counts, out=rms, where=self._counts > 0)
        deltas = np.where(self._deltas < 0, nan, self._deltas)
        numbers = np.concatenate([norms, np.sqrt(rms), deltas]).tobytes()
        loss = self.loop.loss()
        self._history.add(self.steps, len(self._params), joint, numbers, loss, looked=self._on)
        if self._counting:
            if plain := [one for one in grads if is_plain(one)]:
                self._count("gradients", plain)
            self.subnormals = {
                phase: small / count for phase, (small, count) in self._tally.items() if count
            }

    def _add_others(self) -> None:
        """Add the norms that were taken on other devices, which are fetched all at once."""
        if not self._others:
            return
        values = torch.stack([one.to(self._others[0][2]) for *_, one in self._others]).tolist()
        for (found, place, _), value in zip(self._others, values, strict=True):
            if found is self._squares:
                found[place] += value * value
            else:
                found[place] = sqrt(found[place] ** 2 + value * value)

    def _joint_of(self, sizes: list[float], grads: list[Tensor | None]) -> float:
        """Return the joint norm where some gradients are missing or not finite; note the latter."""
        wrong = [
            (place, grad)
            for place, (size, grad) in enumerate(zip(sizes, grads, strict=True))
            if not size < inf and grad is not None and not grad.is_meta
        ]
        if not wrong:
            return sqrt(sum([size * size for size in sizes if size == size]))
        if self.nonfinite is None:
            self.first.replay()
        if self.nonfinite is None:
            self._find_gradient(*wrong[0])
        return sum([sizes[place] for place, _ in wrong])


def _processes() -> int:
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1
