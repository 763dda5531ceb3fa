"""Arrays that end right before a page that may not be touched, or begin right after one.

For scripts that a test runs in a process of its own: a kernel that reads or writes beyond a buffer
then ends that process.
"""

import contextlib
import ctypes
import mmap
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_pages: list[Any] = []  # the arrays' memory, which stays until the process ends


def _forbid(address: int) -> None:
    done = _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0)
    assert done == 0, ctypes.get_errno()


def memory(size: int, after: bool) -> tuple[mmap.mmap, int]:
    """Pages around `size` bytes, and the offset where these bytes begin."""
    pages = -(-size // PAGE) * PAGE
    block = mmap.mmap(-1, pages + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    _forbid(start)
    _forbid(start + PAGE + pages)
    _pages.append(block)
    return block, PAGE + (pages - size if after else 0)


def guarded(values: Any, after: bool) -> np.ndarray:
    """Copy an array, in C order, to where it ends before (or begins after) a forbidden page."""
    values = np.ascontiguousarray(values)
    if values.size == 0:
        return values
    block, offset = memory(values.nbytes, after)
    raw = np.frombuffer(block, np.uint8)[offset : offset + values.nbytes]
    array = raw.view(values.dtype).reshape(values.shape)
    array[...] = values
    return array


def forget() -> None:
    """Give back the pages of arrays that are no longer used."""
    for block in _pages:
        with contextlib.suppress(BufferError):  # an array is left
            block.close()
    _pages.clear()
