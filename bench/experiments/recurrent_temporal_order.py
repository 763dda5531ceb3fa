"""R7. A clip decides if a tanh network learns the temporal order task: Pascanu et al. 2013.

50 tanh units, all weights N(0, 0.1²), T = 20, 20 rows a step, SGD 0.1, arXiv:1211.5063. Solved is
the task where under 1 % of 1000 rows are wrong.
"""

import numpy as np
import vegrad
from common import BLUE, ORANGE, SEEDS, picture, save, table
from recurrent_training import clip, gaussian, share_wrong, shown, train
from vegrad.datasets import temporal_order

STEPS, T, UNITS, BATCH, RATE = 3000, 20, 50, 20, 0.1
CASES = ((1.0, BLUE, "400–1000 steps, 3 of 3"), (None, ORANGE, "at most 1 of 3 by 3000"))


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture(f"Temporal order, T = {T}: {UNITS} tanh units, SGD {RATE:g}")
    for norm, colour, expected in CASES:
        courses = []
        for seed in SEEDS:
            network = vegrad.RNN(6, UNITS, 4, cell="tanh", loss="cross_entropy", seed=seed)
            gaussian(network, 0.1, seed)
            course = train(
                network,
                lambda rows, draw: temporal_order(rows, T, seed=draw),
                vegrad.SGD(RATE, clip=clip(norm)),
                STEPS,
                batch=BATCH,
                seed=seed,
                figure=share_wrong,
                enough=0.01,
            )
            courses.append(course)
            name = "no clip" if norm is None else f"clip {norm:g}"
            panel.plot(
                *np.transpose(course.looks), color=colour, label=name if seed == SEEDS[0] else None
            )
        solved = sum(course.solved is not None for course in courses)
        largest = max(max(course.norms) for course in courses)
        found = ", ".join(map(shown, courses))
        rows.append((name, expected, f"{solved} of {len(SEEDS)}", found, f"{largest:.3g}"))
    table(("T = 20", "expected", "solved", "by seed", "largest norm"), rows)
    panel.set_xlabel("step")
    panel.set_ylabel("share of rows that are wrong")
    panel.set_ylim(0, 1)
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
