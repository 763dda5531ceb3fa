"""1. Gradients decay as exp(-l/ξ): Schoenholz et al. 2017 (arXiv:1611.01232).

tanh, 300 wide, 60 layers, σ_b² = 0.05: the slope of ln ‖δ‖² by the layer beside ln χ₁.
"""

import numpy as np
from common import BLUE, INK, ORANGE, SEEDS, digits, growth, mean_and_error, picture, save, table
from vegrad import MLP, theory

WIDTH, DEPTH, BIAS = 300, 60, 0.05**0.5
POINTS = (
    ("tanh", 1.0, BIAS, -0.2820),
    ("tanh", 1.3, BIAS, -0.1323),
    ("tanh", 1.761, BIAS, -0.0097),
    ("tanh", 2.5, BIAS, 0.1163),
    ("sigmoid", 1.0, 0.0, -2.893),
)
MIDDLE = slice(10, 50)  # layers where q has reached q* and that are far from the loss


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows, drawn = [], []
    sheet, panel = picture("Size of the gradient in 60 tanh layers, and exp(-l/ξ)")
    for colour, (activation, square, bias, reference) in enumerate(POINTS):
        w, measured = square**0.5, []
        for seed in SEEDS:
            net = MLP(
                [64] + [WIDTH] * (DEPTH - 1) + [10],
                activation=activation,
                init="normal",
                sigma_w=w,
                sigma_b=bias,
                loss="cross_entropy",
                seed=seed,
            )
            measured.append(growth(net, digits(seed)[0], MIDDLE))
        wide = np.log(theory.chi(activation, w, bias))
        finite = theory.gradient_log_moments(activation, w, bias, WIDTH).mean
        mean, error = mean_and_error(measured)
        row = (
            f"{activation}, σ_w² = {square:g}",
            f"{wide:.4f}",
            f"{finite:.4f}",
            f"{mean:.4f} ± {error:.4f}",
            f"{reference:.4f}",
        )
        rows.append(row)
        if activation == "tanh":
            drawn.append(square)
            layers, size = np.arange(DEPTH), net.flow.delta_log2 * np.log10(2)
            shade = (BLUE, "#56a0cf", INK, ORANGE)[colour]
            panel.plot(layers, size, color=shade, label=f"σ_w² = {square:g}")
            line = size[MIDDLE.stop] + 0.5 * wide / np.log(10) * (MIDDLE.stop - layers)
            panel.plot(layers, line, "--", color=shade, linewidth=1)
    table(("ln χ₁", "theory", "at this width", "measured", "PyTorch"), rows)
    panel.set_xlabel("layer")
    panel.set_ylabel("log10 ‖δ‖")
    panel.legend(frameon=False, ncols=2)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
