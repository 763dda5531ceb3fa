"""Estimators on vegrad's core, held to scikit-learn's checks and beside its own."""

import json
import pickle
import pickletools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
import sklearn.neural_network as theirs
from joblib import parallel_config
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from vegrad import FindingError, FindingWarning, History
from vegrad.sklearn import MLPClassifier, MLPRegressor

from tests import reference_activations

Both = tuple[np.ndarray, np.ndarray]
SOME = {"max_iter": 30, "random_state": 0, "on_finding": None}
unfinished = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits() -> Both:
    x, y = load_digits(return_X_y=True)
    return x / 16, y


@pytest.fixture(scope="module")
def names() -> Both:
    data = load_iris()
    return StandardScaler().fit_transform(data.data), data.target_names[data.target]


@pytest.fixture(scope="module")
def numbers() -> Both:
    x, y = make_regression(400, 6, noise=1.0, random_state=0)
    return x, y / y.std()


CHECKS = parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), ids=CHECKS.kwargs["ids"])
@pytest.mark.filterwarnings("ignore")  # of data that the checks make
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    """All of them: none is expected to fail."""
    check(estimator)


# What arguments mean -----------------------------------------------------------------------------


@pytest.fixture(params=["classes", "two", "several", "number", "numbers"])
def task(request: pytest.FixtureRequest, digits: Both) -> Iterator[tuple[str, Both]]:
    x, y = digits[0][:400].astype(np.float64), digits[1][:400]
    z = x @ np.random.default_rng(0).standard_normal((64, 3))
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    targets = {
        "classes": y,
        "two": y > 4,
        "several": (z > 0).astype(int),
        "number": z[:, 0],
        "numbers": z,
    }
    return request.param, (x, targets[request.param])


@pytest.mark.parametrize(
    "arguments",
    [
        {"solver": "adam", "activation": "relu", "learning_rate_init": 0.003},
        {"solver": "adam", "activation": "logistic", "hidden_layer_sizes": (20, 10)},
        {"solver": "sgd", "activation": "tanh", "learning_rate_init": 0.05, "momentum": 0.8},
        {"solver": "sgd", "nesterovs_momentum": False, "activation": "identity"},
        {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1, "batch_size": 100},
        {"solver": "adam", "activation": "relu", "batch_size": 199},  # and one of 2 rows
        {"solver": "sgd", "learning_rate": "invscaling", "momentum": 0.0, "power_t": 0.1},
        {"solver": "sgd", "learning_rate": "adaptive", "momentum": 0.0, "tol": 0.05,
         "n_iter_no_change": 2, "learning_rate_init": 0.01},
    ],
    ids=lambda one: "-".join(str(value) for value in one.values()),
)  # fmt: skip
@unfinished
def test_it_takes_the_steps_of_scikit_learns(
    task: tuple[str, Both], arguments: dict[str, Any]
) -> None:
    """From the same weights, in the same order of rows: the same loss, epoch by epoch."""
    kind, (x, y) = task
    always = {"shuffle": False, "max_iter": 8, "random_state": 3, "alpha": 0.0}
    always["epsilon"] = 1e-14  # which the two add at different places
    own = (MLPRegressor if "number" in kind else MLPClassifier)(
        **always | arguments, dtype="float64", on_finding=None
    )
    other = (theirs.MLPRegressor if "number" in kind else theirs.MLPClassifier)(
        **always | arguments
    )
    own.fit(x, y)
    other.fit(x, y)
    assert own.n_iter_ == other.n_iter_
    assert own.loss_curve_ == pytest.approx(other.loss_curve_, rel=1e-5)
    for ours, weight in zip(own.coefs_, other.coefs_, strict=True):
        assert ours == pytest.approx(weight, rel=1e-3, abs=1e-5)
    names = ("n_layers_", "n_outputs_", "out_activation_", "t_", "n_features_in_")
    assert [getattr(own, n) for n in names] == [getattr(other, n) for n in names]
    assert own.predict(x) == pytest.approx(other.predict(x), rel=1e-3, abs=1e-4)
    if "number" not in kind:
        assert own.predict_proba(x) == pytest.approx(other.predict_proba(x), abs=1e-4)
        assert (own.classes_ == other.classes_).all()


