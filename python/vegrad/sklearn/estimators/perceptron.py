"""The base of both estimators: their arguments, and a training by vegrad's core."""

from __future__ import annotations

import warnings
from itertools import pairwise
from math import inf, sqrt
from typing import ClassVar, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data

from vegrad.arrays.checks import Array, as_count, refuse_masked
from vegrad.diagnosis.history import History
from vegrad.networks.rows import Rows
from vegrad.networks.training import Run
from vegrad.optim import Optimizer
from vegrad.sklearn.estimators.arguments import OWN, Arguments
from vegrad.sklearn.estimators.bridge import OUTPUT, new_network, optimizer_of
from vegrad.sklearn.estimators.stopping import Stopping
from vegrad.sklearn.tables import check_table, names_of, warn_of_copies

FEW = 5  # rows, from which on a row's output is the same to the bit, whatever is beside it


class Perceptron(Arguments):
    """The training that both estimators have."""

    numeric: ClassVar = False
    """True if targets are numbers."""

    def fit(self, X: object, y: object) -> Self:
        """Train on X (N, I) and y until it gets no better, or for `max_iter` epochs."""
        return self._fit(X, y, go_on=False)

    @property
    def coefs_(self) -> list[Array]:
        """The weights of each layer, (inputs, outputs), in the network's own memory."""
        return [one.T for name, one in self.network_.parameters.items() if "weight" in name]

    @property
    def intercepts_(self) -> list[Array]:
        """The biases of each layer, in the network's own memory."""
        return [one for name, one in self.network_.parameters.items() if "bias" in name]

    def _encoded(self, y: Array, known: Array | None) -> tuple[Array, int, str]:
        """Return the target as the network takes it, its outputs and its loss.

        `known` has all labels; it is None where those of an earlier fit hold.
        """
        raise NotImplementedError

    def _scored(self, output: Array, target: Array) -> float:
        """Return how good outputs (N, O) are."""
        raise NotImplementedError

    def _output(self, X: object) -> Array:
        """Return what the network makes of X, (N, O) in float64, before any softmax."""
        check_is_fitted(self, "network_")
        refuse_masked(X, "X")
        x = validate_data(self, X, reset=False, dtype=self.dtype, order="C")
        # Up to four rows would take kernels of their own, which round otherwise.
        rows = np.concatenate([x, np.zeros((FEW, x.shape[1]), x.dtype)]) if len(x) < FEW else x
        return self.network_.forward(rows)[: len(x)].astype(np.float64)

    def _fit(self, X: object, y: object, classes: object = None, *, go_on: bool) -> Self:
        self.check()
        check_table(X)
        refuse_masked(y, "y")
        first = not (hasattr(self, "network_") and (go_on or self.warm_start))
        x, wanted = validate_data(
            self,
            X,
            y,
            reset=first,
            dtype=self.dtype,
            order="C",
            multi_output=True,
            y_numeric=self.numeric,
        )
        if wanted.ndim == 2 and wanted.shape[1] == 1:
            wanted = column_or_1d(wanted, warn=True)
        known = wanted if classes is None else np.asarray(classes)
        target, outputs, loss = self._encoded(wanted, known if first else None)
        warn_of_copies(x, target, names_of(X))
        random = check_random_state(self.random_state)
        if first:
            self._begin([x.shape[1], *self.hidden(), outputs], loss, random)
        elif (self.n_outputs_, self.network_.config["loss"]) != (outputs, loss):
            raise ValueError(f"y must have {self.n_outputs_} columns as before, not {outputs}")
        held = None
        if self.early_stopping and go_on:
            raise ValueError("partial_fit does not go with early_stopping=True")
        if self.early_stopping:
            share, labels = self.validation_fraction, None if self.numeric else target
            labels = None if target.ndim == 2 and target.shape[1] > 1 else labels
            x, x_held, target, target_held = train_test_split(
                x, target, random_state=random, test_size=share, stratify=labels
            )
            held = x_held, target_held
        return self._train(x, target, held, random, go_on=go_on)

    def _begin(self, sizes: list[int], loss: str, random: np.random.RandomState) -> None:
        """Make a network; unless `init` says otherwise with scikit-learn's weights."""
        logistic = self.activation in ("logistic", "sigmoid")
        own, seed = self.init == OWN, int(random.randint(2**31 - 1)) if self.init != OWN else 0
        scheme = "glorot_uniform" if own else self.init
        self.network_ = new_network(self, sizes, loss, self.dtype, scheme, seed)
        shapes = zip(self.coefs_, self.intercepts_, pairwise(sizes), strict=True)
        for weight, bias, (inputs, outputs) in shapes if own else ():
            most = sqrt((2 if logistic else 6) / (inputs + outputs))
            weight[...] = random.uniform(-most, most, (inputs, outputs))
            bias[...] = random.uniform(-most, most, outputs)
        self.n_layers_, self.n_outputs_, self.t_ = len(sizes), sizes[-1], 0
        self.out_activation_ = OUTPUT[loss]
        self.loss_curve_: list[float] = []
        self._optimizer: Optimizer | None = None

    def _train(
        self,
        x: Array,
        target: Array,
        held: tuple[Array, Array] | None,
        random: np.random.RandomState,
        *,
        go_on: bool,
    ) -> Self:
        size = min(200, len(x)) if self.batch_size == "auto" else self.batch_size
        size = as_count("batch_size", size, 1)
        if size > len(x):
            said = f"batch_size is {size}, but there are {len(x)} rows: all are taken"
            warnings.warn(said, stacklevel=4)
        network, size = self.network_, min(size, len(x))
        if self._optimizer is None or not go_on:
            self._optimizer = optimizer_of(self, network.config["loss"], self.n_outputs_, size)
        loss = network.config["loss"]
        stopping = Stopping(
            self._optimizer,
            tol=self.tol,
            patience=self.n_iter_no_change,
            rates=self.learning_rate if self.solver == "sgd" else "constant",
            decay=(len(x), self.power_t),
            unit={"mse": 0.5, "binary_cross_entropy": self.n_outputs_}.get(loss, 1),
            score=None if held is None else lambda: self._scored(network.forward(held[0]), held[1]),
        )
        seed = int(random.randint(2**31 - 1))
        if go_on:
            draw = np.random.default_rng(seed).permutation if self.shuffle else np.arange
            order = draw(len(x))
            run = Run(network, self._optimizer, History(), Rows(x, target), size, 0)
            run.epoch(order, inf, lambda done: None)
            run.close_epoch(0, order, None)
            stopping(network, run.history)
        else:
            self.history_ = network.fit(
                x,
                target,
                optimizer=self._optimizer,
                epochs=self.max_iter,
                batch_size=size,
                shuffle=self.shuffle,
                seed=seed,
                callbacks=[stopping],
                progress=bool(self.verbose),
                on_finding=self.on_finding,
            )
        for name, array in stopping.parameters.items():
            network.parameters[name][...] = array
        self._note(stopping, len(x))
        if not all(np.isfinite(array).all() for array in network.parameters.values()):
            raise ValueError(
                "the training has led to weights that are not finite: lower learning_rate_init, "
                "or put a StandardScaler before X"
            )
        if not (go_on or stopping.stopped) and self.n_iter_ == self.max_iter:
            said = f"all max_iter={self.max_iter} epochs were taken: the training has not converged"
            warnings.warn(said, ConvergenceWarning, stacklevel=4)
        return self

    def _note(self, stopping: Stopping, rows: int) -> None:
        """Set the attributes that tell of the training, which have scikit-learn's names."""
        self.n_iter_ = len(stopping.losses)
        self.t_ += rows * self.n_iter_
        self.loss_curve_ = [*self.loss_curve_, *stopping.losses]
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else inf
        self.validation_scores_ = stopping.scores or None
        self.best_validation_score_ = max(stopping.scores, default=None)
        self.best_loss_ = None if stopping.scores else min(self.loss_curve_, default=inf)
