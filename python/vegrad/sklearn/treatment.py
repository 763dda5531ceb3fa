"""The cure of scikit-learn's perceptrons."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from sklearn.base import clone

from vegrad.reports.values import count_of
from vegrad.sklearn.own_fit import Short, short_of
from vegrad.sklearn.parts import Parts
from vegrad.sklearn.subject import EstimatorSubject
from vegrad.treatment.budget import BUDGET
from vegrad.treatment.goal import Plan, check_goal, check_lengths, goal_for
from vegrad.treatment.learnability import attainable
from vegrad.treatment.outcome import Outcome
from vegrad.treatment.progress import Listener, listener
from vegrad.treatment.search import Search


@dataclass(frozen=True, kw_only=True, repr=False)
class EstimatorCure(Outcome):
    """The outcome for an estimator; `estimator` is the changed one, before its fit."""

    estimator: object


def cure(
    estimator: object,
    X: object,
    y: object,
    *,
    goal: float | None = None,
    steps: int = 500,
    seed: int = 0,
    budget: float = BUDGET,
    progress: bool | Listener = False,
) -> EstimatorCure:
    """Find the smallest change that makes an estimator train, and prove it.

    As `vegrad.cure`, with the changes that scikit-learn has: a StandardScaler before the estimator
    or over y, `activation=`, `learning_rate_init=`, `alpha=`; vegrad's estimators have `init=`,
    `norm=`, `residual=` and `clip=` too. Trials are trainings by vegrad's core from the weights
    that `fit` would begin with (or, with warm_start=True, go on from), by the same steps. If one
    reaches the goal, a copy of the estimator is fitted for as many epochs: where `max_iter` or
    `tol` end that before the goal, this is said in place of a cure.

    Args:
        estimator: as for `diagnose`, with solver "adam" or "sgd"; it stays as it is.
        X: the inputs (N, I), as for its `fit`.
        y: the labels or numbers, as for its `fit`.
        goal: an accuracy, at least; for numbers a mean square, at most. By default 80 % of the way
            from the best constant output to perfection, for numbers half of it. Where several
            columns of y are scaled, each counts for as much, in units of their mean square.
        steps: of one training; their rows are the estimator's batch_size.
        seed: of the order of rows.
        budget: the most that may be spent, in trainings of `steps`.
        progress: True for a line on standard error; or a function, as for `vegrad.cure`.

    Raises:
        TypeError, ValueError: as `diagnose`; a goal or budget out of range, solver "lbfgs".
    """
    found = Parts(estimator)
    if found.perceptron.solver == "lbfgs":
        raise ValueError('solver must be "adam" or "sgd": "lbfgs" takes no steps to be tried')
    tell = listener(progress)
    goes_on = found.fitted and found.perceptron.warm_start and found.around is None
    given = copy.deepcopy(estimator) if goes_on else clone(estimator)
    subject = EstimatorSubject.of(given, X, y, seed)
    kind, data = subject.network.config["loss"], subject.data
    steps, size = check_lengths(steps, found.batch_size(len(data)), budget)
    check_goal(goal, kind)
    aim = goal_for(kind, data.target, None if goal is None else float(goal))
    if goal is None:
        aim = attainable(data.x, data.target, aim)
    plan = Plan(aim, steps, size, seed, budget)
    if not np.isfinite(data.x).all():
        before = subject.diagnosed(data.x, data.target, theory=True)
        why = "no change of the estimator makes up for values that are not finite"
        return EstimatorCure.without_a_trial(before, plan, why, estimator=subject.estimator)
    search = Search(subject, plan, tell=tell)
    outcome, treatment = search.run()
    treated = treatment.subject
    assert isinstance(treated, EstimatorSubject)
    cured = EstimatorCure(**vars(outcome), estimator=treated.estimator)
    if not outcome.reached or outcome.by_heart or goes_on:
        return cured
    taken = search.budget.sick.history.steps if outcome.proof is None else outcome.proof.steps
    short = short_of(treated.estimator, (X, y), aim, taken, seed)
    return cured if short is None else _ending_short(cured, short, taken)


def _ending_short(found: EstimatorCure, short: Short, taken: int) -> EstimatorCure:
    """Return the outcome where the estimator's own settings end its `fit` before the goal."""
    change = next((one.change for one in found.attempts if one.accepted), "")
    ends = f"fit ends after {count_of(short.epochs, 'epoch')}, by {short.words}"
    summary = f"improved, but {ends}, short of {found.goal}: {change}"
    if not change:
        summary = f"not cured: {ends}, short of {found.goal}"
    rows = f"{count_of(taken, 'step')} of {count_of(found.batch_size, 'row')}"
    to_change = "raise max_iter" if "max_iter" in short.settings else "lower tol"
    advice = f"the estimator reaches {found.goal} in {rows}: {to_change}, so that fit gets there"
    return replace(found, reached=False, summary=summary, about=(*found.about, advice))
