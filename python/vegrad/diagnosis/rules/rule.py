"""The row of a rule in the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class RuleOf(Generic[Read]):
    """One row of `RULES`: `find` yields a finding where what is measured reaches `warning`.

    It is given what was read (a `Reading`, or the steps of a history), the row itself and what
    earlier rules found.
    """

    name: str
    kind: str
    warning: float
    critical: float
    measured: str
    reason: str
    source: str
    find: Callable[[Read, RuleOf[Read], Sequence[Finding]], Iterator[Finding]]

    def severity(self, value: float) -> str:
        """Return how bad `value` is, given that it reaches the limit of a warning."""
        return "critical" if abs(value) >= abs(self.critical) else "warning"


Rule = RuleOf[Reading]
