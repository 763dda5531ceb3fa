"""The progress of a search for a cure, on standard error or told to a function."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass


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


class Line:
    """Writes on standard error: on a terminal a line that is written over, else one an attempt."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def __call__(self, look: Look) -> None:
        """Show a look, and in a line that stays how an attempt has ended."""
        if not (self.live or look.ended):
            return
        text = f"{look.name}  step {look.step}/{look.steps}  loss {look.loss:.4g}"
        text += f"  cost {look.cost:.2f}" + (f"  {look.ended}" if look.ended else "")
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            text = "\r" + text[:width].ljust(width)
        sys.stderr.write(text + ("\n" if look.ended else ""))
        sys.stderr.flush()


def listener(progress: bool | Listener) -> Listener:
    """Return what is to be told of a search's looks.

    Raises:
        TypeError: if it is neither True, False nor a function.
    """
    if isinstance(progress, bool):
        return Line() if progress else lambda look: None
    if not callable(progress):
        kind = type(progress).__name__
        raise TypeError(f"progress must be True, False or a function, not {kind}")
    return progress
