"""Three descents on the digits: vanishing, exploding, and the same held by a clip.

    python bench/experiments/descents.py

Prints the result of each for three seeds, and draws the first seed's descent into this folder. The
whole training set is one batch, so that every step sees the same loss landscape.
"""

from pathlib import Path

import numpy as np
import vegrad
from vegrad import datasets
from vegrad.clipping import GlobalNorm

RUNS = (  # name, activation, layers, learning rate, clip, steps
    ("vanishing", "sigmoid", 30, 0.02, None, 24),
    ("exploding", "tanh", 50, 2.0, None, 20),
    ("clipped", "tanh", 50, 2.0, 0.1, 20),
    ("clipped, longer", "tanh", 50, 2.0, 0.1, 400),
)


def train(activation, layers, rate, clip, steps, seed):
    """Train a network 64 wide from Glorot's initialization; return its history."""
    data = datasets.load("digits")
    x, labels = np.ascontiguousarray(data.x, np.float32), data.target("cross_entropy")
    order = np.random.default_rng(0).permutation(len(x))
    learn, hold = order[:1400], order[1400:]
    net = vegrad.MLP([64] * layers + [10], activation=activation, loss="cross_entropy", seed=seed)
    return net.fit(
        x[learn],
        labels[learn],
        validation=(x[hold], labels[hold]),
        epochs=steps,
        batch_size=1400,
        optimizer=vegrad.SGD(rate, clip=None if clip is None else GlobalNorm(clip)),
        seed=seed,
        progress=False,
        gauge_every=1,
    )


def main():
    """Train all, print the table and draw the pictures."""
    print("run              seed  first loss  largest   last  accuracy  findings")
    for name, activation, layers, rate, clip, steps in RUNS:
        for seed in range(3):
            history = train(activation, layers, rate, clip, steps, seed)
            loss, right = history.loss, history.validation_accuracy[-1]
            found = ", ".join(f"{f.kind} ({f.severity})" for f in history.findings)
            print(
                f"{name:<16} {seed:>4}  {loss[0]:>10.3f}  {loss.max():>7.3f}  {loss[-1]:>5.3f}"
                f"  {right:>8.3f}  {found or '–'}"
            )
            if seed == 0 and steps < 100:
                title = f"{layers} {activation} layers, SGD {rate:g}"
                title += "" if clip is None else f", joint norm clipped at {clip:g}"
                history.plot_descent(Path(__file__).with_name(f"descent-{name}.png"), title)


if __name__ == "__main__":
    main()
