"""Check whether the data can be learnt at all, for when no change of a network helps."""

from __future__ import annotations

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.treatment.goal import Goal

ROWS = 1000  # at most, that are compared with each other
DEVIATIONS = 3.0  # of chance, above which a fit counts as better than guessing
RIDGE = 1e-3  # of the mean square of the columns


def about_data(
    x: Array, target: Array, goal: Goal, *, quick: bool = False, healthy: bool = True
) -> tuple[str, ...]:
    """Say what is wrong with the data or, if they can be learnt, that they are not to blame.

    Args:
        x: inputs (N, I), finite.
        target: as the network takes it.
        goal: with its kind of loss.
        quick: say only what rules out learning for certain, and else nothing.
        healthy: True if nothing is wrong with the network, so that it may only be too small.
    """
    if len(x) > 1 and not np.ptp(x, axis=0).any():
        return ("x is the same in every row: no network can tell the rows apart",)
    outputs = _outputs(target, goal.kind)
    if len(x) > 1 and not np.ptp(outputs, axis=0).any():
        return ("the target is the same in every row: there is nothing to learn",)
    if quick:
        return ()
    return (_compared(x.astype(np.float64), outputs, goal, healthy=healthy),)


def _outputs(target: Array, kind: str) -> Array:
    """Return targets as numbers (N, O); labels have a column each."""
    if kind == "cross_entropy":
        return np.eye(int(target.max()) + 1)[target]
    return target.astype(np.float64).reshape(len(target), -1)


def _compared(x: Array, outputs: Array, goal: Goal, *, healthy: bool) -> str:
    """Compare two fits that need no gradient, on rows that they have not seen."""
    order = np.random.default_rng(0).permutation(len(x))[:ROWS]
    held = max(1, len(order) // 4)
    if len(order) < 20:
        return f"{len(order)} rows are too few to say whether the data can be learnt"
    seen, new = order[held:], order[:held]
    columns = np.ptp(x[seen], axis=0) > 0
    z = (x[:, columns] - x[seen][:, columns].mean(axis=0)) / x[seen][:, columns].std(axis=0)
    centre = outputs[seen].mean(axis=0)
    gram = z[seen].T @ z[seen] + RIDGE * len(seen) * np.eye(z.shape[1])
    linear = z[new] @ np.linalg.solve(gram, z[seen].T @ (outputs[seen] - centre)) + centre
    apart = np.square(z[new]).sum(axis=1)[:, None] + np.square(z[seen]).sum(axis=1)
    nearest = outputs[seen][np.argmin(apart - 2.0 * z[new] @ z[seen].T, axis=1)]
    scores = [_score(fit, outputs[new], goal.kind) for fit in (linear, nearest)]
    guess = _score(np.broadcast_to(centre, linear.shape), outputs[new], goal.kind)
    best, name = max(zip(scores, ("a linear fit", "the nearest row"), strict=True))
    unit = "of the variance" if goal.kind == "mse" else "right"
    chance = np.sqrt(max(guess * (1.0 - guess), 0.25 / held) / held)
    if goal.kind == "mse":
        chance = 1.0 / np.sqrt(held)
    figures = f"{name} gets {100 * best:.0f} % {unit} of {held} rows not seen"
    if best <= guess + DEVIATIONS * chance:
        return f"the target looks independent of x: {figures}, guessing {100 * max(guess, 0):.0f} %"
    then = "give the network more width, or more steps"
    return f"the data can be learnt ({figures}){f': {then}' if healthy else ''}"


def _score(fit: Array, outputs: Array, kind: str) -> float:
    """Return the share of labels that are right, or of the variance that is explained."""
    if kind == "mse":
        rest = float(np.mean(np.square(outputs - fit)))
        return 1.0 - rest / max(float(np.mean(np.var(outputs, axis=0))), 1e-300)
    if kind == "cross_entropy":
        return float(np.mean(fit.argmax(axis=1) == outputs.argmax(axis=1)))
    return float(np.mean((fit > 0.5) == (outputs > 0.5)))
