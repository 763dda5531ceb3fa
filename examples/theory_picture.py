"""What mean-field theory predicts of a deep network, beside what one pass measures.

`vegrad.theory.chi` is the factor of the squared gradient from a layer to the one below, in a wide
network whose weights have the variance σ_w²/fan-in. Below 1 gradients vanish, above 1 they explode;
the critical point is where it is 1.

    pip install "vegrad[cli]" && python theory_picture.py
"""

import numpy as np
import vegrad
from matplotlib import pyplot as plt
from vegrad import theory

SIGMAS = np.linspace(0.6, 2.6, 21)
MEASURED = np.linspace(0.7, 2.5, 7)
DEPTH, WIDTH = 30, 200

x = np.random.default_rng(0).standard_normal((64, WIDTH))
target = np.zeros((64, WIDTH))


def measured_gain(activation: str, sigma_w: float) -> float:
    """Return the gain of a layer in the lower half of a network, away from the output."""
    network = vegrad.MLP(
        [WIDTH] * (DEPTH + 1), activation=activation, init="normal", sigma_w=sigma_w, seed=0
    )
    network.backward(x, target)
    return float(2 ** network.flow.gain_log2[5 : DEPTH // 2].mean())


figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
for activation, colour in (("tanh", "C0"), ("relu", "C1"), ("sigmoid", "C2")):
    expected = [theory.chi(activation, sigma, 0.0) ** 0.5 for sigma in SIGMAS]
    axes.plot(SIGMAS, expected, color=colour, label=f"{activation}, theory")
    gains = [measured_gain(activation, sigma) for sigma in MEASURED]
    axes.plot(MEASURED, gains, "o", color=colour, label="measured")
    point = theory.critical_point(activation, 0.0)
    print(f"{activation:<8} critical at σ_w = {point.sigma_w:.4g}")
axes.axhline(1, color="black", linewidth=0.8)
axes.set(
    xlabel="σ_w", ylabel="gain of a layer", title="Below 1 gradients vanish, above they explode"
)
axes.legend(ncols=3, frameon=False)
figure.savefig("theory.png", dpi=120)
print("picture: theory.png")
