"""R3. What truncated backpropagation loses: overlapping windows and chunks, beside the formula.

A driven tanh network of 200 units over 240 steps, with losses of independent directions at every
step: the relative error of ∂loss/∂U. With a gain g a step, windows of K steps at every step are off
by g^K and chunks of K by √(χ(1 - χ^K)/(K(1 - χ))), χ = g², but for the ends of the sequence. By
chance the gain of drawn weights is a little off, which counts K times: that is most of what is left
at K = 32.
"""

import numpy as np
from common import BLUE, FAINT, INK, ORANGE, SEEDS, mean_and_error, picture, save, table
from vegrad import RNN, theory

UNITS, STEPS, ROWS, INPUTS, Q_IN = 200, 240, 4, 50, 0.25
POINTS = (  # σ_u, the gain by mean field theory, windows
    (0.9, 0.70149, (2, 4, 8, 16)),
    (1.2, 0.86468, (4, 8, 16, 32)),
)
U = "rnn.weight_hh_l0"


def network(sigma: float, seed: int) -> tuple[RNN, np.ndarray, np.ndarray]:
    """Make a network, its inputs and targets so large that each loss has a direction of its own."""
    rng = np.random.default_rng([seed, 3])
    net = RNN(INPUTS, UNITS, UNITS, cell="tanh", targets="all", dtype="float64", seed=seed)
    deviations = {U: sigma / UNITS**0.5, "rnn.weight_ih_l0": (Q_IN / INPUTS) ** 0.5,
                  "head.weight": UNITS**-0.5}  # fmt: skip
    for name, array in net.parameters.items():
        array[...] = deviations.get(name, 0.0) * rng.standard_normal(array.shape)
    x = rng.standard_normal((ROWS, STEPS, INPUTS))
    return net, x, 1e3 * rng.standard_normal((ROWS, STEPS, UNITS))


def errors(sigma: float, windows: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure the relative error of ∂loss/∂U (2, windows): overlapping windows, then chunks.

    The second result is what the formula says of the gain that these weights have.
    """
    net, x, target = network(sigma, seed)
    net.backward(x, target)
    full, found = net.gradients[U].copy(), np.empty((2, len(windows)))
    own, by_gain = 2.0 ** np.mean(net.flow.gain_log2[0, STEPS // 6 :]), np.empty_like(found)
    for place, window in enumerate(windows):
        for scheme, every in enumerate((1, window)):
            net.backward(x, target, truncation=(every, window), flow=False)
            lost = np.linalg.norm(net.gradients[U] - full)
            found[scheme, place] = lost / np.linalg.norm(full)
            by_gain[scheme, place] = theory.truncation_error(own, STEPS, window, every)
    return found, by_gain


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("What truncation loses of ∂loss/∂U: windows at each step, and chunks")
    for colour, (sigma, gain, windows) in zip((BLUE, ORANGE), POINTS, strict=True):
        runs = [errors(sigma, windows, seed) for seed in SEEDS]
        measured, own = (np.array(part) for part in zip(*runs, strict=True))
        long = np.arange(1, 41)
        for scheme, (name, dash) in enumerate((("sliding", "-"), ("chunked", "--"))):
            curve = [theory.truncation_error(gain, STEPS, k, k if scheme else 1) for k in long]
            label = f"{name}, gain {gain:.3f}"
            panel.plot(long, curve, dash, color=colour, linewidth=1.2, label=label)
            panel.plot(windows, measured[:, scheme].mean(axis=0), "o", color=colour)
            for place, window in enumerate(windows):
                every = window if scheme else 1
                expected = theory.truncation_error(gain, STEPS, window, every)
                endless = theory.truncation_error(gain, 10**5, window, every)
                mean, error = mean_and_error(measured[:, scheme, place])
                by_own = float(own[:, scheme, place].mean())
                row = (f"{name}, K = {window}", f"{gain:.4f}", f"{endless:.4f}", f"{expected:.4f}",
                       f"{by_own:.4f}", f"{mean:.4f} ± {error:.4f}",
                       f"{100 * (mean / expected - 1):+.1f} %")  # fmt: skip
                rows.append(row)
    head = ("", "gain", "endless", f"{STEPS} steps", "by own gain", "measured", "off by")
    table(head, rows)
    panel.axhline(0.1, color=FAINT, linewidth=1)
    panel.set_yscale("log")
    panel.set_ylim(2e-3, 1.2)
    panel.set_xlabel("K, steps gone back")
    panel.set_ylabel("relative error")
    panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    panel.tick_params(colors=INK)
    panel.legend(frameon=False, loc="lower left")
    save(sheet, __file__)


if __name__ == "__main__":
    main()
