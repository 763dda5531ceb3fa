"""GradScaler: the steps that it skips, and what it leaves to a fused optimizer."""

from __future__ import annotations

import weakref
from math import nan

import numpy as np
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

FEW = 8  # steps skipped in a row, after which the next passes are looked at
LEAST = 2.0**-10  # a factor at which gradients that can be had have long been finite


class Scaling:
    """The losses that a GradScaler has scaled for the next backward passes."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None
        """Its factor; None without one."""
        self._losses: list[tuple[weakref.ref[Tensor], Tensor]] = []
        """Each as it was scaled, and as it was before."""
        self._others: list[tuple[weakref.ref[Tensor], Tensor]] = []
        """Those that the backward pass in progress does not begin with, if it begins with one."""

    def note(self, scaler: GradScaler, raw: object, result: object) -> None:
        """Note a loss that was scaled."""
        self.scale = scaler._scale
        if isinstance(raw, Tensor) and isinstance(result, Tensor):
            self._losses.append((weakref.ref(result), raw.detach()))

    def take(self) -> Tensor | None:
        """Return the factor of the backward pass that has ended, and forget its losses."""
        scale, others, self._others = self.scale, self._others, []
        self._losses = [one for one in others if one[0]() is not None]
        self.scale = scale if self._losses else None
        return scale

    def before(self, root: Tensor) -> Tensor:
        """Return a loss without the factor; nan if it is infinite, maybe by the factor alone."""
        if self.scale is None:
            return root.detach()
        for place, (scaled, raw) in enumerate(self._losses):
            if scaled() is root:
                self._others = self._losses[:place] + self._losses[place + 1 :]
                return raw
        value = root.detach().double() / self.scale.to(root.device)
        return value.masked_fill(value.isinf(), nan)

    @property
    def were_finite(self) -> bool:
        """True if the losses were finite before a factor was put on them."""
        raw = [one for _, one in self._losses]
        return bool(raw) and all(bool(one.isfinite().all()) for one in raw)


class Skipped:
    """The backward passes in a row after which a GradScaler has let no step be taken.

    It begins with a factor that is too large, and halves it at each skip until gradients are
    finite: a few skips are no trouble. If they stay NaN or infinite, the factor goes down to 0.
    """

    def __init__(self) -> None:
        self._steps, self.count = 0, 0
        self.have_collapsed = False
        """True if the factor has gone far below 1, and still no step was taken."""

    def see(self, scale: Tensor | None, steps: int, *, began_empty: bool) -> bool:
        """Note a backward pass; return True once it has become clear that no step will follow.

        Args:
            scale: the factor that the gradients have; None without a GradScaler.
            steps: the number of steps that were taken.
            began_empty: True if there was no gradient as the pass began.
        """
        if scale is None or steps != self._steps:
            self._steps, self.count, self.have_collapsed = steps, 0, False
        if scale is None or not began_empty:
            return False
        self.count += 1
        before = self.have_collapsed
        self.have_collapsed = before or (self.count > FEW and float(scale) < LEAST)
        return self.have_collapsed and not before


def is_skipped(optimizer: Optimizer) -> bool:
    """Return True within a step that will change nothing, since a gradient is not finite."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


def factor_of(optimizer: Optimizer) -> float:
    """Return the factor that the gradients have, which the step takes out of them by itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return float(scale) if isinstance(scale, Tensor) else 1.0


def unscaled(joint: float, numbers: bytes, count: int, factor: float) -> tuple[float, bytes]:
    """Return a joint norm, and numbers of which the first are norms too, without a factor."""
    norms = np.frombuffer(numbers, np.float64).copy()
    norms[:count] /= factor
    return joint / factor, norms.tobytes()
