"""An estimator taken apart: the perceptron in it, and what is around that."""

from __future__ import annotations

import warnings
from math import nan
from typing import cast

import numpy as np
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline

from vegrad.arrays.checks import Array
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.sklearn.estimators.bridge import Estimator
from vegrad.sklearn.estimators.perceptron import Perceptron

STILL = 1e-300  # a learning rate that changes no weight
DRAWN = 256  # rows of a fit whose weights are wanted as they begin


class Parts:
    """The perceptron in an estimator, and what is around it.

    Raises:
        TypeError, ValueError: there is none, or its loss is one that vegrad has not.
    """

    def __init__(self, estimator: object) -> None:
        if isinstance(estimator, type):
            raise TypeError(f"estimator is a class: write {estimator.__name__}(), which makes one")
        self.around = estimator if isinstance(estimator, TransformedTargetRegressor) else None
        inner = estimator
        if isinstance(inner, TransformedTargetRegressor):
            inner = getattr(inner, "regressor_", inner.regressor)
        self.pipeline = inner if isinstance(inner, Pipeline) else None
        last = inner.steps[-1][1] if isinstance(inner, Pipeline) else inner
        if not isinstance(last, MLPClassifier | MLPRegressor | Perceptron):
            hint = ": give its best_estimator_" if hasattr(last, "refit") else ""
            wanted = "an MLPClassifier, an MLPRegressor or a Pipeline that ends in one"
            raise TypeError(f"estimator must be {wanted}, not {type(last).__name__}{hint}")
        if getattr(last, "loss", None) == "poisson":
            raise ValueError('loss must be "squared_error": vegrad has no loss "poisson"')
        self.perceptron = cast(Estimator, last)
        self.prefix = "regressor__" * (self.around is not None)
        """The path of the perceptron's arguments for `set_params`."""
        if self.pipeline is not None:
            self.prefix += f"{self.pipeline.steps[-1][0]}__"
        self.fitted, self.own = hasattr(last, "coefs_"), isinstance(last, Perceptron)
        self.numeric = isinstance(last, MLPRegressor) or getattr(last, "numeric", False)

    def seen(self, X: object, y: object) -> object:
        """Return X as the perceptron is given it; the steps before it are fitted if need be."""
        if self.pipeline is None or len(self.pipeline) == 1:
            return X
        before = self.pipeline[:-1]
        return before.transform(X) if self.fitted else clone(before).fit_transform(X, y)

    def target(self, y: Array) -> Array:
        """Return y (N,) or (N, O) as the perceptron is given it."""
        around = self.around
        if around is None or (around.transformer is None and around.func is None):
            return y
        if around.transformer is None:
            return np.asarray(around.func(y))
        columns = y.reshape(len(y), -1)
        fitted = getattr(around, "transformer_", None) or clone(around.transformer).fit(columns)
        return np.asarray(fitted.transform(columns))

    def begun(self, x: Array, y: Array, seed: int) -> Estimator:
        """Return the perceptron as it is, or with the weights that its `fit` would begin with.

        Those are drawn before anything else: a fit that goes nowhere, on a few rows, has them.
        `seed` stands for a random_state of None.
        """
        if self.fitted:
            return self.perceptron
        rows = np.arange(min(len(x), DRAWN))
        if not self.numeric and y.ndim == 1:
            rows = np.union1d(rows, np.unique(y, return_index=True)[1])
        still = {"solver": "sgd", "learning_rate_init": STILL, "max_iter": 1, "warm_start": False}
        still |= {"early_stopping": False, "verbose": False}
        first = clone(self.perceptron)
        given = first.get_params()
        still |= {"on_finding": None} if self.own else {}
        still |= {"random_state": seed} if first.random_state is None else {}
        first.set_params(**still)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            first.fit(np.nan_to_num(x[rows], posinf=0, neginf=0), y[rows])
        return cast(Estimator, first.set_params(**given))

    def batch_size(self, rows: int) -> int:
        """Return the rows of a step, of so many."""
        given = self.perceptron.batch_size
        return min(200 if isinstance(given, str) else given, rows)

    def penalized(self, rows: int) -> float:
        """Return what alpha is divided by, on the mean of all steps: their rows."""
        rows = max(rows, 1)
        size = rows if self.perceptron.solver == "lbfgs" else self.batch_size(rows)
        whole, last = divmod(rows, size)
        return (whole + (last > 0)) / (whole / size + (1 / last if last else 0))

    def history(self) -> History | None:
        """Return the history of its training, if there is one.

        Scikit-learn's keep an epoch's mean loss, which stands for that of its steps, and refuse
        weights that are not finite, so that no gradient was: 1 stands for a norm.
        """
        losses = getattr(self.perceptron, "loss_curve_", ())
        if self.own or not losses:
            return getattr(self.perceptron, "history_", None)
        rows = round(self.perceptron.t_ / len(losses))
        history, steps = History(), -(-rows // self.batch_size(rows))
        for loss in losses:
            columns = np.full((len(STEPS), steps), nan)
            columns[STEPS.index("loss")], columns[STEPS.index("gradient_norm")] = loss, 1.0
            columns[STEPS.index("learning_rate")] = self.perceptron.learning_rate_init
            history.add_steps(columns)
            epoch = {"epoch_steps": steps, "epoch_loss": loss}
            layers = dict.fromkeys(LAYERS, [nan] * len(self.perceptron.coefs_))
            history.add_epoch(**dict.fromkeys(EPOCHS, nan) | epoch | layers)
        return history
