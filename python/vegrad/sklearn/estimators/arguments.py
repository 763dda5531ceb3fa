"""The arguments of the estimators."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from math import inf
from numbers import Real
from typing import get_args

import numpy as np
from sklearn.base import BaseEstimator

from vegrad.arrays.checks import Activation, as_count, as_finite, as_one_of
from vegrad.arrays.shown import shown
from vegrad.diagnosis.alarms import OnFinding
from vegrad.networks.network import check_flag

OWN = "scikit-learn"  # the initialization that its estimators have
FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "residual")
# The ranges of numbers; those of `ABOVE` must not be 0.
RANGES = dict.fromkeys(("alpha", "power_t", "tol"), inf) | {"momentum": 1, "validation_fraction": 1}
ABOVE = ("learning_rate_init", "epsilon", "n_iter_no_change", "max_iter")


@dataclass(eq=False, repr=False)
class Arguments(BaseEstimator):
    """The arguments that both estimators have; `MLPClassifier` says what they mean."""

    hidden_layer_sizes: int | Iterable[int] = (100,)
    activation: str = "relu"
    _: KW_ONLY
    solver: str = "adam"
    alpha: float = 0.0001
    batch_size: int | str = "auto"
    learning_rate: str = "constant"
    learning_rate_init: float = 0.001
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: int | np.random.RandomState | None = None
    tol: float = 1e-4
    verbose: bool = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    init: str = OWN
    norm: str | None = None
    residual: bool = False
    clip: float | None = None
    dtype: str = "float32"
    on_finding: OnFinding = "warn"

    def hidden(self) -> list[int]:
        """Return the widths of the hidden layers."""
        given = self.hidden_layer_sizes
        sizes = given if isinstance(given, Iterable) else [given]
        return [as_count("hidden_layer_sizes", one, 1) for one in sizes]

    def check(self) -> None:
        """Raise TypeError or ValueError for arguments out of range."""
        as_one_of("activation", self.activation, ("logistic", *get_args(Activation)))
        as_one_of("solver", self.solver, ("adam", "sgd"))
        as_one_of("learning_rate", self.learning_rate, ("constant", "invscaling", "adaptive"))
        for name in FLAGS:
            check_flag(name, getattr(self, name))
        for name, high in (RANGES | dict.fromkeys(ABOVE, inf)).items():
            number = getattr(self, name)
            if name != "n_iter_no_change" or number != inf:
                number = as_finite(name, number)
            if not 0 <= number <= high or (name in ABOVE and not number):
                least = "above 0" if name in ABOVE else "at least 0"
                wanted = least if high == inf else f"{least} and at most {high}"
                raise ValueError(f"{name} must be {wanted}, not {shown(number)}")
        as_count("max_iter", self.max_iter, 1)
        if self.clip is not None and not isinstance(self.clip, Real):
            wanted = "a number, the most that the gradients' joint norm may be, or None"
            raise TypeError(f"clip must be {wanted}, not {shown(self.clip)}")
