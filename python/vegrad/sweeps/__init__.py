"""The same measurement at many points, on one process or on as many as an executor has.

`spread` hands the points out, keeps what comes in a file, and goes on where that file ends.
"""

from vegrad.sweeps.pool import OfPool, Pool, check_executor, is_pool
from vegrad.sweeps.spread import Executor, Outcome, SweepError, spread

__all__ = [
    "Executor",
    "OfPool",
    "Outcome",
    "Pool",
    "SweepError",
    "check_executor",
    "is_pool",
    "spread",
]
