"""R1. A driven tanh cell shrinks the gradient √χ a step: Chen et al. 2018 (arXiv:1806.05394).

256 units, 200 steps, Gaussian recurrent weights, white inputs that give a pre-activation variance
0.25: the gain of ‖δ‖ beside mean-field theory.
"""

import numpy as np
from common import BLUE, GREEN, INK, ORANGE, SEEDS, picture, save, table
from recurrent_common import compared, off, way_back
from vegrad import theory
from vegrad.theory import cells

HIDDEN, STEPS, ROWS, GIVEN = 256, 200, 4, 0.25


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Size of the gradient going back through a tanh cell, and √χ a step")
    critical = theory.critical_sigma_u("tanh", GIVEN)
    for colour, sigma in zip((INK, BLUE, ORANGE, GREEN), (0.9, 1.0, 1.2, critical), strict=True):
        expected, found = theory.recurrent_gain("tanh", sigma, GIVEN), []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            weights = {
                "ih": GIVEN**0.5 * np.eye(HIDDEN)[None],
                "hh": rng.standard_normal((1, HIDDEN, HIDDEN)) * sigma / HIDDEN**0.5,
            }
            x = rng.standard_normal((STEPS + 30, ROWS, HIDDEN))
            sizes, gain = way_back(cells.run("tanh", weights, x).after(30))
            found.append(gain)
        rows.append((f"{sigma:.4g}", f"{expected:.4f}", compared(found, 4), off(found, expected)))
        back = np.arange(STEPS)
        panel.plot(back, sizes[::-1], color=colour, label=f"σ_u = {sigma:.4g}")
        panel.plot(back, back * np.log10(expected), "--", color=colour, linewidth=1)
    table(("σ_u", "√χ", "measured", "off by"), rows)
    panel.set_xlabel("steps back from the last")
    panel.set_ylabel("log10 ‖δ‖")
    panel.legend(frameon=False, title="dashed: √χ a step")
    save(sheet, __file__)


if __name__ == "__main__":
    main()
