"""The `fit` of an estimator as its own settings end it, beside what trials have reached.

Trials take steps until the goal is reached; `fit` ends where `max_iter` or `tol` say.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from vegrad.arrays.checks import Array
from vegrad.sklearn.parts import Parts
from vegrad.treatment.goal import Goal

SETTINGS = ("tol", "n_iter_no_change")


@dataclass(frozen=True)
class Short:
    """A `fit` that ends short of the goal."""

    epochs: int
    """Those that it took."""
    settings: dict[str, object]
    """The arguments that ended it."""

    @property
    def words(self) -> str:
        """The arguments as they are given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


def short_of(
    estimator: object, data: tuple[object, object], goal: Goal, steps: int, seed: int
) -> Short | None:
    """Fit a copy for as long as a trial took to the goal; None if it gets there, too.

    Nothing is fitted where no setting can end it so early. `seed` stands for a random_state of
    None.
    """
    X, y = data
    wanted = np.asarray(y)
    copy = clone(estimator)
    found = Parts(copy)
    epochs = -(-steps // -(-len(wanted) // found.batch_size(len(wanted))))
    if epochs <= 1:
        return None
    prefix, every = found.prefix, copy.get_params()
    own = {name: every[prefix + name] for name in (*SETTINGS, "max_iter", "random_state")}
    asked = {"max_iter": min(own["max_iter"], epochs), "verbose": False}
    asked |= {"random_state": seed} if own["random_state"] is None else {}
    asked |= {"on_finding": None} if found.own else {}
    copy.set_params(**{prefix + name: value for name, value in asked.items()})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            copy.fit(X, y)
        except ValueError:  # its weights are lost, which says nothing of where it would end
            return None
    taken = Parts(copy).perceptron.n_iter_
    if _reached(wanted, np.asarray(copy.predict(X)), goal, each=found.around is not None):
        return None
    if taken < asked["max_iter"]:
        return Short(taken, {name: own[name] for name in SETTINGS})
    return Short(taken, {"max_iter": own["max_iter"]}) if own["max_iter"] <= epochs else None


def _reached(wanted: Array, found: Array, goal: Goal, *, each: bool) -> bool:
    """Return True if predictions are good enough; of scaled numbers `each` column counts alike."""
    found = found.reshape(wanted.shape)
    if goal.kind != "mse":
        return goal.reached(np.nan, float(np.mean(found == wanted)))
    columns = wanted.astype(np.float64).reshape(len(wanted), -1)
    far = np.mean((found.reshape(columns.shape) - columns) ** 2, axis=0)
    spread = np.var(columns, axis=0)
    left = np.mean(far / spread) if each else far.sum() / spread.sum()
    return bool(left * goal.guess <= goal.wanted)
