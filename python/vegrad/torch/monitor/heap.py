"""Memory that a training frees in each step and asks for again in the next.

glibc gives the top of its heap back to the system once twice as much lies free there as the largest
block that was freed before. A step that ends so pays for new pages in the next one, a tenth of its
time and more. Whether it does is chance: it hangs on what small thing happens to lie above the
gradients. A monitor's records change that chance for the worse.

Source: mallopt(3), on the dynamic threshold of M_MMAP_THRESHOLD.
"""

from __future__ import annotations

import functools
import sys

import numpy as np

LARGEST = (1 << 25) - (1 << 16)  # bytes: glibc takes its measure of no block beyond 32 MiB


@functools.cache
def keep_heap() -> None:
    """Have glibc keep up to 64 MiB of free memory for the next step: free one large block, once.

    None of its pages is ever touched.
    """
    if sys.platform == "linux":
        np.empty(LARGEST, np.uint8)
