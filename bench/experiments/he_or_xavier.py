"""4. He's weights train 30 ReLU layers, Glorot's do not: He et al. 2015 (arXiv:1502.01852).

128 wide, 800 steps of plain SGD on digits: accuracy on the training rows.
"""

import numpy as np
from common import BLUE, ORANGE, SEEDS, accuracy, digits, picture, save, table, train
from vegrad import MLP, theory

DEPTH, WIDTH, STEPS, RATE = 30, 128, 800, 0.01


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Loss of 30 ReLU layers")
    for init, reference, colour in (("he_normal", "1.00", BLUE), ("glorot_normal", "0.18", ORANGE)):
        reached = []
        for seed in SEEDS:
            data, _ = digits(seed)
            net = MLP(
                [64] + [WIDTH] * (DEPTH - 1) + [10],
                activation="relu",
                init=init,
                loss="cross_entropy",
                seed=seed,
            )
            net.backward(data[0][:64], data[1][:64])
            first = net.flow.chain_log10
            expected = theory.expected_flow(net, data[0][:64]).delta_log2[0] * np.log10(2)
            losses = train(net, data, STEPS, RATE, seed)
            reached.append(accuracy(net, data))
        row = (
            init,
            f"{expected:.2f}",
            f"{first:.2f}",
            " ".join(f"{a:.2f}" for a in reached),
            reference,
        )
        rows.append(row)
        panel.plot(losses, color=colour, label=init, linewidth=0.9)
    head = ("30 ReLU layers", "log10 ‖δ_1‖/‖δ_L‖, theory", "measured", "accuracy", "PyTorch")
    table(head, rows)
    panel.set_xlabel("step")
    panel.set_ylabel("cross-entropy")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
