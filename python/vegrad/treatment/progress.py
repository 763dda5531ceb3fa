"""The progress of a search for a cure, on standard error or told to a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vegrad.reports.progress import Line


@dataclass(frozen=True)
class Look:
    """A moment of a search: how far the training of one change has come."""

    name: str
    """The change's, as in `Attempt.name`."""
    step: int
    steps: int
    """Steps of a whole training."""
    loss: float
    cost: float
    """The cost of everything so far, in trainings."""
    ended: str = ""
    """A sentence that says how the training of this change has ended; "" as long as it goes on."""


Listener = Callable[[Look], object]


class Telling:
    """Writes looks on standard error, in a line that stays how an attempt has ended."""

    def __init__(self) -> None:
        self._line = Line()

    def __call__(self, look: Look) -> None:
        """Show a look."""
        place = f"{look.name}  step {look.step}/{look.steps}"
        numbers = f"loss {look.loss:.4g}  cost {look.cost:.2f}"
        numbers += f"  {look.ended}" if look.ended else ""
        self._line.write(place, numbers, look.step, look.steps, stays=bool(look.ended))

    def __del__(self) -> None:
        self._line.close()


def listener(progress: bool | Listener) -> Listener:
    """Return what is to be told of a search's looks.

    Raises:
        TypeError: if it is neither True, False nor a function.
    """
    if isinstance(progress, bool):
        return Telling() if progress else lambda look: None
    if not callable(progress):
        kind = type(progress).__name__
        raise TypeError(f"progress must be True, False or a function, not {kind}")
    return progress
