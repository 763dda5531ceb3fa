"""How honest the spreads of `theory.expected_flow` are: the zoo's networks, drawn and not trained.

    python bench/zoo_spreads.py                 seeds 201 to 210, on which nothing was tuned
    python bench/zoo_spreads.py --seeds 1 2     others

All of a zoo's first networks that are at least 128 wide and have no planted fault, whatever their
label, on 128 rows of their data: how many of their gains lie within one and two stated spreads, and
the mean and standard deviation of what they lie off, in spreads. Right would be 68.3 %, 95.4 %, 0
and 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before NumPy
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import vegrad  # noqa: E402
from vegrad.theory import expected_flow  # noqa: E402
from zoo_examine import ROWS  # noqa: E402
from zoo_families import Specimen, build, draw  # noqa: E402
from zoo_table import markdown  # noqa: E402

Array = np.ndarray
DRAWN = 800  # of each zoo, about as many as it takes to have 300 of both kinds


def deviations(specimen: Specimen) -> Array:
    """Of every gain, in spreads."""
    network, x, target = build(specimen)
    rows = np.random.default_rng(specimen["number"]).permutation(len(x))[:ROWS]
    with np.errstate(all="ignore"):
        network.backward(np.ascontiguousarray(x[rows]), target[rows])
        return np.asarray(expected_flow(network, x[rows]).deviations(network.flow))


def groups(specimen: Specimen, count: int) -> list[tuple[str, Any]]:
    """What a network's gains are sorted by: a group, and which of the gains."""
    depth = specimen["depth"]
    deep = "2 or 3" if depth <= 3 else "4 to 9" if depth < 10 else "10 to 20" if depth <= 20 else (
        "over 20"
    )  # fmt: skip
    names = [f"data {specimen['data']}", f"family {specimen['family']}", f"layers {deep}",
             f"activation {specimen['activation']}", f"init {specimen['init']}"]  # fmt: skip
    return [("all", slice(None)), *((name, slice(None)) for name in names),
            ("where first", slice(0, 1)), ("where last", slice(count - 1, None)),
            ("where between", slice(1, count - 1))]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(201, 211)))
    parser.add_argument("--numbers", type=int, default=DRAWN, help=f"of each zoo ({DRAWN})")
    options = parser.parse_args(arguments)
    vegrad.set_num_threads(1)
    found: dict[str, list[Array]] = defaultdict(list)
    for seed in options.seeds:
        for number in range(options.numbers):
            specimen = draw(seed, number)
            if specimen["fault"] or specimen["width"] < 128:
                continue
            apart = deviations(specimen)
            for group, which in groups(specimen, len(apart)):
                found[group].append(apart[which])
    rows = []
    for group, several in sorted(found.items()):
        apart = np.concatenate(several)
        if not len(apart):
            continue
        within = [f"{100 * np.mean(np.abs(apart) <= limit):.1f} %" for limit in (1, 2)]
        rows.append((group, str(len(several)), str(len(apart)), *within,
                     f"{np.mean(apart):+.2f}", f"{np.std(apart):.2f}"))  # fmt: skip
    head = ("group", "networks", "gains", "within 1", "within 2", "mean", "std")
    print(markdown(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
