"""Ctrl-C and SIGTERM in `vegrad train`: the first stops the training, the next waits for the save.

Also what a training leaves to go on from where a disk is full.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Numbers of errors of a full disk."""


class Interrupts:
    """The answers to the signals that come."""

    saving = False
    """True while files are written: one signal waits for them, the one after it does not."""
    _waiting = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal.

        Raises:
            KeyboardInterrupt: unless it has to wait.
        """
        if self.saving and not self._waiting:
            self._waiting = True
            print("vegrad: saving; once more ends it at once", file=sys.stderr, flush=True)
            return
        self.saving = True  # which is what comes next
        raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Answer SIGINT and SIGTERM, but those that are ignored, if this is the main thread."""
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found  # only the main thread may handle signals
        return
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(one, found.hear)
    try:
        yield found
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
