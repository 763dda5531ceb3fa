"""3. Dynamical isometry trains 200 layers: Pennington et al. 2017 (arXiv:1711.04735).

200 layers of 128 units, 300 steps of plain SGD on digits. Orthogonal tanh with nearly linear
critical weights, (σ_w², σ_b²) = (1.05, 2.01e-5), beside Gaussian weights at the same point and the
usual choices. Accuracy on the training rows; the first layer's gradient before training.
"""

import numpy as np
from common import BLUE, FAINT, GREEN, ORANGE, RED, SEEDS, accuracy, digits, picture, save, table
from common import train as fit
from vegrad import MLP

DEPTH, WIDTH, STEPS, RATE = 200, 128, 300, 0.01
W, B = 1.05**0.5, 2.01e-5**0.5
CASES = (
    ("tanh, orthogonal, critical", "tanh", "orthogonal", True, "1.00"),
    ("tanh, Gaussian, critical", "tanh", "lecun_normal", True, "0.39"),
    ("ReLU, He", "relu", "he_normal", False, "≤ 0.2"),
    ("ReLU, orthogonal", "relu", "orthogonal", False, "≤ 0.2"),
    ("tanh, default of nn.Linear", "tanh", "torch", False, "≤ 0.2"),
    ("sigmoid, Glorot", "sigmoid", "glorot_uniform", False, "≤ 0.2"),
)


def network(activation: str, init: str, at_point: bool, seed: int) -> MLP:
    """Make a network; scale it to the critical point if asked."""
    more = {"sigma_w": 3**-0.5} if init == "torch" else {}
    init = "normal" if init == "torch" else init
    net = MLP(
        [64] + [WIDTH] * (DEPTH - 1) + [10],
        activation=activation,
        init=init,
        loss="cross_entropy",
        seed=seed,
        **more,
    )
    if at_point:
        rng = np.random.default_rng([seed, 1])
        for name, array in net.parameters.items():
            if name.endswith("weight"):
                array *= W
            else:
                array[...] = B * rng.standard_normal(array.shape)
    return net


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Loss of 200-layer networks")
    for (name, activation, init, at_point, reference), colour in zip(
        CASES, (GREEN, BLUE, ORANGE, "#e0a070", FAINT, RED), strict=True
    ):
        reached = []
        for seed in SEEDS:
            rows_, _ = digits(seed)
            net = network(activation, init, at_point, seed)
            net.backward(rows_[0][:64], rows_[1][:64])
            first = net.flow.gradient_log2[0] * np.log10(2)
            zero = not net.gradients["layers.0.weight"].any()
            losses = fit(net, rows_, STEPS, RATE, seed)
            reached.append(accuracy(net, rows_))
        row = (
            name,
            " ".join(f"{a:.2f}" for a in reached),
            reference,
            f"1e{first:+.1f}",
            "0.0" if zero else "there",
        )
        rows.append(row)
        smooth = np.convolve(losses, np.ones(15) / 15, "valid")
        panel.plot(smooth, color=colour, label=name)
    table(("200 layers", "accuracy", "PyTorch", "first gradient", "in float32"), rows)
    panel.set_xlabel("step")
    panel.set_ylabel("cross-entropy")
    panel.set_ylim(0, 3)
    panel.legend(frameon=False, fontsize=8)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
