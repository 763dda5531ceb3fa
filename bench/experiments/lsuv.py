"""7. LSUV: Mishkin & Matas 2016 (arXiv:1511.06422).

30 layers of 128 units, 400 steps of plain SGD on digits: the default of nn.Linear, then the same
with orthogonal weights scaled to unit variance, and the gain that theory gives to that.
"""

import numpy as np
from common import BLUE, FAINT, SEEDS, accuracy, digits, picture, save, table, train
from vegrad import MLP, lsuv_, theory

DEPTH, WIDTH, STEPS, RATE = 30, 128, 400, 0.02
REFERENCE = {"relu": "≥ 0.95", "tanh": "≥ 0.95", "elu": "≥ 0.95", "sigmoid": "0.10"}


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows, bars = [], []
    for activation, reference in REFERENCE.items():
        plain, scaled, gains = [], [], []
        for seed in SEEDS:
            data = digits(seed)[0]
            sizes = [64] + [WIDTH] * (DEPTH - 1) + [10]
            options = {"activation": activation, "loss": "cross_entropy", "seed": seed}
            net = MLP(sizes, init="normal", sigma_w=3**-0.5, **options)
            train(net, data, STEPS, RATE, seed)
            plain.append(accuracy(net, data))
            net = MLP(sizes, init="lsuv", **options)
            lsuv_(net, data[0][:256])
            net.backward(data[0][:256], data[1][:256])
            gains.append(2 ** (2 * np.mean(net.flow.gain_log2[3:-1])))
            train(net, data, STEPS, RATE, seed)
            scaled.append(accuracy(net, data))
        chi = theory.normalized_chi(activation)
        row = (
            activation,
            f"{chi:.3f}",
            f"{np.mean(gains):.3f}",
            " ".join(f"{a:.2f}" for a in plain),
            " ".join(f"{a:.2f}" for a in scaled),
            reference,
        )
        rows.append(row)
        bars.append((np.mean(plain), np.mean(scaled)))
    table(("30 layers", "χ, theory", "measured", "before", "with LSUV", "PyTorch"), rows)
    sheet, panel = picture("30 layers after 400 steps, without and with LSUV")
    places = np.arange(len(bars))
    panel.bar(places - 0.2, [b[0] for b in bars], 0.38, color=FAINT, label="default of nn.Linear")
    panel.bar(places + 0.2, [b[1] for b in bars], 0.38, color=BLUE, label="LSUV")
    panel.set_xticks(places, list(REFERENCE))
    panel.set_ylabel("accuracy")
    panel.set_ylim(0, 1.15)
    panel.legend(frameon=False, ncols=2)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
