"""A finding: one thing that is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    `layers` are numbered as in the parameters' names, `evidence` holds numbers by name, `blame` is
    the factor of the gain that is at fault ("weights" or "activation"), if one is.
    """

    kind: str
    severity: str
    layers: tuple[int, ...]
    message: str
    advice: str
    evidence: dict[str, float]
    blame: str | None = None
