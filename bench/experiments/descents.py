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
from vegrad.networks.descent import descend
from vegrad.reports.descent import draw

RUNS = (  # name, activation, layers, learning rate, clip, steps
    ("vanishing", "sigmoid", 30, 0.02, None, 24),
    ("exploding", "tanh", 50, 2.0, None, 20),
    ("clipped", "tanh", 50, 2.0, 0.1, 20),
    ("clipped, longer", "tanh", 50, 2.0, 0.1, 400),
)


DATA = datasets.load("digits")
X, LABELS = np.ascontiguousarray(DATA.x, np.float32), DATA.target("cross_entropy")
ORDER = np.random.default_rng(0).permutation(len(X))


def network(activation, layers, seed):
    """Make a network 64 wide with Glorot's initialization."""
    sizes = [64] * layers + [10]
    return vegrad.MLP(sizes, activation=activation, loss="cross_entropy", seed=seed)


def optimizer(rate, clip):
    """Make the optimizer of a run."""
    return vegrad.SGD(rate, clip=None if clip is None else GlobalNorm(clip))


def train(activation, layers, rate, clip, steps, seed):
    """Train a network; return its history."""
    x, labels, learn, hold = X, LABELS, ORDER[:1400], ORDER[1400:]
    return network(activation, layers, seed).fit(
        x[learn],
        labels[learn],
        validation=(x[hold], labels[hold]),
        epochs=steps,
        batch_size=1400,
        optimizer=optimizer(rate, clip),
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
                path = Path(__file__).with_name(f"descent-{name}.png")
                net, step = network(activation, layers, seed), optimizer(rate, clip)
                x, labels = X[ORDER[:1400]], LABELS[ORDER[:1400]]
                draw([(title, descend(net, x, labels, optimizer=step, steps=steps))], path)


if __name__ == "__main__":
    main()
