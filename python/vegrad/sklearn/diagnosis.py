"""The diagnosis of scikit-learn's perceptrons."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from sklearn.base import clone

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.sklearn.parts import Parts
from vegrad.sklearn.subject import EstimatorSubject

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
    subject = EstimatorSubject.of(estimator, X, y, seed)
    rows = np.arange(len(subject.data))
    if len(rows) > MOST and np.isfinite(subject.data.x).all():
        rows = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST])
    sample, history = subject.data.take(rows), Parts(estimator).history()
    if history is not None and history.findings and not history.noted:
        start = EstimatorSubject.of(clone(estimator), X, y, seed)  # where the training came from
        for finding in start.diagnosed(*start.data.take(rows), theory=False).findings:
            history.note(finding, step=0)
    reading = subject.read(*sample, resamples=count, seed=seed)
    return Diagnosis.of(reading, history, EstimatorSubject.fitted).ignoring(ignored)
