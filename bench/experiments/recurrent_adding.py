"""R9. Who solves the adding problem: tanh, IRNN, LSTM, GRU (Le, Jaitly & Hinton 2015).

64 units, 64 rows a step, Adam 2e-3, clip 1, arXiv:1504.00941. Solved is the task at a mean square
error of 0.01 on 1000 rows; the guess 1 has 0.167.
"""

import numpy as np
import vegrad
from common import BLUE, GREEN, ORANGE, RED, SEEDS, picture, save, table
from recurrent_training import clip, gaussian, shown, train
from vegrad.datasets import adding

UNITS, BATCH, RATE, ENOUGH = 64, 64, 2e-3, 0.01
CELLS = {  # cell, initialization, forget bias, colour
    "tanh, N(0, 0.1²)": ("tanh", "default", None, RED),
    "IRNN": ("relu", "identity", None, ORANGE),
    "LSTM, forget bias 1": ("lstm", "default", 1.0, BLUE),
    "GRU": ("gru", "default", None, GREEN),
}
RUNS = (  # T, name, most steps, what is expected
    (30, "tanh, N(0, 0.1²)", 6800, "solved"),
    (30, "IRNN", 6800, "solved"),
    (30, "LSTM, forget bias 1", 6800, "solved"),
    (30, "GRU", 6800, "solved"),
    (100, "tanh, N(0, 0.1²)", 6800, "0.17 at 6800"),
    (100, "IRNN", 6800, "2600 steps"),
    (100, "LSTM, forget bias 1", 6800, "2200 steps"),
)


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Adding problem, T = 100: 64 units, Adam 2e-3, clip 1")
    for steps, name, most, expected in RUNS:
        cell, init, forget, colour = CELLS[name]
        courses = []
        for seed in SEEDS:
            network = vegrad.RNN(
                2, UNITS, 1, cell=cell, init=init, forget_bias=forget, loss="mse", seed=seed
            )
            if cell == "tanh":
                gaussian(network, 0.1, seed)
            course = train(
                network,
                lambda rows, draw, steps=steps: adding(rows, steps, seed=draw),
                vegrad.Adam(RATE, clip=clip(1.0)),
                most,
                batch=BATCH,
                seed=seed,
                figure=lambda network, data: network.loss(data.x, data.y),
                enough=ENOUGH,
                every=100,
            )
            courses.append(course)
            if steps == 100:
                panel.plot(
                    *np.transpose(course.looks), color=colour, label=name if seed == 0 else None
                )
        last = " ".join(f"{course.looks[-1][1]:.3f}" for course in courses)
        rows.append((f"T = {steps}, {name}", expected, ", ".join(map(shown, courses)), last))
    table(("", "expected", "by seed", "last error"), rows)
    panel.set_xlabel("step")
    panel.set_ylabel("mean square error")
    panel.set_ylim(0, 0.25)
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
