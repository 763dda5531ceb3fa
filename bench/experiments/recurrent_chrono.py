"""R4. Chrono biases carry over a range of time scales: Tallec & Ollivier 2018 (arXiv:1804.11188).

An LSTM of 2000 units with time scales up to 100 steps and no other weights: the rms over units of
f^τ, what is carried τ steps, beside its closed form, and beside equal biases.
"""

import numpy as np
from common import BLUE, FAINT, INK, ORANGE, SEEDS, picture, save, table
from recurrent_common import compared
from vegrad import theory
from vegrad.theory.cells import sigmoid

LONGEST, HIDDEN = 100, 2000


def forget_gates(seed: int) -> np.ndarray:
    """Draw the forget gates of units that have nothing but their biases."""
    drawn = theory.draw_recurrent_parameters(
        1, HIDDEN, 1, "lstm", 1, "chrono", time_scale=LONGEST, seed=seed
    )
    bias = drawn["rnn.bias_ih_l0"] + drawn["rnn.bias_hh_l0"]
    return sigmoid(bias[HIDDEN : 2 * HIDDEN]).value


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    gates, rows = [forget_gates(seed) for seed in SEEDS], []
    for steps in (LONGEST // 2, LONGEST, 2 * LONGEST):
        expected = theory.chrono_memory(LONGEST, steps)
        found = [float(np.sqrt(np.mean(f ** (2 * steps)))) for f in gates]
        # The standard error of a root mean square over the units of one draw, and of three.
        error = np.std(gates[0] ** (2 * steps)) / (2 * expected * (HIDDEN * len(SEEDS)) ** 0.5)
        apart = (np.mean(found) - expected) / error
        rows.append((steps, f"{expected:.3f}", compared(found), f"{apart:+.1f}"))
    table(("steps", "closed form", "measured", "standard errors off"), rows)
    inverse = np.concatenate([1 / (1 - f) for f in gates])
    print(f"mean 1/(1 - f): {inverse.mean():.2f}, expected {LONGEST / 2 + 1:g}")
    sheet, panel = picture("What a forget gate carries, by the number of steps")
    steps = np.geomspace(1, 400, 60)
    for bias, colour in ((0, FAINT), (1, ORANGE), (3, INK)):
        label, scale = f"all biases {bias}", theory.gate_time_scale(bias)
        panel.loglog(steps, np.exp(-steps / scale), color=colour, label=label)
    chrono = [theory.chrono_memory(LONGEST, s) for s in steps]
    panel.loglog(steps, chrono, color=BLUE, label=f"chrono, up to {LONGEST}")
    seen = [np.sqrt(np.mean(gates[0] ** (2 * s))) for s in steps]
    panel.loglog(steps[::4], seen[::4], "o", color=BLUE, markersize=4)
    panel.set_ylim(1e-4, 1.5)
    panel.set_xlabel("steps")
    panel.set_ylabel("rms over units of f^steps")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
