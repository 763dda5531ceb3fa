"""R13. Orthogonal recurrent weights keep the gradient for as long as one likes: Saxe et al. 2014.

A linear cell (tanh around 0) of 32 units goes back 100 000 steps; beside it the same weights 1 %
smaller, whose gradient comes to 10^-436, far below what float64 holds.
"""

import numpy as np
from common import BLUE, ORANGE, SEEDS, picture, save, table
from recurrent_common import first_layer
from vegrad import theory
from vegrad.theory import cells

HIDDEN, STEPS = 32, 100_000


def sizes(seed: int, factor: float) -> np.ndarray:
    """Return log2 ‖δ‖ by steps back, over all steps."""
    parameters = theory.draw_recurrent_parameters(1, HIDDEN, 1, "tanh", 1, "orthogonal", seed=seed)
    weights = first_layer(parameters)
    weights = {"ih": weights["ih"], "hh": factor * weights["hh"]}
    x = np.zeros((STEPS, 1, 1))  # without inputs the state stays 0, where tanh is linear
    return cells.run("tanh", weights, x).back().delta_log2[0, ::-1]


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Size of the gradient over 100 000 steps of a linear cell")
    back = np.arange(STEPS)
    for factor, steps in ((1.0, SEEDS), (0.99, SEEDS[:1])):
        worst = 0.0
        for seed in steps:
            found = sizes(seed, factor)
            worst = max(worst, float(np.abs(np.exp2(found - back * np.log2(factor)) - 1).max()))
        name = "orthogonal" if factor == 1 else f"times {factor:g}"
        expected = (STEPS - 1) * np.log10(factor)
        measured = found[-1] * np.log10(2)
        rows.append((name, f"{expected:.3f}", f"{measured:.3f}", f"{worst:.1e}"))
        colour = BLUE if factor == 1 else ORANGE
        panel.plot(back[::500], found[::500] * np.log10(2), color=colour, label=name)
    table(("U", "log10 ‖δ‖ expected", "measured", "largest relative error"), rows)
    panel.set_xlabel("steps back")
    panel.set_ylabel("log10 ‖δ‖")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
