"""R10. A ReLU network whose recurrent matrix is too large is infinite after a few steps.

Adding problem, T = 50: 64 ReLU units, U Gaussian of spectral radius 1.5, 64 rows a step, SGD 0.01.
"""

import numpy as np
import vegrad
from common import BLUE, INK, ORANGE, SEEDS, picture, save, table
from recurrent_training import clip, shown, spectral_radius, train
from vegrad.datasets import adding

STEPS, T, UNITS, BATCH, RATE, RADIUS = 1500, 50, 64, 64, 0.01, 1.5
LOOKS = (500, STEPS)
CASES = ((None, ORANGE, "infinite at step 12, norm 8e4"), (1.0, BLUE, "stays at 0.17"))


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture(f"Adding problem, T = {T}: ReLU of spectral radius {RADIUS:g}")
    for norm, colour, expected in CASES:
        courses, last = [], []
        for seed in SEEDS:
            network = vegrad.RNN(2, UNITS, 1, cell="relu", loss="mse", seed=seed)
            rng = np.random.default_rng([seed, 10])
            recurrent = network.parameters["rnn.weight_hh_l0"]
            recurrent[...] = rng.standard_normal(recurrent.shape) / UNITS**0.5
            recurrent *= RADIUS / spectral_radius(network)
            course = train(
                network,
                lambda rows, draw: adding(rows, T, seed=draw),
                vegrad.SGD(RATE, clip=clip(norm)),
                STEPS,
                batch=BATCH,
                seed=seed,
                figure=lambda network, data: network.loss(data.x, data.y),
                enough=0.01,
            )
            courses.append(course)
            last.append(
                " → ".join(f"{dict(course.looks)[step]:.2g}" for step in LOOKS)
                if course.ended is None
                else f"{max(loss for loss in course.losses if np.isfinite(loss)):.2g}"
            )
            name = "no clip" if norm is None else f"clip {norm:g}"
            finite = np.where(np.isfinite(course.losses), course.losses, np.nan)
            panel.plot(
                np.arange(1, len(finite) + 1),
                finite,
                color=colour,
                label=name if seed == SEEDS[0] else None,
            )
        found = ", ".join(map(shown, courses))
        first = " ".join(f"{course.norms[0]:.1e}" for course in courses)
        rows.append((name, expected, found, first, ", ".join(last)))
    table(
        (
            "T = 50",
            "expected",
            "by seed",
            "first norm",
            f"error at {LOOKS[0]} → {LOOKS[1]}, or largest",
        ),
        rows,
    )
    panel.axhline(1 / 6, color=INK, linewidth=0.8, linestyle=":")
    panel.set_xlabel("step")
    panel.set_ylabel("mean square error")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(top=1e6)  # one step further a loss without a clip is 1e100 or more
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
