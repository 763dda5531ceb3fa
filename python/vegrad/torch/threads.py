"""The core on PyTorch's threads.

PyTorch's threads keep spinning for a while after each of its operations, on the very cores that
threads of our own would need. So the core runs on PyTorch's threads instead.
"""

from __future__ import annotations

import ctypes

from vegrad import _core


def borrow_threads() -> None:
    """Let the core run on the threads of PyTorch's OpenMP, if that can be found."""
    runtime = ctypes.CDLL(None)
    try:
        functions = [
            getattr(runtime, name)
            for name in ("GOMP_parallel", "omp_get_max_threads", "omp_get_thread_num")
        ]
    except (AttributeError, OSError, TypeError):  # another system or another runtime
        return
    _core.borrow_threads(*(ctypes.cast(one, ctypes.c_void_p).value or 0 for one in functions))
