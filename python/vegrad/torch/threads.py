"""PyTorch's threads spin between its operations, on the cores that ours would need."""

from __future__ import annotations

import ctypes

from vegrad import _core


def borrow_threads() -> None:
    """Lets the core run on the threads of PyTorch's OpenMP, if it has one that can be found."""
    runtime = ctypes.CDLL(None)
    try:
        functions = [
            getattr(runtime, name)
            for name in ("GOMP_parallel", "omp_get_max_threads", "omp_get_thread_num")
        ]
    except (AttributeError, OSError, TypeError):  # other systems, other runtimes
        return
    _core.borrow_threads(*(ctypes.cast(one, ctypes.c_void_p).value or 0 for one in functions))
