"""Protocols of two runs, or two diagnoses, that can be shown side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vegrad.reports.shown_run import ShownRun


class ShownDeparture(Protocol):
    """A number of two runs, or of two diagnoses, that differs; see `Departure`."""

    @property
    def what(self) -> str:
        """The column's name, "module", "layer", or "time" of a step of recurrent layers."""

    @property
    def name(self) -> str:
        """The name of the module or layer; "" of a column."""

    @property
    def step(self) -> int | None:
        """The first step at which they differ."""

    @property
    def values(self) -> tuple[float, float]:
        """The number then."""

    @property
    def times_log2(self) -> float:
        """log2 of the second over the first."""

    @property
    def is_finite(self) -> bool:
        """True if both are finite."""


class ShownDifference(Protocol):
    """A finding's cause, and the step at which it came up in each of two."""

    @property
    def cause(self) -> str:
        """Its name."""

    @property
    def kind(self) -> str:
        """The kind of the finding."""

    @property
    def steps(self) -> tuple[int | None, int | None]:
        """None where it did not."""


class ShownComparison(Protocol):
    """Two runs or two diagnoses; see `vegrad.Comparison`."""

    @property
    def names(self) -> tuple[str, str]:
        """How the two are called."""

    @property
    def departures(self) -> Sequence[ShownDeparture]:
        """The numbers that differ, the first one first."""

    @property
    def findings(self) -> Sequence[ShownDifference]:
        """The findings that are not in both alike."""

    @property
    def settings(self) -> Mapping[str, tuple[object, object]]:
        """The settings that differ."""

    @property
    def figures(self) -> Mapping[str, tuple[float, float]]:
        """Numbers of both."""

    @property
    def sizes(self) -> Sequence[tuple[str, float, float]]:
        """Name and log2 of the gradient of each module or layer of both."""

    @property
    def runs(self) -> tuple[ShownRun, ShownRun] | None:
        """The runs; None of diagnoses."""

    @property
    def only(self) -> tuple[Sequence[str], Sequence[str]]:
        """Modules or layers that only one has."""

    @property
    def steps(self) -> tuple[float, float, int] | None:
        """The first and the last common step, and how many there are."""

    @property
    def same_until(self) -> float:
        """The first step at which the runs differ at all."""

    @property
    def differ(self) -> bool:
        """True if something departs or was found in one only."""

    def to_dict(self) -> dict[str, object]:
        """Return it as plain JSON types."""
