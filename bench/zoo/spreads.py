"""Check the spreads of `theory.expected_flow` on the zoo's networks, drawn and not trained.

    python bench/zoo/spreads.py                 seeds 201 to 210, on which nothing was tuned
    python bench/zoo/spreads.py --seeds 1 2     other zoos

The networks are a zoo's first ones that are at least 128 wide and have no planted fault, whatever
their label, on 128 rows of their data. The table has the share of their gains within one and within
two stated spreads, and the mean and standard deviation of their deviations in spreads. Perfect
spreads would give 68.3 %, 95.4 %, 0 and 1.
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
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402
import vegrad  # noqa: E402
from vegrad.theory import expected_flow  # noqa: E402

from zoo.examine import ROWS  # noqa: E402
from zoo.families import Specimen, build, draw  # noqa: E402
from zoo.table import SPREADS, markdown, spread_row  # noqa: E402

Array = np.ndarray
DRAWN = 800  # specimens of each zoo: about as many as it takes to have 300 of both kinds


def deviations(specimen: Specimen) -> Array:
    """Compute how far every gain lies from its expectation, in spreads."""
    network, x, target = build(specimen)
    rows = np.random.default_rng(specimen["number"]).permutation(len(x))[:ROWS]
    with np.errstate(all="ignore"):
        network.backward(np.ascontiguousarray(x[rows]), target[rows])
        return np.asarray(expected_flow(network, x[rows]).deviations(network.flow))


def groups(specimen: Specimen, count: int) -> list[tuple[str, Any]]:
    """Return the groups that a network belongs to, each with the slice of its gains."""
    depth = specimen["depth"]
    depths = {3: "2 or 3", 9: "4 to 9", 20: "10 to 20"}
    deep = next((name for most, name in depths.items() if depth <= most), "over 20")
    names = [
        f"data {specimen['data']}",
        f"family {specimen['family']}",
        f"layers {deep}",
        f"activation {specimen['activation']}",
        f"init {specimen['init']}",
    ]
    return [
        ("all", slice(None)),
        *((name, slice(None)) for name in names),
        ("where first", slice(0, 1)),
        ("where last", slice(count - 1, None)),
        ("where between", slice(1, count - 1)),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(201, 211)))
    parser.add_argument("--numbers", type=int, default=DRAWN, help=f"networks drawn ({DRAWN})")
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
    rows = [spread_row(group, several) for group, several in sorted(found.items())]
    print(markdown(("group", *SPREADS), [row for row in rows if row]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
