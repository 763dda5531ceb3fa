"""5. At finite width the gradient is log-normal: Hanin & Nica 2020 (arXiv:1812.05994).

He ReLU, 100 wide: ln ‖δ‖² over 20 layers, one row, 600 networks, beside the exact sums.
"""

import numpy as np
from common import BLUE, ORANGE, picture, save, table
from vegrad import MLP, theory

WIDTH, LAYERS, NETWORKS = 100, 20, 600


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rng, seen = np.random.default_rng(1), []
    for seed in range(NETWORKS):
        net = MLP(
            [64] + [WIDTH] * (LAYERS + 1) + [10], activation="relu", init="he_normal", seed=seed
        )
        # A target so large that the loss's gradient does not depend on the weights.
        net.backward(rng.standard_normal((1, 64)), 1e6 * rng.standard_normal((1, 10)))
        seen.append(2 * np.log(2) * net.flow.gain_log2[:LAYERS].sum())
    logs = np.array(seen)
    mean, variance = theory.gradient_log_moments("relu", 2**0.5, 0.0, WIDTH)
    errors = logs.std() / NETWORKS**0.5, logs.var() * (2 / NETWORKS) ** 0.5
    table(
        ("over 20 layers", "theory", "measured", "PyTorch"),
        [
            ("E ln", f"{LAYERS * mean:.3f}", f"{logs.mean():.3f} ± {errors[0]:.3f}", "-0.528"),
            ("Var ln", f"{LAYERS * variance:.3f}", f"{logs.var():.3f} ± {errors[1]:.3f}", "1.049"),
            ("ln of the mean", "0", f"{np.log(np.exp(logs).mean()):.3f}", ""),
        ],
    )
    sheet, panel = picture("ln ‖δ‖² lost over 20 ReLU layers, in 600 networks")
    panel.hist(logs, 40, density=True, color=BLUE, alpha=0.6, label="measured")
    at = np.linspace(-4.5, 3.5, 200)
    centre, square = LAYERS * mean, LAYERS * variance
    normal = np.exp(-((at - centre) ** 2) / (2 * square)) / np.sqrt(2 * np.pi * square)
    panel.plot(at, normal, color=ORANGE, label="theory")
    panel.set_xlabel("ln ‖δ_1‖²/‖δ_21‖²")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
