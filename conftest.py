"""The blocks of the README and of the site's pages are tests."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # each core has a worker: more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.pages import collect as pytest_collect_file

__all__ = ["pytest_collect_file"]
