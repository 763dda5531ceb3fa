"""Alarms of a monitor: when a training is judged while it runs, and who is told of a finding."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from math import inf, isfinite

from vegrad.diagnosis.alarms import FindingError, FindingWarning, OnFinding, checked_way, user_level
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.causes import decayed, thrown
from vegrad.diagnosis.rules.divergence import PROMISE
from vegrad.diagnosis.rules.modules import DEAD, DRIFT
from vegrad.flow.finding import Finding
from vegrad.torch.monitor.report import Report

EARLY = (1, 3, 10, 20, 35, 50, 75)  # numbers of steps after which a training is judged; then
EVERY, LATE, RARELY = 100, 500, 500  # up to the step LATE and after it; triggers come beside
WIDTH = 5  # losses of which the median is taken
RISE, GROWTH = 1.25, 3.0  # of the loss above its lowest, of the gradient above its usual size
FLOOR = 0.1  # of the first loss: what is below is not compared with
OURS = ("vegrad", "torch", "contextlib")  # a warning points at code outside these packages
REST, LONGEST = 4, 64  # steps between judgements that a trigger has caused, growing


class Alarms:
    """Decides at each step if a training is judged now, and tells of each cause once.

    Args:
        on_finding: a function of a finding, "warn", "raise", "stop", or None for silence.
        ignore: causes that nothing is said about.

    Raises:
        TypeError, ValueError: for other values.
    """

    def __init__(self, on_finding: OnFinding, ignore: Iterable[str]) -> None:
        self.act, self.ignore = (
            checked_way(on_finding),
            as_ignored(tuple(ignore) if not isinstance(ignore, str) else ignore),
        )
        self.found: dict[str, Finding] = {}
        """The findings by cause, in the order in which they were first seen."""
        self.steps: dict[str, int] = {}
        """The step at which each was first seen."""
        self.stopped = False
        self._count = 0
        self._losses: deque[float] = deque(maxlen=WIDTH)
        self._norms: deque[float] = deque(maxlen=WIDTH)
        self._first = self._lowest = self._usual = inf
        self._broken = self._promised = self._drifts = False
        self._promises: deque[float] = deque(maxlen=3)
        self._rest, self._wait = 0, REST

    def due(self, loss: float, norm: float) -> bool:
        """Take in a step's loss and gradient norm; return True if it is time to judge."""
        self._count += 1
        count = self._count
        if count in EARLY or count % (EVERY if count <= LATE else RARELY) == 0:
            return True
        if self._rest > 0:
            self._rest -= 1
        if not self._is_odd(loss, norm) or self._rest > 0:
            return False
        self._rest = self._wait
        self._wait = min(2 * self._wait, LONGEST)
        return True

    @property
    def limits(self) -> tuple[float, float]:
        """The loss and the gradient norm beyond which a step may be odd, so that it is not to wait.

        Infinite while too few steps were seen.
        """
        loss = RISE * max(self._lowest, FLOOR * abs(self._first)) if self._lowest < inf else inf
        return loss, GROWTH * self._usual

    def may_be_odd(self, loss: float, norm: float) -> bool:
        """Return True of a step after which it may be time to judge, so that it is not to wait."""
        highest, largest = self.limits
        return not isfinite(norm) or loss in (inf, -inf) or norm > largest or loss > highest

    @property
    def ahead(self) -> int:
        """Number of steps up to the next that is judged for its number."""
        later = self._count + 1
        soon = [one for one in EARLY if one >= later]
        every = EVERY if later <= LATE else RARELY
        return min([*soon[:1], later + -later % every]) - self._count

    def promises(self, promise: float, loss: float) -> bool:
        """Take in what a step promises to take off the loss; return True if it is time to judge."""
        if loss > 0:
            self._promises.append(promise / loss)
        known = sorted(self._promises)
        before, self._promised = self._promised, len(known) == 3 and known[1] >= PROMISE
        return self._promised and not before

    def _is_odd(self, loss: float, norm: float) -> bool:
        """Return True of what is no part of a quiet training."""
        if not isfinite(norm) or loss in (inf, -inf):
            first, self._broken = not self._broken, True
            return first
        losses, norms = self._losses, self._norms
        losses.append(loss)
        norms.append(norm)
        if len(losses) < WIDTH:
            return False
        middle, size = sorted(losses)[WIDTH // 2], sorted(norms)[WIDTH // 2]
        if self._first == inf:
            self._first, self._usual = middle, size
        floor = FLOOR * abs(self._first)
        odd = middle > RISE * max(self._lowest, floor) or size > GROWTH * self._usual
        self._lowest = min(self._lowest, middle)
        self._usual += 0.05 * (min(size, GROWTH * self._usual) - self._usual)
        return odd

    def tell(self, findings: Iterable[Finding], step: int, *, reported: bool = False) -> None:
        """Tell of findings whose causes are new, as `on_finding` says.

        Args:
            findings: all that there are.
            step: the number of the last step.
            reported: True if the user is given them in a report, which needs no warning or error.

        Raises:
            FindingError: if `on_finding` says "raise".
        """
        new, drifts, self._drifts = [], self._drifts, False
        for one in findings:
            cause = one.cause or one.kind
            if one not in thrown([*self.found.values(), one]):
                continue
            if one.rule == DRIFT.name:
                # In a network that is being thrown this passes, so that it must be seen twice.
                self._drifts = True
                if not drifts and self._count > 1 and cause not in self.found:
                    continue
            if cause not in self.found:
                self.steps[cause] = step
                new.append(one)
            self.found[cause] = one
        for one in new:
            if not reported or self.act not in ("warn", "raise"):
                self._tell(one, step)

    def _tell(self, one: Finding, step: int) -> None:
        words = f"step {step}, {one.kind} ({one.cause or one.kind}): {one.message}; {one.advice}"
        if self.act == "warn":
            warnings.warn(FindingWarning(words, one), stacklevel=user_level(OURS))
        elif self.act == "raise":
            raise FindingError(words, one)
        elif self.act == "stop":
            self.stopped = True
        elif callable(self.act):
            self.act(one)

    def kept(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return findings without those whose causes are to be ignored."""
        return tuple(one for one in findings if one.cause not in self.ignore)

    def with_earlier(self, report: Report) -> tuple[Finding, ...]:
        """Return findings with those that were seen before, in the order in which they came up.

        Modules that seemed dead in the first steps, and of which none is now, are not; nor are
        effects of what was found since.
        """
        now = {one.cause or one.kind: one for one in report.findings}
        alive = {one["module"] for one in report.rows if one["activation_rms"] > 0}

        def refuted(cause: str, one: Finding) -> bool:
            early = one.rule == DEAD.name and self.steps.get(cause, 0) < EARLY[-1]
            return early and cause not in now and all(site.name in alive for site in one.sites)

        every = (self.found | now).items()
        kept = [one for cause, one in every if not refuted(cause, one)]
        return tuple(thrown(decayed(kept)))
