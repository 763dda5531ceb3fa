"""Locks on files: one process may append to a file at a time, whoever else reads it."""

from __future__ import annotations

import os
from errno import EACCES, EAGAIN, EDEADLK, EWOULDBLOCK
from importlib import import_module

TAKEN = {EACCES, EAGAIN, EWOULDBLOCK, EDEADLK}
FAR = 1 << 40  # the byte that is locked on Windows, where a lock keeps readers from what it is on


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, or its process ends; return False if another has it.

    A file system that knows no locks is taken as it is.
    """
    try:
        if os.name == "nt":
            os.lseek(descriptor, FAR, os.SEEK_SET)
            windows = import_module("msvcrt")
            windows.locking(descriptor, windows.LK_NBLCK, 1)
        else:
            posix = import_module("fcntl")
            posix.flock(descriptor, posix.LOCK_EX | posix.LOCK_NB)
    except OSError as error:
        return error.errno not in TAKEN
    return True
