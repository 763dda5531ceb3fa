"""Memory that glibc keeps from step to step while a monitor watches."""

import ctypes
import subprocess
import sys

import pytest

pytest.importorskip("torch")

IN_A_FRESH_PROCESS = """
import ctypes
import numpy as np
import torch
from vegrad.torch import Monitor

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
fields = [(name, ctypes.c_size_t) for name in names.split()]
Numbers = type("Numbers", (ctypes.Structure,), {"_fields_": fields})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Numbers


def mapped():
    before = mallinfo().hblks
    block = np.ones(16 << 20, np.uint8)
    return mallinfo().hblks - before, block[-1]


first = mapped()[0]
Monitor(torch.nn.Linear(2, 2))
second = mapped()[0]
print(first, second)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="not glibc, or an old one",
)
def test_a_large_block_comes_from_the_heap_once_there_was_a_monitor() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "0"]