@unfinished
def test_alpha_makes_weights_smaller_as_it_does_there(digits: Both) -> None:
    x, y = digits
    sizes = {}
    for alpha in (0.0, 30.0):
        for kind in (MLPClassifier, theirs.MLPClassifier):
            one = kind(alpha=alpha, max_iter=10, random_state=0, shuffle=False).fit(x, y)
            sizes[alpha, kind] = np.linalg.norm(one.coefs_[0])
    assert sizes[30.0, MLPClassifier] < 0.9 * sizes[0.0, MLPClassifier]
    for alpha in (0.0, 30.0):
        assert sizes[alpha, MLPClassifier] == pytest.approx(
            sizes[alpha, theirs.MLPClassifier], rel=0.02
        )


def test_early_stopping_keeps_the_best(digits: Both) -> None:
    x, y = digits
    one = MLPClassifier(early_stopping=True, n_iter_no_change=3, tol=0.01, random_state=0)
    one.fit(x, y)
    assert one.n_iter_ == len(one.validation_scores_) < 200
    assert one.best_validation_score_ == max(one.validation_scores_)
    assert one.best_loss_ is None
    assert one.score(x, y) > 0.9


@unfinished
def test_warm_start_goes_on(digits: Both) -> None:
    x, y = digits
    one = MLPClassifier(warm_start=True, **SOME | {"max_iter": 5}).fit(x, y)
    first = one.coefs_[0].copy()
    one.set_params(max_iter=1).fit(x, y)
    assert len(one.loss_curve_) == 6
    assert one.loss_curve_[-1] < one.loss_curve_[-2]
    assert abs(one.coefs_[0] - first).max() < 0.1
    with pytest.raises(ValueError, match=r"y has classes that were not there before: 11; classes_"):
        one.fit(x, np.where(y == 0, 11, y))
    with pytest.raises(ValueError, match="must have 10 columns as before, not 2"):
        one.fit(x, (y[:, None] == [0, 1]).astype(int))


@unfinished
@pytest.mark.parametrize(
    ("more", "config"),
    [
        ({"norm": "layer", "residual": True}, {"norm": "layer", "residual": True}),
        ({"init": "orthogonal", "activation": "gelu"}, {"init": "orthogonal"}),
        ({"dtype": "float64"}, {"dtype": "float64"}),
    ],
)
def test_what_only_vegrads_have(more: Any, config: Any, names: Both) -> None:
    one = MLPClassifier((8, 8), **SOME, **more).fit(*names)
    assert config.items() <= one.network_.config.items()
    assert isinstance(one.history_, History)


@unfinished
def test_a_clip_is_in_scikit_learns_units(numbers: Both) -> None:
    x, y = numbers
    y = np.stack([y, -y, y], axis=1)
    one = MLPRegressor(clip=0.01, solver="sgd", batch_size=400, **SOME).fit(x, y)
    moved = one.history_.step_length[one.history_.step_length > 0]
    assert moved.max() <= 0.001 * 0.01 * (1 + 0.9) / (1 - 0.9) * 1.01  # with momentum
    assert one.history_.clipped_share[-1] == 1


# In scikit-learn's company ------------------------------------------------------------------------


@unfinished
def test_strings_pipelines_and_folds(names: Both) -> None:
    x, y = names
    pipe = make_pipeline(StandardScaler(), MLPClassifier(**SOME | {"max_iter": 200})).fit(x, y)
    assert list(pipe.classes_) == ["setosa", "versicolor", "virginica"]
    assert set(pipe.predict(x)) <= set(y)
    assert pipe.score(x, y) > 0.9
    assert cross_val_score(pipe, x, y, cv=3).mean() > 0.9
    log, plain = pipe.predict_log_proba(x), pipe.predict_proba(x)
    assert np.exp(log) == pytest.approx(plain)
    assert plain.sum(axis=1) == pytest.approx(np.ones(len(x)))


