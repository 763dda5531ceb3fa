"""R8. The regularizer Ω keeps the size of gradients through time: Pascanu et al. 2013.

Temporal order, T = 50: 50 tanh units with 15 connections each, spectral radius 0.95, 20 rows a
step, SGD 0.01, clip 1, α = 2, arXiv:1211.5063 and its program RNN.py. Solved is the task where
under 1 % of 1000 rows are wrong.
"""

import numpy as np
import vegrad
from common import BLUE, ORANGE, SEEDS, picture, save, table
from recurrent_training import Sequences, clip, share_wrong, shown, spectral_radius, train
from vegrad.datasets import temporal_order

STEPS, T, UNITS, BATCH, RATE = 12_000, 50, 50, 20, 0.01
CONNECTIONS, RADIUS, DEVIATION = 15, 0.95, 0.01
LEAST = 1e-20  # a pair of steps counts if the later δ has at least this squared norm
ALPHA = 2.0
CASES = ((ALPHA, BLUE, "4200, radius 1.11"), (0.0, ORANGE, "6000, radius 1.32"))


def smart_tanh(network: vegrad.RNN, seed: int) -> None:
    """Draw the sparse weights of the 2013 program."""
    rng = np.random.default_rng([seed, 2013])
    for name, array in network.parameters.items():
        array[...] = DEVIATION * rng.standard_normal(array.shape) if "weight" in name else 0.0
    recurrent = network.parameters["rnn.weight_hh_l0"]
    for row in recurrent:
        row[rng.permutation(UNITS)[CONNECTIONS:]] = 0.0
    recurrent *= RADIUS / spectral_radius(network)


def through_time(network: vegrad.RNN, data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Return h and δ = ∂loss/∂h of each step (T, B, H), where the loss is of the last step."""
    w, u, b1, b2, v, c = (network.parameters[name] for name in PARAMETERS)
    inputs = data.x.astype(w.dtype) @ w.T + (b1 + b2)
    h = np.zeros((T, BATCH, UNITS), w.dtype)
    for t in range(T):
        h[t] = np.tanh(inputs[:, t] + (h[t - 1] @ u.T if t else 0))
    output = h[-1] @ v.T + c
    share = np.exp(output - output.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    share[np.arange(BATCH), data.y] -= 1
    delta = np.zeros_like(h)
    delta[-1] = share @ v / BATCH
    for t in range(T - 1, 0, -1):
        delta[t - 1] = (delta[t] * (1 - h[t] ** 2)) @ u
    return h, delta


PARAMETERS = (
    *(f"rnn.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
    "head.weight",
    "head.bias",
)


def add_omega(network: vegrad.RNN, data: Sequences) -> None:
    """Add α ∂Ω/∂U, with h and δ held, to the gradient of U."""
    h, delta = through_time(network, data)
    u = network.parameters["rnn.weight_hh_l0"]
    epsilon = (delta[1:] * (1 - h[1:] ** 2)).reshape(-1, UNITS)
    later = (delta[1:].reshape(-1, UNITS) ** 2).sum(axis=1)
    counts = later >= LEAST
    if not counts.any():
        return
    epsilon, later = epsilon[counts], later[counts, None]
    passed = epsilon @ u
    ratio = (passed**2).sum(axis=1, keepdims=True) / later
    slope = 4 * (ratio - 1) / later * passed / counts.sum()  # of the mean of (r - 1)²
    network.gradients["rnn.weight_hh_l0"][...] += ALPHA * (epsilon.T @ slope)


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture(f"Temporal order, T = {T}: sparse tanh, SGD {RATE:g}, clip 1")
    for alpha, colour, expected in CASES:
        courses, radii = [], []
        for seed in SEEDS:
            network = vegrad.RNN(6, UNITS, 4, cell="tanh", loss="cross_entropy", seed=seed)
            smart_tanh(network, seed)
            course = train(
                network,
                lambda rows, draw: temporal_order(rows, T, seed=draw),
                vegrad.SGD(RATE, clip=clip(1.0)),
                STEPS,
                batch=BATCH,
                seed=seed,
                figure=share_wrong,
                enough=0.01,
                every=100,
                added=add_omega if alpha else None,
            )
            courses.append(course)
            radii.append(spectral_radius(network))
            name = f"Ω, α = {alpha:g}" if alpha else "without"
            panel.plot(
                *np.transpose(course.looks), color=colour, label=name if seed == SEEDS[0] else None
            )
        found = ", ".join(map(shown, courses))
        rows.append((name, expected, found, " ".join(f"{radius:.2f}" for radius in radii)))
    table(("T = 50", "expected", "by seed", "radius"), rows)
    panel.set_xlabel("step")
    panel.set_ylabel("share of rows that are wrong")
    panel.set_ylim(0, 1)
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()
