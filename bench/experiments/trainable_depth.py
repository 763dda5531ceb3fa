"""2. Networks train to about six depth scales: Schoenholz et al. 2017 (arXiv:1611.01232).

tanh, 128 wide, σ_b² = 0.05, 400 steps of plain SGD at 0.01 on digits: accuracy on unseen rows.
"""

import numpy as np
from common import ORANGE, SEEDS, accuracy, digits, picture, save, table, train
from vegrad import MLP, theory

WIDTH, BIAS, STEPS, RATE = 128, 0.05**0.5, 400, 0.01
DEPTHS = (10, 20, 40, 80)
SQUARES = (1.0, 1.3, 1.761, 2.5)
REFERENCE = {(1.0, 10): 0.95, (1.0, 20): 0.91, (1.0, 40): 0.22, (1.761, 80): 0.92}


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows, seen = [], np.zeros((len(SQUARES), len(DEPTHS)))
    for i, square in enumerate(SQUARES):
        scales = theory.depth_scales("tanh", square**0.5, BIAS)
        reach = 6 * min(abs(scales.gradient), abs(scales.correlation))
        for j, depth in enumerate(DEPTHS):
            reached = []
            for seed in SEEDS:
                train_rows, test_rows = digits(seed)
                net = MLP(
                    [64] + [WIDTH] * (depth - 1) + [10],
                    activation="tanh",
                    init="normal",
                    sigma_w=square**0.5,
                    sigma_b=BIAS,
                    loss="cross_entropy",
                    seed=seed,
                )
                train(net, train_rows, STEPS, RATE, seed)
                reached.append(accuracy(net, test_rows))
            seen[i, j] = np.mean(reached)
            reference = REFERENCE.get((square, depth))
            row = (
                f"{square:g}",
                depth,
                f"{reach:.0f}" if reach < 1e4 else "∞",
                " ".join(f"{a:.2f}" for a in reached),
                "" if reference is None else f"{reference:.2f}",
            )
            rows.append(row)
    table(("σ_w²", "depth", "6 ξ", "accuracy", "PyTorch"), rows)
    sheet, panel = picture("Accuracy after 400 steps, and six depth scales")
    squares = np.linspace(0.9, 2.7, 120)
    scales = [theory.depth_scales("tanh", s**0.5, BIAS) for s in squares]
    reach = [6 * min(abs(s.gradient), abs(s.correlation)) for s in scales]
    panel.semilogy(squares, reach, color=ORANGE, label="6 ξ")
    w, d = np.meshgrid(SQUARES, DEPTHS, indexing="ij")
    points = panel.scatter(w, d, c=seen, s=160, cmap="viridis", vmin=0.1, vmax=1, zorder=3)
    for x, y, value in zip(w.flat, d.flat, seen.flat, strict=True):
        panel.annotate(f"{value:.2f}", (x, y), (9, 6), textcoords="offset points", fontsize=9)
    sheet.colorbar(points, label="accuracy")
    panel.set_ylim(7, 300)
    panel.set_xlabel("σ_w²")
    panel.set_ylabel("layers")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
