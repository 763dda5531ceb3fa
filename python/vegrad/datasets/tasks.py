"""The tasks by which the memory of recurrent networks is measured, drawn anew for each seed.

A network that solves them carries something over most of the sequence: a gradient that vanishes on
its way back cannot teach it that. Values are as the sources have them, neither centred nor scaled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vegrad.arrays.checks import as_count
from vegrad.arrays.shown import shown
from vegrad.datasets.sequences import Sequences

SYMBOLS, DATA = 6, 4
"""Symbols of the temporal order task, and how many of them (the last) say nothing."""
FORMS = ("2015", "2013")
COPIED, ALPHABET = 10, 8
"""Number of symbols that the copy task gives to remember, and how many different ones there are."""


def temporal_order(rows: int, steps: int, *, seed: int | None = None) -> Sequences:
    """Draw the temporal order task: in which order were two symbols shown, long ago?

    Each step shows one of six symbols, one-hot. Two steps, p0 in [T/10, T/5) and p1 in
    [T/2, 3T/5), show A or B (symbols 0 and 1), v0 and v1; all others one of the symbols 2 to 5. The
    class is v0 + 2·v1. A guess is wrong in 3 of 4 rows and has the loss ln 4 = 1.386.

    Args:
        rows: B, from 1 on.
        steps: T, from 10 on.
        seed: of the draw; None takes a fresh one.

    Returns:
        x (B, T, 6), and y (B,): the classes AA, BA, AB and BB, in this order.

    Source: Hochreiter & Schmidhuber 1997; in this form Pascanu, Mikolov & Bengio 2013
    (arXiv:1211.5063) and their program tempOrder.py.
    """
    rows, steps = as_count("rows", rows, 1), as_count("steps", steps, 10)
    rng = np.random.default_rng(seed)
    every, tenth = np.arange(rows), steps // 10
    first = tenth + rng.integers(tenth, size=rows)
    second = steps // 2 + rng.integers(tenth, size=rows)
    shown = rng.integers(2, size=(2, rows))
    symbols = rng.integers(SYMBOLS - DATA, SYMBOLS, size=(rows, steps))
    symbols[every, first], symbols[every, second] = shown
    names = ("AA", "BA", "AB", "BB")
    x = np.eye(SYMBOLS)[symbols]
    return Sequences("temporal_order", x, shown[0] + 2 * shown[1], names)


def adding(rows: int, steps: int, *, form: str = "2015", seed: int | None = None) -> Sequences:
    """Draw the adding problem: the sum of the two numbers that were marked.

    The two forms differ in where the marks are and in the target:

    - "2015": T steps, the value in column 0 and the mark in column 1; one mark in each half; the
      target is the sum. The guess 1 has a mean square error of 1/6 = 0.167. Source: Le, Jaitly &
      Hinton 2015 (arXiv:1504.00941); Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464) and their
      program adding_problem.py.
    - "2013": each row has a length of its own, from T to 1.1·T; the mark is in column 0 and the
      value in column 1; with t the length of the row, marks are in [0, t/10) and [t/10, t/2); the
      target is half the sum. The guess 1/2 has a mean square error of 1/24 = 0.0417; solved is the
      task where fewer than 1 % of the rows have a squared error above 0.04. Source: Pascanu,
      Mikolov & Bengio 2013 (arXiv:1211.5063) and their program addition.py.

    Args:
        rows: B, from 1 on.
        steps: T, from 10 on.
        form: "2015" or "2013".
        seed: of the draw; None takes a fresh one.

    Returns:
        x (B, T, 2), values uniform in [0, 1), marks 1 in two steps and 0 elsewhere; y (B, 1). In
        the form of 2013, x has as many steps as the longest row, zeros after a row's end, and
        `lengths` (B,).
    """
    rows, steps = as_count("rows", rows, 1), as_count("steps", steps, 10)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {shown(form)}")
    rng = np.random.default_rng(seed)
    lengths = np.full(rows, steps)
    if form == "2013":
        lengths += rng.integers(max(steps // 10, 1), size=rows)
        begin = np.stack([np.zeros(rows, np.int64), lengths // 10])
        count = np.stack([lengths // 10, lengths // 2 - lengths // 10])
    else:
        begin = np.array([[0], [steps // 2]])
        count = np.array([[steps // 2], [steps - steps // 2]])
    marked = begin + rng.integers(count, size=(2, rows))
    values = rng.uniform(size=(rows, lengths.max()))
    values[np.arange(values.shape[1]) >= lengths[:, None]] = 0
    marks = np.zeros_like(values)
    every = np.arange(rows)
    marks[every, marked] = 1
    total = values[every, marked].sum(axis=0)[:, None]
    if form == "2015":
        return Sequences("adding", np.stack([values, marks], axis=2), total)
    return Sequences("adding", np.stack([marks, values], axis=2), total / 2, lengths=lengths)


def copy(rows: int, steps: int, *, seed: int | None = None) -> Sequences:
    """Draw the copy task: repeat ten symbols after T steps.

    Ten symbols of 1 to 8, T - 1 blanks (0), a marker (9) and ten blanks, one-hot: T + 20 steps. The
    target is blank (0) until ten steps before the end, where the symbols follow in their order.
    A network without memory, which gives blanks and then guesses, has a cross-entropy of
    10·ln 8/(T + 20).

    Args:
        rows: B, from 1 on.
        steps: T, from 1 on.
        seed: of the draw; None takes a fresh one.

    Returns:
        x (B, T + 20, 10), and y (B, T + 20): a label of 0 to 8 for each step.

    Source: Arjovsky, Shah & Bengio 2016 (arXiv:1511.06464) and their program memory_problem.py.
    """
    rows, steps = as_count("rows", rows, 1), as_count("steps", steps, 1)
    shown = np.random.default_rng(seed).integers(1, ALPHABET + 1, size=(rows, COPIED))
    symbols = np.zeros((rows, steps + 2 * COPIED), np.int64)
    target = np.zeros_like(symbols)
    symbols[:, :COPIED] = target[:, -COPIED:] = shown
    symbols[:, COPIED + steps - 1] = ALPHABET + 1
    labels = ("blank", *map(str, range(1, ALPHABET + 1)))
    return Sequences("copy", np.eye(ALPHABET + 2)[symbols], target, labels, targets="all")


TASKS: dict[str, Callable[..., Sequences]] = {
    "temporal_order": temporal_order,
    "adding": adding,
    "copy": copy,
}
"""The tasks by name: functions of rows, steps and seed."""