@unfinished
def test_a_grid_gives_the_same_with_workers(names: Both) -> None:
    grid = {"hidden_layer_sizes": [(5,), (20,)], "learning_rate_init": [0.001, 0.03]}
    search, scores = GridSearchCV(MLPClassifier(**SOME), grid, cv=3), []
    for jobs, backend in ((None, "loky"), (2, "loky"), (2, "threading")):
        with parallel_config(backend=backend):
            scores.append(search.set_params(n_jobs=jobs).fit(*names).cv_results_["mean_test_score"])
    assert (scores[0] == scores[1]).all()
    assert (scores[0] == scores[2]).all()


def test_workers_have_their_share_of_the_threads() -> None:
    """Two workers take half of the processors each: one thread a worker where there are two."""
    program = """
import os
for name in ("OMP_NUM_THREADS", "VEGRAD_NUM_THREADS"):
    os.environ.pop(name, None)
import joblib, numpy as np, vegrad
from sklearn.model_selection import GridSearchCV
from vegrad.sklearn import MLPRegressor

def threads(estimator, X, y):
    return vegrad.num_threads()

x = np.random.default_rng(0).standard_normal((20, 3))
search = GridSearchCV(MLPRegressor((2,), max_iter=1, on_finding=None), {"alpha": [0.1, 0.2]},
                      scoring=threads, n_jobs=2, cv=2, refit=False)
import warnings
warnings.simplefilter("ignore")
results = search.fit(x, x[:, 0] + 1).cv_results_
assert set(results["mean_test_score"]) == {max(joblib.cpu_count() // 2, 1)}, results
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


@unfinished
def test_copies_and_pickles_are_plain_arrays(digits: Both) -> None:
    x, y = digits
    one = MLPClassifier(**SOME | {"max_iter": 3}).fit(x, y)
    assert not hasattr(clone(one), "network_")
    data = pickle.dumps(one)
    twin = pickle.loads(data)
    assert (twin.predict_proba(x) == one.predict_proba(x)).all()
    for both in (one, twin):  # the optimizer's state goes along
        both.partial_fit(x, y)
    assert (twin.coefs_[0] == one.coefs_[0]).all()
    text = [arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)]
    assert "vegrad.networks.mlp" in text
    assert not [name for name in text if "_core.Network" in name or name == "Trainer"]


def test_partial_fit(digits: Both) -> None:
    x, y = digits
    one = MLPClassifier(random_state=0, learning_rate_init=0.01)
    with pytest.raises(ValueError, match="classes must be given with the first partial_fit"):
        one.partial_fit(x, y)
    for _ in range(5):
        for rows in np.array_split(np.arange(len(x)), 5):
            one.partial_fit(x[rows], y[rows], classes=np.arange(10))
    assert one.t_ == 5 * len(x)
    assert one.score(x, y) > 0.9
    with pytest.raises(ValueError, match="does not go with early_stopping"):
        MLPRegressor(early_stopping=True).partial_fit(x, y)


@unfinished
def test_several_labels() -> None:
    x, y = make_multilabel_classification(200, 10, n_classes=4, random_state=0)
    one = MLPClassifier(**SOME | {"max_iter": 200, "learning_rate_init": 0.01})
    one.fit(StandardScaler().fit_transform(x), y)
    assert one.predict(x).shape == one.predict_proba(x).shape == (200, 4)
    assert list(one.classes_) == [0, 1, 2, 3]
    assert one.score(StandardScaler().fit_transform(x), y) > 0.9


@unfinished
def test_a_row_is_predicted_the_same_in_any_company(numbers: Both) -> None:
    one = MLPRegressor(**SOME).fit(*numbers)
    x = numbers[0][:40]
    alone = [one.predict(x[n : n + count]) for count in (1, 2, 4, 7) for n in range(0, 28, count)]
    assert (np.concatenate(alone) == np.tile(one.predict(x[:28]), 4)).all()


def test_the_reference_gives_the_same_output(numbers: Both) -> None:
    x, y = numbers
    one = MLPRegressor((7, 5), activation="tanh", dtype="float64", max_iter=20, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"all max_iter=20 epochs were taken"):
        one.fit(x, y)
    h = x
    for weight, bias in zip(one.coefs_[:-1], one.intercepts_[:-1], strict=True):
        h = reference_activations.phi("tanh", h @ weight + bias)
    wanted = (h @ one.coefs_[-1] + one.intercepts_[-1]).ravel()
    assert one.predict(x) == pytest.approx(wanted, rel=1e-9)


@unfinished
def test_with_a_scaled_target(numbers: Both) -> None:
    x, y = numbers
    one = TransformedTargetRegressor(
        MLPRegressor(random_state=0, learning_rate_init=0.01), transformer=StandardScaler()
    )
    assert one.fit(x, 1e6 + 1e5 * y).score(x, 1e6 + 1e5 * y) > 0.9


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "lbfgs"}, "solver must be one of adam, sgd, not 'lbfgs'"),
        ({"activation": "rulu"}, r"activation must be one of logistic, .*did you mean relu"),
        ({"hidden_layer_sizes": (10, 0)}, "hidden_layer_sizes must be"),
        ({"alpha": -1.0}, "alpha must be at least 0, not -1.0"),
        ({"momentum": 1.5}, "momentum must be at least 0 and at most 1, not 1.5"),
        ({"learning_rate_init": 0.0}, "learning_rate_init must be above 0"),
        ({"learning_rate": "falling"}, "learning_rate must be one of constant"),
        ({"max_iter": 0}, "max_iter must be above 0"),
        ({"clip": "global_norm:1"}, "clip must be a number, .*, or None, not 'global_norm:1'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"on_finding": "shout"}, "on_finding must be"),
        ({"early_stopping": True, "validation_fraction": 0.0}, "test_size"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_arguments_are_checked(arguments: Any, message: str, names: Both) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MLPClassifier(**arguments).fit(*names)


def test_what_cannot_be_fitted(names: Both) -> None:
    x, y = names
    with pytest.raises(ValueError, match="y must have two classes at least, not 1 class, 'setosa'"):
        MLPClassifier().fit(x[:50], y[:50])
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        MLPClassifier().fit(csr_array(x), y)
    with pytest.raises(ValueError, match="NaN"):
        MLPClassifier().fit(np.where(np.arange(len(x))[:, None] == 7, np.nan, x), y)
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(x)
    with pytest.warns(UserWarning, match="batch_size is 1000, but there are 150 rows"):
        MLPClassifier(batch_size=1000, tol=1.0, random_state=0).fit(x, y)


def test_a_fit_tells_what_is_wrong(numbers: Both) -> None:
    x, y = numbers
    with pytest.warns(FindingWarning, match="the targets are"):
        MLPRegressor(max_iter=30, random_state=0, tol=1e12).fit(x, 1e6 + 1e5 * y)
    with pytest.raises(FindingError, match="the targets are"):
        MLPRegressor(on_finding="raise").fit(x, 1e6 + 1e5 * y)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_lost_are_an_error(numbers: Both) -> None:
    x, y = numbers
    with pytest.raises(ValueError, match="weights that are not finite: lower learning_rate_init"):
        MLPRegressor(solver="sgd", learning_rate_init=1e3, on_finding=None).fit(x, 1e6 * y)


def test_the_tables_of_the_docs_are_what_was_measured() -> None:
    """`python bench/estimators.py --markdown` makes them of the results."""
    root = Path(__file__).parents[2]
    page = root / "docs" / "how-to" / "scikit-learn.md"
    if not page.is_file():
        pytest.skip("an installed package has no site")
    found = json.loads((root / "bench/results/estimators.json").read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    for row in found["speed"]:
        numbers = [f"{row[name]:.3f} s" for name in ("scikit-learn", "vegrad")]
        line = [row["case"], row["X"], str(row["epochs"]), *numbers, f"{row['ratio']:.1f}"]
        assert f"| {' | '.join(line)} |\n" in text
    for row in found["learnt"]:
        pairs = [f"{row[n][0]:.4f} ± {row[n][1]:.4f}" for n in ("scikit-learn", "vegrad")]
        apart = "{:+.4f} ± {:.4f}".format(*row["difference"])
        assert f"| {' | '.join([row['case'], str(row['epochs']), *pairs, apart])} |\n" in text
