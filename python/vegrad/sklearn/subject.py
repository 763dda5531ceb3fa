"""A perceptron of scikit-learn as a subject, by way of a network with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_X_y

from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.edits import (
    AddSkips, Clip, Edit, Initialize, LearningRate, Normalize, Scale, ScaleData, ScaleTarget,
    SetActivation, Shift, Zero, parts,
)  # fmt: skip
from vegrad.flow.reading import Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.networks.subject import NetworkSubject
from vegrad.networks.trainer import NetworkTrainer
from vegrad.optim import Adam, Optimizer
from vegrad.sklearn.bridge import Estimator, encoded, network_of, optimizer_of, times_of
from vegrad.sklearn.parts import Parts
from vegrad.sklearn.tables import check_table, names_of, warn_of_copies
from vegrad.sklearn.vocabulary import LOGISTIC, EstimatorVocabulary, renamed
from vegrad.treatment.data import ArrayData
from vegrad.treatment.script import Script, quoted

TRAINING = {"learning_rate_init", "clip"}
THEIRS = ("identity", "sigmoid", "tanh", "relu")  # activations of scikit-learn's
IMPORTS = {
    "TransformedTargetRegressor": "sklearn.compose",
    "make_pipeline": "sklearn.pipeline",
    "StandardScaler": "sklearn.preprocessing",
}


class EstimatorSubject:
    """An estimator with the data that it is fitted to; `inner` is the same as a network.

    Without data there is nothing but the weights of a fitted one.
    """

    noun = "estimator"
    early = 0

    def __init__(
        self, estimator: object, X: object = None, y: object = None, seed: int = 0
    ) -> None:
        self.estimator, found = estimator, Parts(estimator)
        self.inner: NetworkSubject | None = None
        if X is None:
            return
        table = found.seen(X, np.asarray(y))
        check_table(table)
        self.x, self.y = check_X_y(
            table, y, dtype=(np.float64, np.float32), ensure_all_finite=False, multi_output=True,
            y_numeric=found.numeric,
        )  # fmt: skip
        self.y = self.y.ravel() if self.y.ndim == 2 and self.y.shape[1] == 1 else self.y
        begun = found.begun(self.x, self.y)
        network = network_of(begun)
        loss, dtype, many = network.config["loss"], network.config["dtype"], self.y.ndim == 2
        target = self.y if found.numeric or many else encoded(self.y, begun.classes_)
        if loss != "cross_entropy":
            target = target.astype(dtype).reshape(len(target), -1)
        data = ArrayData(self.x.astype(dtype), target, numeric=found.numeric)
        self.inner = NetworkSubject(network, data, self._optimizer(begun, loss), seed)
        warn_of_copies(self.x, target, names_of(table))

    @property
    def data(self) -> ArrayData:
        """The data as the network sees them: scaled, if an edit has done so."""
        return self._network.data

    @property
    def kind(self) -> str:
        """The name of the loss."""
        return str(self._network.network.config["loss"])

    @property
    def batch_size(self) -> int:
        """The rows of a step."""
        given, count = Parts(self.estimator).perceptron.batch_size, len(self.x)
        return min(200 if isinstance(given, str) else given, count)

    @property
    def vocabulary(self) -> EstimatorVocabulary:
        """The names of layers, parameters and edits."""
        found, times = Parts(self.estimator), 1.0
        if self.inner is not None and found.perceptron.solver == "sgd":
            config = self.inner.network.config
            times = times_of(config["loss"], config["sizes"][-1])
        return EstimatorVocabulary(own=found.own, times=times)

    def read(
        self, x: object, target: object, *, resamples: int, seed: int, theory: bool = True
    ) -> Reading:
        """Run the network forward and back on a batch and write down what that tells."""
        found, inner = Parts(self.estimator), self._network
        got = inner.read(x, target, resamples=resamples, seed=seed, theory=theory)
        said = {"activation": found.perceptron.activation}
        said["init"] = "fitted" if found.fitted else getattr(found.perceptron, "init", "not fitted")
        return replace(got, vocabulary=self.vocabulary, about={**got.about, **said})

    def copy(self) -> Self:
        """Return a copy, to the bit, with the same data."""
        twin = copy.copy(self)
        twin.estimator, twin.inner = copy.deepcopy(self.estimator), self._network.copy()
        return twin

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit to the estimator, by code of scikit-learn's, and to the network."""
        script = Script(estimator=self.estimator, make_pipeline=make_pipeline,
                        StandardScaler=StandardScaler,
                        TransformedTargetRegressor=TransformedTargetRegressor)  # fmt: skip
        found, single = Parts(self.estimator), parts(edit)
        if isinstance(edit, ScaleData | ScaleTarget):
            return self._scale(edit, script, found)
        if all(isinstance(one, Scale | Zero | Shift) for one in single):
            return self._change(edit, script, found)
        return self._set(single, script, found)

    def _scale(self, edit: Edit, script: Script, found: Parts) -> Code | Refusal:
        if isinstance(edit, ScaleTarget) and self.y.ndim == 2:
            return Refusal("a StandardScaler would scale each column of y by itself")
        done = self._network.apply(edit)
        if isinstance(done, Refusal):
            return done
        inner = "estimator.regressor" if found.scales_target else "estimator"
        if isinstance(edit, ScaleTarget):
            wrapped = "TransformedTargetRegressor(estimator, transformer=StandardScaler())"
            script.run(f"estimator = {wrapped}")
        elif found.pipeline is None:
            script.run(f"{inner} = make_pipeline(StandardScaler(), {inner})")
        else:
            free = "standardscaler"
            while free in found.pipeline.named_steps:
                free += "_"
            script.run(f'{inner}.steps.insert(-1, ("{free}", StandardScaler()))')
        self.estimator = script.names["estimator"]
        return Code(script.lines)

    def _change(self, edit: Edit, script: Script, found: Parts) -> Code | Refusal:
        """Change weights in place; a `fit` must then go on from them."""
        kept = found.perceptron.warm_start and not found.scales_target
        if not found.fitted or (self.inner is not None and not kept):
            return Refusal(
                "fit draws the weights itself; warm_start=True goes on from a fitted one's"
            )
        named = "estimator[-1]" if found.pipeline is not None else "estimator"
        changed = list[str]()
        for one in parts(edit):
            match one:
                case Scale(names, factor, rows):
                    does = f"*= {factor!r}"
                case Zero(names, rows):
                    does = "= 0.0"
                case Shift(names, amount, rows):
                    does = f"+= {amount!r}"
                case _:
                    raise AssertionError
            part = "..." if rows is None else f"..., {rows[0]}:{rows[1]}"
            changed += [renamed(name) for name in names]
            script.run(*(f"{named}.{renamed(name)}[{part}] {does}" for name in names))
        if self.inner is not None:
            self.inner.network = network_of(found.perceptron)
        return Code(script.lines, tuple(dict.fromkeys(changed)))

    def _set(self, edits: Sequence[Edit], script: Script, found: Parts) -> Code | Refusal:
        """Set arguments; of initializations scikit-learn's estimators have only their own."""
        settings, was = dict[str, object](), found.perceptron
        for one in edits:
            match one:
                case LearningRate(rate, before):
                    factor = rate / (before or self._network.optimizer.rate())
                    settings["learning_rate_init"] = float(f"{was.learning_rate_init * factor:.3g}")
                case SetActivation(name) if found.own or name in THEIRS:
                    settings["activation"] = LOGISTIC.get(name, name)
                case Initialize() if not found.own and len(edits) > 1:
                    pass
                case Clip(limit) if found.own:
                    times = self.vocabulary.times
                    settings["clip"] = float(f"{limit * times:.3g}")
                case Initialize(scheme) if found.own:
                    settings["init"] = scheme
                case Normalize(on) if found.own:
                    settings["norm"] = "layer" if on else None
                case AddSkips() if found.own:
                    settings["residual"] = True
                case _:
                    kind = type(was).__name__
                    return Refusal(f"{kind} has no argument for it")
        if found.own and found.fitted and not settings.keys() <= TRAINING:
            return Refusal("with warm_start=True a fitted network stays as it is")
        written = {
            name: quoted(value) if isinstance(value, str) else repr(value)
            for name, value in settings.items()
        }
        set_all = ", ".join(f"{found.prefix}{name}={value}" for name, value in written.items())
        script.run(f"estimator.set_params({set_all})")
        now, inner = Parts(self.estimator).begun(self.x, self.y), self._network
        if not settings.keys() <= TRAINING:
            inner.network = network_of(now)
        inner.optimizer = self._optimizer(now, inner.network.config["loss"])
        words = ", ".join(f"{name}={value}" for name, value in written.items())
        return Code(script.lines, words=f"set {words}")

    def write(self, other: Self) -> None:
        """Take over the weights of another estimator of the same shape."""
        raise NotImplementedError

    # For a cure

    def diagnosed(self, x: object, target: object, *, theory: bool) -> Diagnosis:
        """Diagnose it on a batch, without resampling."""
        found = self.read(x, target, resamples=0, seed=0, theory=theory)
        return Diagnosis.of(found, None, EstimatorSubject)

    def looking(self, rows: int) -> float:
        """Return what a diagnosis costs: one pass."""
        return float(rows)

    def trainer(
        self, history: History, *, batch_size: int, gauge_every: int, seed: int
    ) -> NetworkTrainer:
        """Begin a training of a network with the same weights, by the same steps."""
        return self._network.trainer(
            history, batch_size=batch_size, gauge_every=gauge_every, seed=seed
        )

    def patch(self, words: str, lines: Sequence[str], *, steps: int, batch_size: int) -> str:
        """Write the code from the user's estimator, X and y to a fit of this one."""
        imports = [
            f"from {module} import {name}"
            for name, module in IMPORTS.items()
            if any(f"{name}(" in line for line in lines)
        ]
        head = [*imports, ""] if imports else []
        return "\n".join([*head, f"# {words}", *lines, "estimator.fit(X, y)", ""])

    @property
    def _network(self) -> NetworkSubject:
        assert self.inner is not None
        return self.inner

    def _optimizer(self, begun: Estimator, loss: str) -> Optimizer:
        if begun.solver == "lbfgs":
            return Adam(1e-3)
        return optimizer_of(begun, loss, self.batch_size)
