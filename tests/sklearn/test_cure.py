"""Cures of scikit-learn's perceptrons: the patch is code of its own, which is run here."""

import re

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_regression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler
from vegrad import History
from vegrad import sklearn as ours
from vegrad.sklearn.subject import EstimatorSubject

from tests.patches import run_as_file

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def patched(outcome, estimator, x, y):
    """Run the patch on a copy of what was given; return the fitted estimator."""
    names = run_as_file(outcome.patch, estimator=clone(estimator), X=x, y=y)
    return names["estimator"]


def test_raw_columns_get_a_scaler() -> None:
    x, y = load_wine(return_X_y=True)
    given = MLPClassifier(random_state=0)
    outcome = ours.cure(given, x, y)
    assert outcome.cured
    assert "estimator = make_pipeline(StandardScaler(), estimator)\n" in outcome.patch
    assert outcome.patch.endswith("estimator.fit(X, y)\n")
    assert isinstance(outcome.estimator, Pipeline)
    one = patched(outcome, given, x, y)
    assert one.score(x, y) > 0.95
    again = outcome.estimator.fit(x, y)  # the same to the bit
    assert all((a == b).all() for a, b in zip(one[-1].coefs_, again[-1].coefs_, strict=True))


def test_a_pipeline_gets_its_scaler_before_the_last_step() -> None:
    x, y = load_wine(return_X_y=True)
    given = Pipeline([("squares", PolynomialFeatures(2)), ("net", MLPClassifier(random_state=0))])
    outcome = ours.cure(given, x, y)
    assert 'estimator.steps.insert(-1, ("standardscaler", StandardScaler()))' in outcome.patch
    one = patched(outcome, given, x, y)
    assert list(one.named_steps) == ["squares", "standardscaler", "net"]
    assert one.score(x, y) > 0.95
    assert list(given.named_steps) == ["squares", "net"]


def test_logistic_layers_get_another_activation(digits) -> None:
    given = make_pipeline(
        MinMaxScaler(), MLPClassifier((30,) * 6, activation="logistic", random_state=0)
    )
    outcome = ours.cure(given, *digits)
    assert outcome.cured
    assert outcome.patch == (
        '# set activation="relu"\n'
        'estimator.set_params(mlpclassifier__activation="relu")\n'
        "estimator.fit(X, y)\n"
    )
    assert patched(outcome, given, *digits).score(*digits) > 0.95


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_learning_rate_that_is_too_high(solver, digits) -> None:
    given = MLPClassifier(random_state=1, learning_rate_init=1.0, solver=solver)
    outcome = ours.cure(given, *digits)
    assert outcome.cured
    assert outcome.patch.count("estimator.set_params(learning_rate_init=") == 1
    one = patched(outcome, given, *digits)
    assert one.learning_rate_init < 0.5
    assert one.score(*digits) > 0.95


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("data", [load_breast_cancer, load_digits])
def test_a_penalty_that_is_too_large(solver, data) -> None:
    x, y = data(return_X_y=True)
    x = StandardScaler().fit_transform(x) if data is load_breast_cancer else x
    given = MLPClassifier(random_state=1, alpha=1000.0, solver=solver)
    outcome = ours.cure(given, x, y)
    assert outcome.cured, outcome
    assert "estimator.set_params(alpha=" in outcome.patch
    assert patched(outcome, given, x, y).score(x, y) > 0.95 > given.fit(x, y).score(x, y)


def test_an_unscaled_target_is_scaled_and_back_again() -> None:
    x, y = make_regression(600, 8, noise=5, random_state=0)
    x, y = 100 * x + 500, 2e5 + 1e3 * y
    given = MLPRegressor(random_state=1, max_iter=300)
    outcome = ours.cure(given, x, y)
    assert outcome.cured
    assert "TransformedTargetRegressor(estimator, transformer=StandardScaler())" in outcome.patch
    one = patched(outcome, given, x, y)
    assert one.score(x, y) > 0.9
    assert abs(one.predict(x).mean() / y.mean() - 1) < 0.1
    assert ours.diagnose(one, x, y).healthy
    assert outcome.goal.guess == pytest.approx(y.var(), rel=1e-6)  # in the target's own units


