"""Between scikit-learn's perceptrons and vegrad's networks: the same weights, loss and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Activation, Array, Initialization, Loss
from vegrad.arrays.shown import shown, some
from vegrad.clipping import GlobalNorm
from vegrad.networks.mlp import MLP
from vegrad.optim import SGD, Adam, Optimizer

SIGMOID = {"logistic": "sigmoid"}  # what vegrad calls otherwise
OUTPUT = {"mse": "identity", "cross_entropy": "softmax", "binary_cross_entropy": "logistic"}
LOSS = {name: loss for loss, name in OUTPUT.items()}


class Estimator(Protocol):
    """The attributes of a perceptron of scikit-learn or vegrad that are read here."""

    activation: str
    solver: str
    alpha: float
    learning_rate_init: float
    momentum: float
    nesterovs_momentum: bool
    beta_1: float
    beta_2: float
    epsilon: float
    warm_start: bool
    batch_size: int | str
    coefs_: Sequence[Array]
    intercepts_: Sequence[Array]
    out_activation_: str
    classes_: Array
    t_: int
    n_iter_: int


def encoded(y: Array, classes: Array) -> Array:
    """Return the places (N,) of labels among sorted classes.

    Raises:
        ValueError: there is one class only, or y has others.
    """
    if len(classes) < 2:
        one = shown(str(classes[0]))
        raise ValueError(f"y must have two classes at least, not 1 class, {one}")
    labels = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    unknown = np.unique(y[classes[labels] != y])
    if len(unknown):
        known = f"classes_ are {some(classes, 8)}"
        raise ValueError(f"y has classes that were not there before: {some(unknown, 4)}; {known}")
    return labels


def times_of(loss: str, outputs: int) -> float:
    """Return what scikit-learn's gradient is times vegrad's: it sums over outputs half squares."""
    return {"mse": outputs / 2, "binary_cross_entropy": outputs}.get(loss, 1.0)


def optimizer_of(estimator: Estimator, loss: str, outputs: int, size: int) -> Optimizer:
    """Return an optimizer that does to vegrad's loss what the estimator's does to its own.

    Its penalty is alpha/2 · ‖W‖² over the `size` of a batch.
    """
    limit = getattr(estimator, "clip", None)
    times, rate = times_of(loss, outputs), estimator.learning_rate_init
    decay, clip = estimator.alpha / (size * times), None
    if limit is not None:
        clip = GlobalNorm(limit / times)
    if estimator.solver == "adam":
        betas, eps = (estimator.beta_1, estimator.beta_2), estimator.epsilon / times
        return Adam(rate, betas, eps, decay, clip=clip)
    nesterov = estimator.nesterovs_momentum and estimator.momentum > 0
    return SGD(rate * times, estimator.momentum, 0.0, decay, nesterov, clip=clip)


def network_of(estimator: Estimator) -> MLP:
    """Return a network with the weights of a fitted estimator."""
    sizes = [len(estimator.coefs_[0]), *map(len, estimator.intercepts_)]
    dtype = estimator.coefs_[0].dtype
    network = new_network(estimator, sizes, LOSS[estimator.out_activation_], dtype)
    for n, (weight, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        network.parameters[f"layers.{n}.weight"][...] = weight.T
        network.parameters[f"layers.{n}.bias"][...] = bias
    return network


def new_network(
    estimator: Estimator,
    sizes: Sequence[int],
    loss: str,
    dtype: npt.DTypeLike,
    init: str = "glorot_uniform",
    seed: int = 0,
) -> MLP:
    """Return a network such as an estimator's arguments describe it."""
    activation = SIGMOID.get(estimator.activation, estimator.activation)
    return MLP(
        sizes,
        activation=cast(Activation, activation),
        loss=cast(Loss, loss),
        init=cast(Initialization, init),
        norm=getattr(estimator, "norm", None),
        residual=getattr(estimator, "residual", False),
        dtype=dtype,
        seed=seed,
    )
