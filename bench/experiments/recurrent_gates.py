"""R2. One U for all steps adds up: gated cells as PyTorch draws them, with other biases.

LSTM and GRU, 256 inputs and units, 200 steps: the gain of ‖δ‖ beside the formula for one U at all
steps, and beside the one that takes U as drawn anew at each.
"""

import numpy as np
from common import BLUE, FAINT, ORANGE, SEEDS, picture, save, table
from recurrent_common import compared, first_layer, off, way_back
from vegrad import theory
from vegrad.theory import cells

HIDDEN, STEPS, SETTLED, ROWS, BIASES = 256, 200, 60, 4, (0, 1, 3)
REFERENCE = {("lstm", 0): 0.607, ("lstm", 1): 0.817, ("lstm", 3): 0.996}
REFERENCE |= {("gru", 0): 0.617, ("gru", 1): 0.781, ("gru", 3): 0.953}


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Gain of ‖δ‖ a step in gated cells")
    for colour, cell in ((BLUE, "lstm"), (ORANGE, "gru")):
        drawn = []
        for bias in BIASES:
            tied, fresh, found = [], [], []
            for seed in SEEDS:
                parameters = theory.draw_recurrent_parameters(
                    HIDDEN, HIDDEN, 1, cell, 1, "default", seed=seed
                )
                parameters["rnn.bias_ih_l0"][HIDDEN : 2 * HIDDEN] += bias
                x = np.random.default_rng(seed).standard_normal((STEPS + SETTLED, ROWS, HIDDEN))
                run = cells.run(cell, first_layer(parameters), x).after(SETTLED)
                formula = theory.tied_gain(run)
                tied.append(float(formula.gain[0]))
                fresh.append(float(formula.fresh[0]))
                found.append(way_back(run)[1])
            expected = float(np.mean(tied))
            row = (
                f"{cell}, bias {bias:+d}" if bias else cell,
                f"{expected:.3f}",
                f"{np.mean(fresh):.3f}",
                compared(found),
                off(found, expected),
                f"{REFERENCE[cell, bias]:.3f}",
            )
            rows.append(row)
            drawn.append((expected, np.mean(fresh), np.mean(found)))
        one, anew, seen = np.array(drawn).T
        panel.plot(BIASES, one, color=colour, label=f"{cell}: one U for all steps")
        panel.plot(BIASES, anew, "--", color=colour, linewidth=1, label="U drawn anew")
        panel.plot(BIASES, seen, "o", color=colour, label="measured")
    panel.axhline(1, color=FAINT, linewidth=1)
    table(("", "one U", "U anew", "measured", "off by", "PyTorch"), rows)
    panel.set_xlabel("added to the bias of the forget or update gate")
    panel.set_ylabel("‖δ_{t-1}‖/‖δ_t‖")
    panel.legend(frameon=False, ncols=2)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
