"""8. What PyTorch's usual initializations do: tanh's gain 5/3, SELU, the default of nn.Linear."""

import math

import numpy as np
from common import BLUE, INK, ORANGE, SEEDS, digits, growth, mean_and_error, picture, save, table
from vegrad import MLP, theory

WIDTH, DEPTH, MIDDLE = 300, 60, slice(10, 50)
POINTS = (
    ("tanh, gain 5/3", "tanh", 5 / 3, 0.0),
    ("SELU, σ_w = 1", "selu", 1.0, 0.0),
    ("ReLU, default of nn.Linear", "relu", 1 / math.sqrt(3), 1 / math.sqrt(3 * WIDTH)),
)


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Size of the gradient, usual initializations")
    for colour, (name, activation, w, b) in zip((ORANGE, BLUE, INK), POINTS, strict=True):
        measured = []
        for seed in SEEDS:
            net = MLP(
                [64] + [WIDTH] * (DEPTH - 1) + [10],
                activation=activation,
                init="normal",
                sigma_w=w,
                sigma_b=b,
                loss="cross_entropy",
                seed=seed,
            )
            measured.append(growth(net, digits(seed)[0], MIDDLE))
        mean, error = mean_and_error(measured)
        finite = theory.gradient_log_moments(activation, w, b, WIDTH).mean
        chi = theory.chi(activation, w, b)
        row = (
            name,
            f"{chi:.4f}",
            f"{math.exp(finite):.4f}",
            f"{math.exp(mean):.4f} ± {math.exp(mean) * error:.4f}",
        )
        rows.append(row)
        panel.plot(np.arange(DEPTH), net.flow.delta_log2 * math.log10(2), color=colour, label=name)
    table(("χ₁", "theory", "at this width", "measured"), rows)
    panel.set_xlabel("layer")
    panel.set_ylabel("log10 ‖δ‖")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
