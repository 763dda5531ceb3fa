"""A perceptron of scikit-learn as a subject: a network with the same weights, loss and steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_X_y

from vegrad.arrays.checks import Array, refuse_masked
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow import edits
from vegrad.flow.data import Penalty
from vegrad.flow.edits import Edit, parts
from vegrad.flow.reading import Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.networks.subject import NONE, NetworkSubject
from vegrad.sklearn.estimators.bridge import encoded, network_of, optimizer_of, times_of
from vegrad.sklearn.parts import Parts
from vegrad.sklearn.reading import in_its_words, renamed
from vegrad.sklearn.tables import check_table, names_of, warn_of_copies
from vegrad.sklearn.vocabulary import LOGISTIC, EstimatorVocabulary
from vegrad.treatment.data import ArrayData
from vegrad.treatment.learnability import possible
from vegrad.treatment.script import Script, quoted

TRAINING = {"learning_rate_init", "alpha", "clip"}  # arguments that leave the network as it is
THEIRS = ("identity", "sigmoid", "tanh", "relu")  # activations of scikit-learn's
KNOWN = (TransformedTargetRegressor, make_pipeline, StandardScaler)
PLACES = ("sklearn.compose", "sklearn.pipeline", "sklearn.preprocessing")


Values = edits.Scale | edits.Zero | edits.Shift


def in_code(value: object) -> str:
    """Write a value of an argument."""
    return quoted(value) if isinstance(value, str) else repr(value)


@dataclass
class EstimatorSubject(NetworkSubject):
    """A network made of an estimator, and the estimator, to which the same edits are done."""

    estimator: object = None
    training: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the training that were changed, with their values."""
    given: ArrayData = NONE
    """X (N, I) as the perceptron was first given it, and y."""
    begun_log2: Mapping[str, float] = field(default_factory=dict)
    """log2 of the root mean square of a fitted one's weights before its fit."""

    noun = "estimator"

    @classmethod
    def fitted(cls, estimator: object) -> Self:
        """Return the subject of a fitted estimator without any data, for edits in place."""
        return cls(network_of(Parts(estimator).perceptron), estimator=estimator)

    @classmethod
    def of(cls, estimator: object, X: object, y: object, seed: int) -> Self:
        """Return the subject of an estimator with the data that it is to be fitted to."""
        refuse_masked(X, "X")
        refuse_masked(y, "y")
        found = Parts(estimator)
        table = found.seen(X, y)
        check_table(table)
        kinds = {"dtype": (np.float64, np.float32), "y_numeric": found.numeric}
        x, wanted = check_X_y(table, y, ensure_all_finite=False, multi_output=True, **kinds)
        wanted = found.target(wanted)
        wanted = wanted.ravel() if wanted.ndim == 2 and wanted.shape[1] == 1 else wanted
        begun = found.begun(x, wanted, seed)
        network = network_of(begun)
        numbers = found.numeric or wanted.ndim == 2
        target = wanted if numbers else encoded(wanted, begun.classes_)
        data = network.checked(x, target)
        warn_of_copies(x, data[1], names_of(table))
        own, given = ArrayData(*data, numeric=found.numeric), ArrayData(x, wanted)
        subject = cls(network, own, None, seed, estimator=estimator, given=given)
        subject._renew_optimizer()
        return subject

    @property
    def vocabulary(self) -> EstimatorVocabulary:
        """The names of layers, parameters and edits."""
        found = Parts(self.estimator)
        times = self._times if found.perceptron.solver == "sgd" else 1.0
        penalized = found.penalized(len(self.data)) * self._times
        return EstimatorVocabulary(
            self.network.depth, own=found.own, times=times, penalized=penalized
        )

    @property
    def _times(self) -> float:
        return times_of(self.network.config["loss"], self.network.config["sizes"][-1])

    @property
    def penalty(self) -> Penalty | None:
        """The penalty that alpha stands for."""
        found = Parts(self.estimator)
        decay = found.perceptron.alpha / (found.penalized(len(self.data)) * self._times)
        if not decay > 0:
            return None
        kind, data = self.network.config["loss"], self.data
        fits = partial(possible, data.x, data.target, kind)
        return Penalty(decay, self.begun_log2, fits) if self.begun_log2 else Penalty(decay)

    def read(
        self, x: object, target: object, *, resamples: int, seed: int, theory: bool = True
    ) -> Reading:
        """Run the network forward and back on a batch and write down what that tells."""
        found = Parts(self.estimator)
        got = super().read(x, target, resamples=resamples, seed=seed, theory=theory)
        begun = "fitted" if found.fitted else getattr(found.perceptron, "init", "scikit-learn")
        about = {**got.about, "activation": found.perceptron.activation, "init": begun}
        return in_its_words(replace(got, vocabulary=self.vocabulary, about=about))

    def copy(self) -> Self:
        """Return a copy, to the bit, with the same data."""
        return replace(super().copy(), estimator=copy.deepcopy(self.estimator))

    def diagnosed(self, x: object, target: object, *, theory: bool) -> Diagnosis:
        """Diagnose it on a batch, without resampling."""
        found = self.read(x, target, resamples=0, seed=0, theory=theory)
        return Diagnosis.of(found, None, EstimatorSubject.fitted)

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit to the network and, by code of scikit-learn's, to the estimator."""
        script = Script(estimator=self.estimator, **{one.__name__: one for one in KNOWN})
        found, single = Parts(self.estimator), parts(edit)
        if isinstance(edit, edits.ScaleData | edits.ScaleTarget):
            return self._scale(edit, script, found)
        values = [one for one in single if isinstance(one, edits.Scale | edits.Zero | edits.Shift)]
        if len(values) == len(single):
            return self._change(values, script, found)
        return self._set(single, script, found)

    def _scale(self, edit: Edit, script: Script, found: Parts) -> Code | Refusal:
        """Put a scaler before the perceptron, or over y."""
        done = super().apply(edit)
        if isinstance(done, Refusal):
            return done
        inner = "estimator.regressor" if found.around is not None else "estimator"
        if isinstance(edit, edits.ScaleTarget):
            wrapped = "TransformedTargetRegressor(estimator, transformer=StandardScaler())"
            script.run(f"estimator = {wrapped}")
            y = self.given.target.reshape(len(self.data), -1)  # each column by itself
            scaled = StandardScaler().fit_transform(y).astype(self.data.target.dtype)
            self.data = replace(self.data, target=scaled)
        elif found.pipeline is None:
            script.run(f"{inner} = make_pipeline(StandardScaler(), {inner})")
        else:
            free = "standardscaler"
            while free in found.pipeline.named_steps:
                free += "_"
            script.run(f'{inner}.steps.insert(-1, ("{free}", StandardScaler()))')
        self.estimator = script.names["estimator"]
        return Code(script.lines)

    def _change(self, single: Sequence[Values], script: Script, found: Parts) -> Code | Refusal:
        """Change weights in place; a `fit` must then go on from them."""
        kept = found.perceptron.warm_start and found.around is None
        if not found.fitted or (len(self.data) and not kept):
            return Refusal("fit draws the weights anew, unless a fitted one has warm_start=True")
        theirs = {renamed(name): name for name in self.network.parameters}
        renaming = [
            replace(one, parameters=tuple(theirs[n] for n in one.parameters)) for one in single
        ]
        done = super().apply(edits.together(*renaming))
        if isinstance(done, Refusal):
            return done
        named = "estimator.regressor_" if found.around is not None else "estimator"
        named += "[-1]" * (found.pipeline is not None)
        for one in single:
            match one:
                case edits.Scale(names, factor, rows):
                    does = f"*= {factor!r}"
                case edits.Shift(names, amount, rows):
                    does = f"+= {amount!r}"
                case edits.Zero(names, rows):
                    does = "= 0.0"
            part = "..." if rows is None else f"..., {rows[0]}:{rows[1]}"
            script.run(*(f"{named}.{name}[{part}] {does}" for name in names))
        return Code(script.lines, tuple(map(renamed, done.changed)))

    def _set(self, single: Sequence[Edit], script: Script, found: Parts) -> Code | Refusal:
        """Set arguments; of initializations scikit-learn's estimators have only their own."""
        settings, was = dict[str, object](), found.perceptron
        for one in single:
            match one:
                case edits.LearningRate(rate, before):
                    factor = rate / (before or self._optimizer.rate())
                    settings["learning_rate_init"] = float(f"{was.learning_rate_init * factor:.3g}")
                case edits.WeightDecay(decay, before):
                    settings["alpha"] = float(f"{was.alpha * decay / before:.3g}")
                case edits.SetActivation(name) if found.own or name in THEIRS:
                    settings["activation"] = LOGISTIC.get(name, name)
                case edits.Initialize() if not found.own and len(single) > 1:
                    pass
                case edits.Clip(limit) if found.own:
                    settings["clip"] = float(f"{limit * self._times:.3g}")
                case edits.Initialize(scheme) if found.own:
                    settings["init"] = scheme
                case edits.Normalize(on) if found.own:
                    settings["norm"] = "layer" if on else None
                case edits.AddSkips() if found.own:
                    settings["residual"] = True
                case _:
                    return Refusal(f"{type(was).__name__} has no argument for it")
        if found.own and found.fitted and not settings.keys() <= TRAINING:
            return Refusal("with warm_start=True a fitted network stays as it is")
        of_training = settings.keys() <= TRAINING
        script.run(self._setting(settings))
        if of_training:  # written once, at the end of a patch
            self.training = {**self.training, **settings}
        else:
            data = self.given.x, self.given.target
            self.network = network_of(Parts(self.estimator).begun(*data, self.seed))
        self._renew_optimizer()
        words = ", ".join(f"{name}={in_code(value)}" for name, value in settings.items())
        return Code(() if of_training else script.lines, words=f"set {words}")

    def _setting(self, settings: Mapping[str, object]) -> str:
        """Write the line that sets arguments of the perceptron."""
        prefix = Parts(self.estimator).prefix
        said = ", ".join(f"{prefix}{name}={in_code(value)}" for name, value in settings.items())
        return f"estimator.set_params({said})"

    def patch(self, words: str, lines: Sequence[str], *, steps: int, batch_size: int) -> str:
        """Write the code from the user's estimator, X and y to a fit of this one."""
        names = zip(PLACES, (one.__name__ for one in KNOWN), strict=True)
        imports = [f"from {m} import {n}" for m, n in names if any(f"{n}(" in li for li in lines)]
        head = [*imports, ""] if imports else []
        last = [self._setting(self.training)] if self.training else []
        return "\n".join([*head, f"# {words}", *lines, *last, "estimator.fit(X, y)", ""])

    def _renew_optimizer(self) -> None:
        """Take the estimator's optimizer as it begins; "lbfgs", which has none, is only judged."""
        found, config = Parts(self.estimator), self.network.config
        of = config["loss"], config["sizes"][-1], found.batch_size(len(self.data))
        if found.perceptron.solver != "lbfgs":
            self.optimizer = optimizer_of(found.perceptron, *of)
