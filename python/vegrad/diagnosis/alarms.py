"""Alarms: what is done when a training meets a finding, once for each cause."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Literal, TypeAlias

from vegrad.arrays.shown import shown
from vegrad.flow.finding import Finding

OnFinding: TypeAlias = Callable[[Finding], object] | Literal["warn", "raise", "stop"] | None
WAYS = ("warn", "raise", "stop")


class FindingWarning(UserWarning):
    """A training has met a finding, which is its `finding`."""

    def __init__(self, message: str = "", finding: Finding | None = None) -> None:
        super().__init__(message)
        self.finding = finding


class FindingError(RuntimeError):
    """A training has met a finding, and was asked to end with an error then.

    It has the `finding` and, of `fit`, the `history`: what the training has recorded so far.
    """

    def __init__(
        self, message: str = "", finding: Finding | None = None, history: object = None
    ) -> None:
        super().__init__(message)
        self.finding, self.history = finding, history


def checked_way(on_finding: OnFinding) -> OnFinding:
    """Return what is to be done with a finding, checked.

    Raises:
        TypeError, ValueError: it is no function, no word that is known, and not None.
    """
    wanted = f"on_finding must be a function, {', '.join(map(repr, WAYS))} or None"
    if isinstance(on_finding, str):
        if on_finding not in WAYS:
            raise ValueError(f"{wanted}, not {shown(on_finding)}")
    elif on_finding is not None and not callable(on_finding):
        raise TypeError(f"{wanted}, not {type(on_finding).__name__}")
    return on_finding


def user_level(packages: Collection[str] = ("vegrad",)) -> int:
    """Return the stack level, for a warning of the caller's, of the code outside these packages."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in packages:
        level, frame = level + 1, frame.f_back
    return level


class Alarms:
    """Findings that were told, and what is done with new ones.

    Args:
        on_finding: "warn" for a Python warning, "raise" for a `FindingError`, "stop" to end the
            training, a function that is called with the finding (True ends the training), or None
            for silence.
        history: what the error is given.

    Raises:
        TypeError, ValueError: on_finding is nothing of this.
    """

    def __init__(self, on_finding: OnFinding, history: object) -> None:
        self.on_finding, self.history = checked_way(on_finding), history
        self.stop = False
        """True once the training is to end."""
        self._told: set[tuple[str, str]] = set()

    def known(self, findings: Iterable[Finding]) -> None:
        """Take notice of what was told before, as after a resume."""
        self._told.update((one.kind, one.cause) for one in findings)

    def tell(self, findings: Iterable[Finding]) -> None:
        """Do what is to be done, for those that were not told yet."""
        for finding in findings:
            if (finding.kind, finding.cause) in self._told:
                continue
            self.known([finding])
            if callable(self.on_finding):
                self.stop |= self.on_finding(finding) is True
            elif self.on_finding == "warn":
                said = f"{finding.kind}: {finding.message}\n  → {finding.advice}"
                warnings.warn(FindingWarning(said, finding), stacklevel=user_level())
            elif self.on_finding == "stop":
                self.stop = True
            elif self.on_finding == "raise":
                said = f"{finding.kind}: {finding.message} {finding.advice}"
                raise FindingError(said, finding, self.history)