def test_several_numbers_are_scaled_each_by_itself() -> None:
    x, y = make_regression(400, 6, n_targets=2, noise=1.0, random_state=0)
    y = y * [1e4, 1.0] + [1e6, 3.0]
    given = MLPRegressor(random_state=0, max_iter=300)
    outcome = ours.cure(given, x, y)
    assert outcome.cured
    assert "transformer=StandardScaler()" in outcome.patch
    one = patched(outcome, given, x, y)
    assert one.score(x, y) > 0.9  # the mean of both columns' R²


def test_a_fitted_one_is_cured_from_its_beginning(digits) -> None:
    given = MLPClassifier((30,) * 6, activation="logistic", random_state=0, max_iter=2)
    fresh, fitted = ours.cure(given, *digits), ours.cure(given.fit(*digits), *digits)
    assert fresh.patch == fitted.patch


def test_with_warm_start_the_weights_are_changed(digits) -> None:
    given = MLPClassifier(
        (40,) * 5, activation="tanh", solver="sgd", random_state=0, max_iter=1, warm_start=True
    ).fit(*digits)
    given.coefs_[3] *= 1e-5
    weak = given.coefs_[3].copy()
    outcome = ours.cure(given, *digits)
    assert outcome.cured, outcome
    assert "estimator.coefs_[3][...] *= " in outcome.patch
    assert (given.coefs_[3] == weak).all()
    run_as_file(outcome.patch, estimator=given.set_params(max_iter=100), X=digits[0], y=digits[1])
    assert given.score(*digits) > 0.9


def test_vegrads_own_have_more_to_change(digits) -> None:
    given = ours.MLPClassifier((40,) * 30, random_state=0, on_finding=None, max_iter=40)
    outcome = ours.cure(given, *digits)
    assert outcome.cured, outcome
    assert 'estimator.set_params(init="' in outcome.patch
    assert patched(outcome, given, *digits).score(*digits) > 0.8
    other = MLPClassifier((40,) * 30, random_state=0)
    assert "MLPClassifier has no argument for it" in {
        one.why for one in ours.cure(other, *digits).attempts
    }


def test_what_trains_is_left_alone(digits) -> None:
    given = MLPClassifier(random_state=0)
    outcome = ours.cure(given, *digits)
    assert (outcome.reached, outcome.cured, outcome.patch) == (True, False, "")
    assert "the estimator reaches accuracy" in outcome.summary
    assert outcome.estimator.get_params() == given.get_params()


@pytest.mark.parametrize(
    ("settings", "told", "advice"),
    [
        ({"tol": 10.0, "n_iter_no_change": 1}, r"by tol=10\.0, n_iter_no_change=1,", "lower tol"),
        ({"max_iter": 1}, r"after 1 epoch, by max_iter=1, short of accuracy", "raise max_iter"),
    ],
    ids=["tol", "max_iter"],
)
@pytest.mark.parametrize("kind", [MLPClassifier, ours.MLPClassifier])
def test_a_fit_that_ends_before_the_goal_is_no_success(kind, settings, told, advice) -> None:
    x, y = load_digits(return_X_y=True)
    given = make_pipeline(StandardScaler(), kind((50,), random_state=0, **settings))
    outcome = ours.cure(given, x, y)
    assert (outcome.reached, outcome.cured, outcome.patch) == (False, False, "")
    assert re.search(told, outcome.summary)
    assert advice in outcome.about[0]
    assert clone(outcome.estimator).fit(x, y).score(x, y) < outcome.goal.wanted
    enough = clone(given).set_params(**{f"{given.steps[-1][0]}__{n}": {
        "tol": 1e-4, "n_iter_no_change": 10, "max_iter": 200}[n] for n in settings})  # fmt: skip
    assert ours.cure(enough, x, y).reached


