"""Threads that share a core are parted, and none stays bound to any."""

import os
import subprocess
import sys

import pytest
from vegrad import _core

PROGRAM = """
import os
import numpy as np
import vegrad

def threads():
    return {int(one) for one in os.listdir("/proc/self/task")}

def core_of(thread):
    with open(f"/proc/self/task/{thread}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[36])

def step():
    net.backward(x, x)
    return core_of(worker)

net, x = vegrad.MLP([256] * 3, seed=0), np.ones((512, 256), np.float32)
before = threads()
net.backward(x, x)
(worker,) = threads() - before
everywhere, one = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}

# Both may use one core only: so it stays.
for thread in (0, worker):
    os.sched_setaffinity(thread, one)
assert any(step() in one for _ in range(10_000))  # on a busy machine the worker comes late
assert any({step() for _ in range(50)} == one for _ in range(20))  # what it was at before ends
assert os.sched_getaffinity(worker) == one

# The worker may leave it (if the other cores are idle), and may use all of them afterwards.
os.sched_setaffinity(worker, everywhere)
for _ in range(1000):
    step()
os.sched_setaffinity(0, everywhere)
assert any((step(), os.sched_getaffinity(worker))[1] == everywhere for _ in range(10_000))
assert os.sched_getaffinity(0) == everywhere
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
@pytest.mark.skipif(_core.is_plain(), reason="this build has no threads")
def test_a_worker_that_leaves_the_callers_core_stays_free() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    settings = {"VEGRAD_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
