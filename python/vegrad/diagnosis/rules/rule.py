"""The row of a rule in the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading

Find = Callable[[Reading, "Rule", Sequence[Finding]], Iterator[Finding]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of `RULES`: `find` yields a finding where what is measured reaches `warning`.

    It is given the reading, the row itself and what earlier rules found.
    """

    name: str
    kind: str
    warning: float
    critical: float
    measured: str
    reason: str
    source: str
    find: Find

    def severity(self, value: float) -> str:
        """Return how bad `value` is, given that it reaches the limit of a warning."""
        return "critical" if abs(value) >= abs(self.critical) else "warning"
