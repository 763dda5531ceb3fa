"""Clipping and AdamW on NumPy arrays, in a training loop of your own.

vegrad's kernels work in place on the buffers that you have, one, a list or a dictionary of them:
NumPy arrays here, CPU tensors of PyTorch as well. The optimizer clips inside its step.

    pip install vegrad && python clip_and_step_on_numpy.py
"""

import numpy as np
import vegrad
from vegrad.clipping import GlobalNorm

rng = np.random.default_rng(0)
x = rng.standard_normal((512, 8))
target = np.sin(x.sum(axis=1, keepdims=True))
parameters = {
    "hidden.weight": rng.normal(0, 0.3, (64, 8)),
    "hidden.bias": np.zeros(64),
    "head.weight": rng.normal(0, 0.1, (1, 64)),
    "head.bias": np.zeros(1),
}


def loss_and_gradients(rows: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return the mean square error of some rows, and its gradients: backpropagation by hand."""
    h = np.tanh(x[rows] @ parameters["hidden.weight"].T + parameters["hidden.bias"])
    error = h @ parameters["head.weight"].T + parameters["head.bias"] - target[rows]
    delta = 2 * error / len(rows)
    below = (delta @ parameters["head.weight"]) * (1 - h**2)
    gradients = {
        "hidden.weight": below.T @ x[rows],
        "hidden.bias": below.sum(axis=0),
        "head.weight": delta.T @ h,
        "head.bias": delta.sum(axis=0),
    }
    return float(np.mean(error**2)), gradients


_, grads = loss_and_gradients(np.arange(512))
print(vegrad.measure(grads))  # norms, magnitudes, zeros, inf and nan, in one read

clipped = vegrad.clip_by_global_norm_(grads, 0.1)  # by itself, in place
print(f"\nclipped: norm {clipped.norm:.3g} → {vegrad.norm(grads):.3g}\n")

optimizer = vegrad.AdamW(3e-3, clip=GlobalNorm(1.0, nonfinite="skip"))
for step in range(601):
    loss, grads = loss_and_gradients(rng.choice(512, 64))
    done = optimizer.step(parameters, grads)  # clips in the same read, and leaves grads alone
    if step % 200 == 0:
        print(f"step {step}: loss {loss:.3f}, norm {done.norm:.3f}, factor {done.coefficient:.2f}")
