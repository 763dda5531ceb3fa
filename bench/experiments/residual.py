"""6. Skip connections without normalization explode: Zhang et al. 2019 (arXiv:1901.09321).

Blocks x + φ(W x), 128 wide. With the identity and σ_w = 1 the variance doubles in each, as in
x + W₂ relu(W₁ x) with He's weights; with relu itself it grows faster still, since the activations'
mean adds up. Then training 50 relu blocks with 1, 1/√L and 1/L in front of the branch, which here
is in the weights, so that a step of SGD is L (or L²) times as large as with a constant factor. For
branches without a mean, as the literature's, 1/√L is enough.
"""

import numpy as np
from common import BLUE, ORANGE, SEEDS, accuracy, digits, picture, save, table, train
from vegrad import MLP, theory

WIDTH, STEPS = 128, 400


def network(activation: str, init: str, blocks: int, seed: int, scale: float = 1.0) -> MLP:
    """Make a residual network whose branches are multiplied by `scale`."""
    net = MLP(
        [64] + [WIDTH] * (blocks + 1) + [10],
        activation=activation,
        init=init,
        loss="cross_entropy",
        residual=True,
        seed=seed,
    )
    for block in range(1, blocks + 1):  # relu(s W x) = s relu(W x)
        net.parameters[f"layers.{block}.weight"][...] *= scale
    return net


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows, curves = [], []
    for activation, init in (("identity", "lecun_normal"), ("relu", "he_normal")):
        grown, gained = [], []
        for seed in SEEDS:
            x, y = digits(seed)[0]
            net = network(activation, init, 20, seed)
            net.backward(x[:256], y[:256])
            expected = theory.expected_flow(net, x[:256])
            rms = np.log2(net.flow.activation_rms)
            grown.append(2 * (rms[20] - rms[0]))
            gained.append(net.flow.delta_log2[0] - net.flow.delta_log2[20])
        theirs = 2 * np.log2(expected.activation_rms[20] / expected.activation_rms[0])
        delta = expected.delta_log2[0] - expected.delta_log2[20]
        rows.append(
            (f"{activation}, variance", f"2^{theirs:.1f}", " ".join(f"2^{g:.1f}" for g in grown))
        )
        rows.append(
            (f"{activation}, ‖δ‖", f"2^{delta:.1f}", " ".join(f"2^{g:.1f}" for g in gained))
        )
        curves.append((activation, rms, np.log2(expected.activation_rms)))
    table(("20 blocks", "expected", "measured"), rows)
    print()
    rows = []
    for name, scale, rate, reference in (
        ("as they come", 1.0, 1e-2, "NaN"),
        ("1/√L", 50**-0.5, 1e-2, "1.00"),
        ("1/√L", 50**-0.5, 2e-3, ""),
        ("1/L", 1 / 50, 1e-2, ""),
    ):
        reached = []
        for seed in SEEDS:
            data = digits(seed)[0]
            net = network("relu", "he_normal", 50, seed, scale)
            with np.errstate(all="ignore"):
                losses = train(net, data, STEPS, rate, seed)
            lost = np.flatnonzero(~np.isfinite(losses))
            reached.append(
                f"NaN at step {lost[0] + 1}" if lost.size else f"{accuracy(net, data):.2f}"
            )
        rows.append((name, f"{rate:g}", ", ".join(reached), reference))
    table(("50 blocks", "rate", "accuracy", "PyTorch"), rows)
    sheet, panel = picture("Activations through 20 residual blocks")
    for (name, rms, expected), colour in zip(curves, (BLUE, ORANGE), strict=True):
        panel.plot(rms[:-1], "o", color=colour, markersize=4, label=f"{name}, measured")
        panel.plot(expected[:-1], color=colour, label="expected")
    panel.set_xlabel("block")
    panel.set_ylabel("log2 rms")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
