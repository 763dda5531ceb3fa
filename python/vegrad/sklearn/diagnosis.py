"""The diagnosis of scikit-learn's perceptrons."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import numpy as np
from sklearn.base import clone

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.sklearn.parts import Parts
from vegrad.sklearn.reading import renamed
from vegrad.sklearn.subject import EstimatorSubject
from vegrad.treatment.budget import BUDGET
from vegrad.treatment.goal import Plan, goal_for
from vegrad.treatment.retraining import explained

MOST = 4096  # rows of a pass


def diagnose(
    estimator: object,
    X: object,
    y: object,
    *,
    resamples: int = 4,
    seed: int = 0,
    ignore: Collection[str] = (),
) -> Diagnosis:
    """Judge the gradients of an estimator by one forward and backward pass.

    Args:
        estimator: an MLPClassifier or MLPRegressor, scikit-learn's or vegrad's, a Pipeline that
            ends in one, or a TransformedTargetRegressor of either. Once fitted it is judged with
            the weights that it has; before, with those that its `fit` would begin with. It stays as
            it is.
        X: the inputs (N, I), as for its `fit`; up to 4096 rows drawn from them are run.
        y: the labels or numbers, as for its `fit`.
        resamples: further passes, which tell how far the gains depend on the rows.
        seed: of the draw of rows, and of weights where random_state is None.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.

    Raises:
        TypeError: estimator is none of these.
        ValueError: y has one class only, or columns of X have no numbers or no values; NaN and
            infinity elsewhere in X are a finding.
    """
    count, ignored = as_count("resamples", resamples), as_ignored(ignore)
    subject, found = EstimatorSubject.of(estimator, X, y, seed), Parts(estimator)
    rows = np.arange(len(subject.data))
    if len(rows) > MOST and np.isfinite(subject.data.x).all():
        rows = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST])
    sample, history, start = subject.data.take(rows), found.history(), None
    if found.fitted and np.isfinite(sample[0]).all():
        start = _begun(estimator, X, y, seed)  # where the training came from
        subject.begun_log2 = _sizes_log2(start)
        if history is not None and history.findings and not history.noted:
            for finding in start.diagnosed(*start.data.take(rows), theory=False).findings:
                history.note(finding, step=0)
    reading = subject.read(*sample, resamples=count, seed=seed)
    told = Diagnosis.of(reading, history, EstimatorSubject.fitted)
    if start is not None:
        told = explained(told, start, _plan(found, start, seed, history))
    return told.ignoring(ignored)


def _begun(estimator: object, X: object, y: object, seed: int) -> EstimatorSubject:
    """Return the subject of an estimator as it was before its fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which was said of the fitted one
        return EstimatorSubject.of(clone(estimator), X, y, seed)


def _sizes_log2(start: EstimatorSubject) -> dict[str, float]:
    """Return log2 of the root mean square of each matrix of weights, by name."""
    with np.errstate(divide="ignore"):
        return {
            renamed(name): float(np.log2(np.square(weight, dtype=np.float64).mean()) / 2)
            for name, weight in start.network.parameters.items()
            if weight.ndim > 1
        }


def _plan(found: Parts, start: EstimatorSubject, seed: int, history: History | None) -> Plan:
    """Return the steps that a fit has taken, and what is to be reached by others."""
    data, size = start.data, found.batch_size(len(start.data))
    steps = found.perceptron.n_iter_ * -(-len(data) // size)
    if history is not None:  # of all calls of a warm or partial fit
        steps = history.steps
    goal = goal_for(start.network.config["loss"], data.target, None)
    return Plan(goal, steps, size, seed, BUDGET)
