"""Diagnoses of scikit-learn's perceptrons, before their fit and after it."""

import re

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
    make_regression,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from vegrad import sklearn as ours
from vegrad.sklearn.parts import Parts

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
CLASSES = (MLPClassifier, ours.MLPClassifier)
SETS = {"digits": load_digits, "iris": load_iris, "wine": load_wine, "cancer": load_breast_cancer}


def quiet(kind, **more):
    return more | ({"on_finding": None} if kind is ours.MLPClassifier else {})


@pytest.mark.parametrize("kind", CLASSES, ids=["theirs", "ours"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("name", SETS)
def test_ordinary_ones_are_healthy_before_and_after(kind, activation, name) -> None:
    x, y = SETS[name](return_X_y=True)
    scaler = MinMaxScaler() if name == "digits" else StandardScaler()
    for sizes in ((100,), (30, 20)):
        one = kind(sizes, activation=activation, random_state=0, **quiet(kind))
        pipe = make_pipeline(scaler, one)
        before = ours.diagnose(pipe, x, y)
        assert before.healthy, before
        after = ours.diagnose(pipe.fit(x, y), x, y)
        assert after.healthy, after


@pytest.mark.parametrize("kind", CLASSES, ids=["theirs", "ours"])
def test_raw_columns(kind) -> None:
    x, y = load_wine(return_X_y=True)
    one = kind(random_state=0, max_iter=5, **quiet(kind))
    for estimator in (one, clone(one).fit(x, y)):
        found = ours.diagnose(estimator, x, y)
        assert (found.verdict, found.findings[0].cause) == ("exploding", "input-scale")
        assert found.findings[0].advice.startswith(
            "put a StandardScaler before it: make_pipeline(StandardScaler(), …)"
        )
        assert "coefs_[0]" in found.findings[0].advice


def test_a_deep_one_of_logistic_units() -> None:
    x, y = load_digits(return_X_y=True)
    one = MLPClassifier((40,) * 6, activation="logistic", random_state=0)
    found = ours.diagnose(one, x / 16, y)
    assert (found.verdict, found.findings[0].cause) == ("vanishing", "activation-derivative")
    assert 'use activation="relu", or use activation="tanh"' in found.findings[0].advice
    assert "logistic, scikit-learn, cross_entropy" in str(found)
    own = ours.MLPClassifier((40,) * 6, activation="logistic", random_state=0)
    assert 'with init="he_normal"' in ours.diagnose(own, x / 16, y).findings[0].advice


def test_an_unscaled_target() -> None:
    x, y = make_regression(500, 8, random_state=0)
    y = 2e5 + 1e3 * y
    one = MLPRegressor(random_state=0, max_iter=200)
    for estimator in (one, clone(one).fit(x, y)):
        found = ours.diagnose(estimator, x, y).findings[0]
        assert found.cause == "target-scale"
        assert "TransformedTargetRegressor(…, transformer=StandardScaler())" in found.advice
    scaled = TransformedTargetRegressor(one, transformer=StandardScaler())
    assert ours.diagnose(scaled, x, y).healthy
    assert ours.diagnose(scaled.fit(x, y), x, y).healthy


def test_a_fit_that_went_nowhere_and_one_that_went_too_far() -> None:
    x, y = load_digits(return_X_y=True)
    slow = MLPClassifier(solver="sgd", learning_rate_init=1e-5, random_state=0, max_iter=40)
    assert ours.diagnose(slow, x / 16, y).healthy
    found = ours.diagnose(slow.fit(x / 16, y), x / 16, y)
    assert found.verdict == "stalled"
    assert "in 360 steps" in found.summary  # 9 in each of 40 epochs
    wild = MLPClassifier(solver="sgd", learning_rate_init=0.5, random_state=0, max_iter=30)
    found = ours.diagnose(wild.fit(x, y), x, y)
    assert {"dead", "overshooting", "exploding"} & {one.kind for one in found.findings}


@pytest.mark.parametrize("kind", CLASSES, ids=["theirs", "ours"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("numeric", [False, True], ids=["classes", "numbers"])
def test_a_rate_that_is_far_too_low_is_named_and_another_tried(kind, solver, numeric) -> None:
    x, y = (load_diabetes if numeric else load_breast_cancer)(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std() if numeric else y
    more = quiet(kind)
    kind = {MLPClassifier: MLPRegressor}.get(kind, ours.MLPRegressor) if numeric else kind
    one = kind(solver=solver, learning_rate_init=1e-7, random_state=0, **more).fit(x, y)
    found = ours.diagnose(one, x, y).findings[0]
    assert (found.kind, found.cause) == ("stalled", "learning-rate-low")
    assert found.evidence["steps"] == 3 * one.n_iter_  # it ended by tol
    assert found.evidence["fell"] > 10 > found.evidence["little"]
    rate = float(re.match(r"set learning_rate_init=([\d.e-]+): tried", found.advice)[1])
    again = clone(one).set_params(learning_rate_init=rate).fit(x, y)
    assert again.loss_ < 0.6 * one.loss_
    assert not ours.diagnose(again, x, y).findings


def test_a_fit_of_a_few_steps_tells_of_its_rate_too() -> None:
    """Of 150 rows tol ends a fit after 12 steps."""
    x, y = load_iris(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    for rate, cause in ((1e-8, "learning-rate-low"), (1e-3, None), (0.01, None)):
        one = MLPClassifier(learning_rate_init=rate, max_iter=12, random_state=0).fit(x, y)
        causes = [found.cause for found in ours.diagnose(one, x, y).findings]
        assert causes == ([cause] if cause else [])


@pytest.mark.parametrize("kind", CLASSES, ids=["theirs", "ours"])
def test_fits_in_several_calls(kind) -> None:
    x, y = load_digits(return_X_y=True)
    warm = kind(learning_rate_init=1e-7, warm_start=True, random_state=0, **quiet(kind))
    for one in (warm.fit(x / 16, y).fit(x / 16, y), clone(warm)):
        for _ in range(30):
            one.partial_fit(x / 16, y, **({} if one is warm else {"classes": np.arange(10)}))
        found = ours.diagnose(one, x / 16, y).findings
        assert [one.cause for one in found] == ["learning-rate-low"]


@pytest.mark.parametrize("kind", CLASSES, ids=["theirs", "ours"])
def test_a_rate_that_falls_too_fast(kind) -> None:
    x, y = load_digits(return_X_y=True)
    more = {"learning_rate": "invscaling", "random_state": 0, **quiet(kind)}
    one = kind(solver="sgd", learning_rate_init=1e-3, **more).fit(x / 16, y)
    found = ours.diagnose(one, x / 16, y).findings[0]
    assert found.kind == "stalled"
    assert "hold the learning rate as it begins: with 0.001 throughout" in found.advice
    again = clone(one).set_params(learning_rate="constant").fit(x / 16, y)
    assert again.loss_ < 0.5 * one.loss_


def test_raw_columns_come_before_the_steps_that_they_make_too_long() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((100, 2000))
    y, x = (x[:, 0] + x[:, 1] > 0).astype(int), x * 10 ** random.uniform(-3, 5, 2000)
    one = MLPClassifier(solver="sgd", random_state=0).fit(x, y)
    found = ours.diagnose(one, x, y).findings
    assert [one.cause for one in found] == ["input-scale", "learning-rate-high"]
    assert ours.diagnose(make_pipeline(StandardScaler(), clone(one)).fit(x, y), x, y).healthy


def test_a_fit_that_stalled_by_no_cause_is_told_of_its_data() -> None:
    x, y = np.random.default_rng(0).standard_normal((2000, 4)), np.arange(2000) % 2
    for sizes, rate in (((5,), 0.01), ((100,), 0.001)):
        one = MLPClassifier(sizes, random_state=0, learning_rate_init=rate, max_iter=50).fit(x, y)
        found = ours.diagnose(one, x, y).findings[0]
        assert (found.kind, found.cause) == ("stalled", "")
        assert found.advice.startswith("the target looks independent of x: ")


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("numeric", [False, True], ids=["classes", "numbers"])
def test_a_penalty_that_lets_nothing_be_learnt(solver, numeric) -> None:
    x, y = (load_diabetes if numeric else load_breast_cancer)(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), (y - y.mean()) / y.std() if numeric else y
    kind = MLPRegressor if numeric else MLPClassifier
    one = kind(solver=solver, alpha=1000.0, random_state=0).fit(x, y)
    found = ours.diagnose(one, x, y).findings
    assert [one.cause for one in found] == ["weight-decay"]
    assert "alpha has shrunk the weights, coefs_[0] to " in found[0].message
    if solver == "lbfgs":  # of which no step could be tried
        assert found[0].advice == "lower alpha."
        return
    alpha = float(re.match(r"set alpha=([\d.]+): tried", found[0].advice)[1])
    again = clone(one).set_params(alpha=alpha).fit(x, y)
    assert again.score(x, y) > one.score(x, y) + 0.3
    assert ours.diagnose(again, x, y).healthy


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 10.0, 100.0])
def test_a_penalty_is_no_finding_where_it_regularizes_or_there_is_nothing_to_learn(alpha) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    noise = np.random.default_rng(0)
    for data in (
        (StandardScaler().fit_transform(x), y),
        (noise.standard_normal((400, 10)), noise.integers(0, 2, 400)),
    ):
        one = MLPClassifier(alpha=alpha, random_state=0).fit(*data)
        assert ours.diagnose(one, *data).healthy


def test_the_weights_before_a_fit_are_those_that_it_begins_with() -> None:
    x, y = load_iris(return_X_y=True)
    one = MLPClassifier((7, 5), random_state=4, early_stopping=True, solver="lbfgs")
    begun = Parts(one).begun(x, y, 0)
    still = MLPClassifier(
        (7, 5), random_state=4, solver="sgd", learning_rate_init=1e-300, max_iter=1
    ).fit(x, y)
    assert all((a == b).all() for a, b in zip(begun.coefs_, still.coefs_, strict=True))
    assert not hasattr(one, "coefs_")
    assert begun.get_params() == one.get_params()
    free = MLPClassifier((7, 5))
    losses = [ours.diagnose(free, x, y, seed=seed).loss for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_reading_is_that_of_the_estimator() -> None:
    """Loss and predictions of the network that is read are the estimator's own."""
    x, y = load_iris(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    one = MLPClassifier((9, 8), activation="logistic", random_state=0, alpha=0.0).fit(x, y)
    found = ours.diagnose(one, x, y)
    own = -np.log(one.predict_proba(x)[np.arange(len(y)), y]).mean()
    assert found.loss == pytest.approx(own, rel=1e-9)
    assert list(found.reading.parameters) == [
        f"{part}_[{n}]" for n in range(3) for part in ("coefs", "intercepts")
    ]


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_nothing_is_changed(solver) -> None:
    x, y = load_iris(return_X_y=True)
    one = MLPClassifier((5,), solver=solver, random_state=0, max_iter=5).fit(x, y)
    before = [w.copy() for w in one.coefs_], one.get_params()
    ours.diagnose(one, x, y)
    ours.cure(clone(one).set_params(solver="adam"), x, y, steps=20)
    assert all((a == b).all() for a, b in zip(one.coefs_, before[0], strict=True))
    assert one.get_params() == before[1]


def test_a_weak_layer_is_mended_in_place() -> None:
    x, y = load_digits(return_X_y=True)
    one = MLPClassifier((50,) * 5, activation="tanh", random_state=0, max_iter=3).fit(x / 16, y)
    one.coefs_[3] *= 1e-4
    pipe = make_pipeline(StandardScaler(), one)
    found = ours.diagnose(one, x / 16, y)
    assert "multiply coefs_[3] by" in found.findings[0].advice
    assert found.apply(one) == ("coefs_[3]",)
    assert ours.diagnose(one, x / 16, y).healthy
    assert pipe[-1] is one
    assert ours.diagnose(clone(one), x / 16, y).apply(one) is None


def test_what_is_no_perceptron() -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.raises(TypeError, match="MLPRegressor or a Pipeline that ends in one, not Logis"):
        ours.diagnose(make_pipeline(StandardScaler(), LogisticRegression()), x, y)
    with pytest.raises(TypeError, match=r"estimator is a class: write MLPClassifier\(\)"):
        ours.diagnose(MLPClassifier, x, y)
    with pytest.raises(TypeError, match="not GridSearchCV: give its best_estimator_"):
        ours.diagnose(GridSearchCV(MLPClassifier(), {}), x, y)
    if "loss" in MLPRegressor().get_params():
        with pytest.raises(ValueError, match='vegrad has no loss "poisson"'):
            ours.diagnose(MLPRegressor(loss="poisson"), x, y)
    with pytest.raises(ValueError, match="wieght-scale"):
        ours.diagnose(MLPClassifier(), x, y, ignore=["wieght-scale"])


def scaled(estimator):
    return make_pipeline(StandardScaler(), estimator)


def flows():
    """Columns as of network traffic: bytes, ports, lengths, shares, protocols."""
    random = np.random.default_rng(0)
    table = [random.lognormal(8, 2, 800), random.integers(0, 65536, 800)]
    table += [random.integers(20, 1500, 800), random.random(800), random.integers(6, 18, 800)]
    return np.stack(table, axis=1), (np.log(table[0]) + 2 * table[3] > 9).astype(int)


def points():
    x = np.random.default_rng(0).integers(0, 10001, (800, 2)) / 100
    return x, (((x - 50) ** 2).sum(axis=1) < 900).astype(int)


def embedded():
    random = np.random.default_rng(0)
    x = random.standard_normal((600, 768)) / 28
    return x, (x @ random.standard_normal((768, 29))).argmax(axis=1)


# Settings that people have published with their programs, on data that are like theirs.
PUBLISHED = {
    "three logistic layers": (
        scaled(MLPClassifier((30, 30, 30), activation="logistic", max_iter=1000, random_state=0)),
        lambda: load_breast_cancer(return_X_y=True),
        "",
    ),
    "lbfgs, five and two units": (
        scaled(MLPClassifier((5, 2), solver="lbfgs", alpha=1e-5, random_state=1)),
        lambda: load_breast_cancer(return_X_y=True),
        "",
    ),
    "a slow adaptive rate": (
        scaled(
            MLPClassifier(
                solver="sgd", learning_rate="adaptive", learning_rate_init=1e-4, random_state=1
            )
        ),
        lambda: load_iris(return_X_y=True),
        "",
    ),
    "a last layer as wide as the classes": (
        make_pipeline(MinMaxScaler(), MLPClassifier((64, 32, 10), solver="sgd", random_state=1999)),
        lambda: load_digits(return_X_y=True),
        "",
    ),
    "traffic as it comes": (
        MLPClassifier((20, 4), solver="sgd", max_iter=500, random_state=0),
        flows,
        "input-scale",
    ),
    "the same, scaled": (
        scaled(MLPClassifier((20, 4), solver="sgd", max_iter=500, random_state=0)),
        flows,
        "",
    ),
    "points from 0 to 100": (
        MLPClassifier((8, 2), activation="logistic", learning_rate_init=0.1, random_state=7),
        points,
        "input-scale",
    ),
    "logistic layers on embeddings": (
        MLPClassifier((768, 384, 192, 29), activation="logistic", random_state=2),
        embedded,
        "activation-derivative",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name) -> None:
    estimator, data, cause = PUBLISHED[name]
    found = ours.diagnose(estimator, *data())
    assert [one.cause for one in found.findings][:1] == ([cause] if cause else []), found
