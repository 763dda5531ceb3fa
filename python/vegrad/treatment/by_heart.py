"""Tell what is learnt by heart: rows held out show it, where plain fits find nothing to learn."""

from __future__ import annotations

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.reports.values import count_of
from vegrad.treatment.goal import Goal, Plan
from vegrad.treatment.learnability import as_numbers, seems_independent
from vegrad.treatment.remedy import Treatment
from vegrad.treatment.trial import Trial

PARTS = 4  # of the rows, one of which is held out
MOST = 1000  # rows that are held out
ERRORS = 2.0  # standard errors, by which guessing must be beaten
GAIN = 0.05  # of the variance, likewise


def by_heart(treatment: Treatment, plan: Plan, steps: int) -> tuple[str, Trial] | None:
    """Train on some of the rows, and look at the others; None where they are learnt, too.

    That is only done where the target looks independent of x.

    Args:
        treatment: what has reached the goal, on all rows.
        plan: its goal, and the rows of a step.
        steps: those that it took.

    Returns:
        That nothing carries over, in a sentence, and the training.
    """
    data, goal = treatment.subject.data, plan.goal
    table = data.table(goal.kind)
    if table is None or not seems_independent(*table, goal.kind):
        return None
    order = np.random.default_rng(plan.seed).permutation(len(data))
    held, learnt = np.split(order, [min(len(order) // PARTS, MOST)])
    trial = Trial(treatment, held, goal, plan.batch_size, plan.steps, plan.seed, learnt=learnt)
    trial.train(steps)
    trial.look()
    told = _compared(trial, as_numbers(table[1], goal.kind), (held, learnt), goal)
    if told is None:
        return None
    rows = count_of(len(learnt), "row")
    told = f"learnt by heart: trained on {rows}, it gets {told}; the target looks independent of x"
    return told, trial


def _compared(trial: Trial, outputs: Array, rows: tuple[Array, Array], goal: Goal) -> str | None:
    """Say how good rows held out are beside a guess, None if they are better."""
    held, learnt = rows
    loss, accuracy = trial.points[-1][1:]
    if goal.kind == "mse":
        far = np.mean(np.square(outputs[held] - outputs[learnt].mean(axis=0)))
        # In the unit of the goal, which the network's own targets may not have.
        guess = goal.guess * float(far / np.mean(np.var(outputs, axis=0)))
        if loss < (1 - GAIN) * guess:
            return None
        return f"a loss of {loss:.3g} on {len(held)} others, the mean {guess:.3g}"
    most = outputs[learnt].mean(axis=0)
    if outputs.shape[1] == 1 or goal.kind != "cross_entropy":
        guess = float(np.mean((outputs[held] > 0.5) == (most > 0.5)))
    else:
        guess = float(np.mean(outputs[held].argmax(axis=1) == most.argmax()))
    if accuracy > guess + ERRORS * (guess * (1 - guess) / len(held)) ** 0.5:
        return None
    return f"{100 * accuracy:.0f} % of {len(held)} others right, guessing {100 * guess:.0f} %"
