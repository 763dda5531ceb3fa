"""The line in which a training or a search tells how far it has come, on standard error."""

from __future__ import annotations

import importlib
import shutil
import sys
import warnings
from typing import Any


def in_notebook() -> bool:
    """Return True if this Python is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


class Line:
    """A bar of tqdm in a notebook, a line that is written over on a terminal, else lines that stay.

    Without tqdm a notebook gets lines that stay, too.
    """

    def __init__(self) -> None:
        self._bar = _bar() if in_notebook() else None
        self.is_bar = self._bar is not None
        self.live = self.is_bar or sys.stderr.isatty()

    def write(
        self, place: str, numbers: str, done: int, total: int, *, stays: bool = False
    ) -> None:
        """Show where it is in words, what the numbers are, and how much of all is done.

        `stays` marks the end of a part: on a terminal, the next one gets a line of its own.
        """
        if self._bar is not None:
            self._bar.n, self._bar.total = done, total
            self._bar.set_description_str(place, refresh=False)
            self._bar.set_postfix_str(numbers)
            return
        if not (self.live or stays):
            return
        text = f"{place}  {numbers}"
        if self.live:
            # A line that is longer than the terminal is wide would leave rows behind.
            width = shutil.get_terminal_size().columns - 1
            text = "\r" + text[:width].ljust(width)
        sys.stderr.write(text + ("\n" if stays else ""))
        sys.stderr.flush()

    def close(self) -> None:
        """End the bar, which stays as it is."""
        if self._bar is not None:
            self._bar.total = self._bar.n  # else it turns red, as if something had failed
            self._bar.close()


def _bar() -> Any:
    """Return tqdm's bar (of text where there are no widgets), None if it is not installed."""
    try:
        with warnings.catch_warnings():
            # Without ipywidgets tqdm warns, in red, and then draws a bar of text: what is wanted.
            warnings.simplefilter("ignore")
            tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        return None
    return tqdm(total=1, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}")
