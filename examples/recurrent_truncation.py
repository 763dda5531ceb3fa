"""How far back must a gradient go through time? Measure it, and train with what is enough.

A gradient that goes back through 120 steps is a product of 120 factors. If each is below 1, the
steps far back add next to nothing: a shorter window gives nearly the same gradient for less work.

    pip install "vegrad[cli]" && python recurrent_truncation.py
"""

import numpy as np
import vegrad

ROWS, STEPS, HIDDEN = 64, 120, 32

# To be learnt: at each step the mean of the last eight inputs.
rng = np.random.default_rng(0)
x = rng.standard_normal((ROWS, STEPS, 1)).astype(np.float32)
sums = np.cumsum(np.pad(x, ((0, 0), (8, 0), (0, 0))), axis=1)
target = (sums[:, 8:] - sums[:, :-8]) / 8


def make_network() -> vegrad.RNN:
    """Return a GRU whose loss enters at every step."""
    return vegrad.RNN(1, HIDDEN, 1, cell="gru", targets="all", loss="mse", seed=0)


network = make_network()
network.backward(x, target)
print(network.flow)  # how much of the gradient a step back leaves, and how far it reaches

found = vegrad.truncation(network, x, target, tolerance=0.05)
print(f"\n{found}\n")
found.plot("truncation.png")

# The window goes into `backward` and `fit` as it is. A step is then taken after each window: in as
# many passes over the data there are many more steps.
for name, window in (("all steps", None), ("the window", found.window)):
    network = make_network()
    history = network.fit(
        x,
        target,
        optimizer=vegrad.Adam(1e-2, clip=vegrad.clipping.GlobalNorm(1.0)),
        epochs=5,
        batch_size=16,
        truncation=window,
        seed=0,
        progress=False,
        on_finding=None,
    )
    print(f"{name:<11} {history.steps:>4} steps: loss {network.loss(x, target):.4f}")
