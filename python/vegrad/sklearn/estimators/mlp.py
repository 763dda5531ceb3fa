"""Estimators of scikit-learn whose networks are trained by vegrad's core."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from vegrad.arrays.checks import Array
from vegrad.sklearn.estimators.bridge import encoded
from vegrad.sklearn.estimators.perceptron import Perceptron

Function = Callable[..., Array]


class MLPClassifier(ClassifierMixin, Perceptron):
    """A perceptron for classes, as scikit-learn's but trained by vegrad's core.

    The arguments that scikit-learn's has mean the same: hidden_layer_sizes, activation ("logistic"
    or "sigmoid", and all of `vegrad.MLP`'s), solver ("adam" or "sgd"), alpha (which takes in the
    intercepts too), batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle,
    random_state (the weights begin as scikit-learn's do), tol, verbose, warm_start, momentum,
    nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon and
    n_iter_no_change. There is no solver="lbfgs" and no sample_weight; X is dense.

    Args:
        init: "scikit-learn", or an initialization of `vegrad.MLP`.
        norm: None, "layer" or "rms": normalize the hidden layers' pre-activations.
        residual: add a layer's input to its output where the widths agree.
        clip: the most that the gradients' joint norm may be; None for no clip.
        dtype: float32 or float64, of the network and its training.
        on_finding: what `fit` does if it finds that something is wrong, as `vegrad.MLP.fit`:
            "warn", "raise", "stop", a function, or None for silence.

    `fit` sets the attributes that scikit-learn's sets, `network_`, a `vegrad.MLP` in whose memory
    `coefs_` and `intercepts_` lie, and `history_`, a `vegrad.History`.

    Raises:
        TypeError, ValueError: by `fit`, for arguments out of range, sparse X, y of a single class,
            columns of X without numbers or values, and where the training leads to weights that are
            not finite.
    """

    def _encoded(self, y: Array, known: Array | None) -> tuple[Array, int, str]:
        kind = type_of_target(y)
        if kind not in ("binary", "multiclass", "multilabel-indicator"):
            check_classification_targets(y)
        if kind == "multilabel-indicator":
            target = np.asarray(getattr(y, "toarray", lambda: y)(), self.dtype)
            self.classes_ = np.arange(target.shape[1])
            return target, target.shape[1], "binary_cross_entropy"
        if known is not None:
            self.classes_ = np.unique(known)
        labels = encoded(y, self.classes_)
        if len(self.classes_) == 2:
            return labels.astype(self.dtype)[:, None], 1, "binary_cross_entropy"
        return labels, len(self.classes_), "cross_entropy"

    def partial_fit(self, X: object, y: object, classes: object = None) -> Self:
        """Train for one epoch, from where the last call left off.

        Args:
            X: (N, I).
            y: labels (N,), which need not be all there are.
            classes: all there are, at the first call.
        """
        if classes is None and not hasattr(self, "network_"):
            raise ValueError("classes must be given with the first partial_fit: all that y can be")
        return self._fit(X, y, classes, go_on=True)

    def _scored(self, output: Array, target: Array) -> float:
        labels = output.argmax(axis=1) if target.ndim == 1 else output > 0
        right = labels == target
        return float(np.mean(right if right.ndim == 1 else right.all(axis=1)))

    def predict(self, X: object) -> Array:
        """Return the likeliest class of each row, (N,); of several labels 0 or 1 each, (N, O)."""
        output = self._output(X)
        if self.out_activation_ == "softmax":
            labels: Array = self.classes_[output.argmax(axis=1)]
            return labels
        above = (output > 0).astype(np.intp)
        return self.classes_[above.ravel()] if len(self.classes_) == 2 > above.shape[1] else above

    def predict_proba(self, X: object) -> Array:
        """Return the probability of each class, (N, K); of several labels that of each."""
        return self._probable(X, softmax, expit)

    def predict_log_proba(self, X: object) -> Array:
        """Return the logarithms of `predict_proba`, exact where those are 0."""
        return self._probable(X, log_softmax, log_expit)

    def _probable(self, X: object, of_one: Function, of_each: Function) -> Array:
        output = self._output(X)
        if self.out_activation_ == "softmax":
            return of_one(output, axis=1)
        if output.shape[1] == 1 and len(self.classes_) == 2:
            return np.hstack([of_each(-output), of_each(output)])
        return of_each(output)

    def __sklearn_tags__(self) -> object:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(MultiOutputMixin, RegressorMixin, Perceptron):
    """A perceptron for numbers, as scikit-learn's but trained by vegrad's core.

    Arguments, attributes and errors are those of `MLPClassifier`. The loss is the mean square;
    there is no loss="poisson".
    """

    numeric: ClassVar = True

    def _encoded(self, y: Array, known: Array | None) -> tuple[Array, int, str]:
        target = np.asarray(y, self.dtype).reshape(len(y), -1)
        return target, target.shape[1], "mse"

    def partial_fit(self, X: object, y: object) -> Self:
        """Train for one epoch, from where the last call left off."""
        return self._fit(X, y, go_on=True)

    def _scored(self, output: Array, target: Array) -> float:
        return float(r2_score(target, output))

    def predict(self, X: object) -> Array:
        """Return what is expected of each row, (N,), or (N, O) of several numbers."""
        output = self._output(X)
        return output.ravel() if output.shape[1] == 1 else output