def test_a_change_whose_fit_ends_before_the_goal_is_no_cure() -> None:
    x, y = load_wine(return_X_y=True)
    outcome = ours.cure(MLPClassifier(random_state=0, max_iter=3), x, y)
    assert not outcome.cured
    assert re.match("improved, but fit ends after 3 epochs, by max_iter=3, short", outcome.summary)
    assert "StandardScaler" in outcome.patch


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_held_to_their_fit(targets: int) -> None:
    x, y = make_regression(400, 6, n_targets=targets, noise=1.0, random_state=0)
    y = y / y.std(axis=0)
    for most, reached in ((3, False), (300, True)):
        given = MLPRegressor(random_state=0, max_iter=most)
        assert ours.cure(given, x, y).reached == reached


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("columns", [10, 2000])
def test_what_is_only_learnt_by_heart_is_no_cure(kind, columns) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((300, columns))
    y = random.standard_normal(300) if kind is MLPRegressor else random.integers(0, 2, 300)
    rate = 1e-3 if kind is MLPClassifier else 1e-4
    outcome = ours.cure(kind(random_state=0, learning_rate_init=rate), x, y)
    assert not outcome.cured
    assert outcome.about[0].startswith("learnt by heart: trained on 225 rows, it gets ")
    assert outcome.reached
    assert outcome.by_heart == bool(outcome.patch)
    assert ("but only by heart" in outcome.summary) == outcome.by_heart


def test_a_gradient_that_is_put_right_is_cured_whatever_there_is_to_learn() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((300, 2000)), random.integers(0, 2, 300)
    x *= 10 ** random.uniform(-3, 5, 2000)
    outcome = ours.cure(MLPClassifier(random_state=0, solver="sgd"), x, y)
    assert outcome.cured, outcome
    assert "exploding → healthy: put a StandardScaler before it" in outcome.summary
    assert outcome.about[0].startswith("learnt by heart: ")


def test_a_rare_class_is_not_called_independent() -> None:
    """No fit gets more rows right than always the other class, and they know of it all the same."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1000, 8))
    far = x[:, 0] + 0.8 * random.standard_normal(1000)
    y = (far > np.quantile(far, 0.95)).astype(int)
    for rate in (1e-3, 1e-5):
        outcome = ours.cure(MLPClassifier(random_state=0, learning_rate_init=rate), x, y)
        assert "by heart" not in str(outcome)
        assert "independent" not in str(outcome)


@pytest.mark.parametrize("numbers", [False, True])
def test_what_plain_fits_miss_may_carry_over(numbers) -> None:
    """Neither a line nor neighbours know which of two halves a sum of squares is in."""
    x = np.random.default_rng(0).standard_normal((1500, 12))
    y = np.prod(x[:, :2], axis=1)
    y = y / y.std() if numbers else (y > 0).astype(int)
    kind = MLPRegressor if numbers else MLPClassifier
    outcome = ours.cure(kind(random_state=0, learning_rate_init=1e-4), x, y)
    assert outcome.cured, outcome
    assert not outcome.about


def test_steps_of_a_trial_are_those_of_the_estimator(digits) -> None:
    """The proof's loss is that of scikit-learn's own steps on the same rows."""
    x, y = digits
    given = MLPClassifier(random_state=0, solver="sgd", learning_rate_init=0.1, alpha=0.1)
    subject = EstimatorSubject.of(given, x, y, 0)
    history = History()
    trainer = subject.trainer(history, batch_size=200, gauge_every=100, seed=0)
    order = np.random.default_rng(0).permutation(len(x))[:1600].reshape(8, 200)
    trainer.advance(order)
    own = clone(given)
    losses = [own.partial_fit(x[rows], y[rows], classes=np.unique(y)).loss_ for rows in order]
    norms = 0.05 * 0.1 / 200  # of the weights, as scikit-learn adds them to its loss
    assert history.loss == pytest.approx(losses, abs=norms * 1e3, rel=2e-2)


def test_wrong_use(digits) -> None:
    with pytest.raises(ValueError, match='"lbfgs" takes no steps to be tried'):
        ours.cure(MLPClassifier(solver="lbfgs"), *digits)
    with pytest.raises(ValueError, match="goal must be above 0 and at most 1"):
        ours.cure(MLPClassifier(), *digits, goal=1.5)
    with pytest.raises(ValueError, match="budget"):
        ours.cure(MLPClassifier(), *digits, budget=0.5)
