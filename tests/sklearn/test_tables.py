"""Tables that no network can take: what is said of them, by whatever is given them."""

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pytest.importorskip("pandas")
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from vegrad import sklearn as ours

ROWS = 40


@pytest.fixture
def houses() -> "pd.DataFrame":
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "rooms": random.integers(1, 6, ROWS).astype(float),
            "city": np.resize(["Rome", "Oslo", "Bern"], ROWS),
            "sold": pd.date_range("2024-01-01", periods=ROWS),
            "garden": np.full(ROWS, np.nan),
            "age": random.normal(0, 1, ROWS),
        }
    )


Y = np.arange(ROWS) % 2
TOOLS = {
    "diagnose": lambda x, y: ours.diagnose(MLPClassifier(), x, y),
    "cure": lambda x, y: ours.cure(MLPClassifier(), x, y),
    "fit": lambda x, y: ours.MLPClassifier(max_iter=1).fit(x, y),
}
each_tool = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)


@each_tool
def test_all_wrong_columns_are_named_in_one_error(tool, houses) -> None:
    wanted = (
        r"X has columns that are no numbers: 'city' \('Rome'\), 'sold' \(2024-01-01 00:00:00\): "
        r"encode them \(OneHotEncoder, OrdinalEncoder\) or leave them out; "
        r"X has columns without any value, only NaN: 'garden': leave them out"
    )
    with pytest.raises(ValueError, match=wanted):
        tool(houses, Y)


@each_tool
def test_a_table_without_numbers(tool, houses) -> None:
    with pytest.raises(ValueError, match=r"X has no column of numbers, only 'city' \('Rome'\)"):
        tool(houses[["city"]], Y)
    with pytest.raises(ValueError, match=r"X has no column of numbers, only 0 \('Rome'\)"):
        tool(houses[["city"]].to_numpy(), Y)


@each_tool
def test_a_column_without_values(tool) -> None:
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="without any value, only NaN: 1: leave them out"):
        tool(x, Y)


@each_tool
def test_one_class(tool) -> None:
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    with pytest.raises(ValueError, match="y must have two classes at least, not 1 class, 'yes'"):
        tool(x, np.full(ROWS, "yes"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@each_tool
@pytest.mark.parametrize("labels", [Y, np.where(Y, "b", "a")], ids=["numbers", "strings"])
@pytest.mark.parametrize("opposite", [False, True])
def test_the_target_among_the_columns(tool, labels, opposite, houses) -> None:
    x = houses[["rooms", "age"]].assign(answer=1 - Y if opposite else Y)
    with pytest.warns(UserWarning, match="X has the target among its columns: 'answer'; for rows"):
        tool(x, labels)


def test_the_target_among_numbers() -> None:
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    with pytest.warns(UserWarning, match="X has the target among its columns: 2; for rows"):
        ours.diagnose(MLPRegressor(), x, x[:, 2])
    nearly = x[:, 2].copy()
    nearly[5] += 1e-3
    ours.diagnose(MLPRegressor(), x, nearly)  # no warning


@pytest.mark.filterwarnings("ignore:Skipping features without any observed values")
def test_steps_before_the_network_may_make_numbers_of_it(houses) -> None:
    city = make_pipeline(OneHotEncoder(sparse_output=False), MLPClassifier())
    assert ours.diagnose(city, houses[["city"]], Y).config["sizes"][0] == 3
    filled = make_pipeline(SimpleImputer(), MLPClassifier())
    assert ours.diagnose(filled, houses[["rooms", "garden", "age"]], Y).config["sizes"][0] == 2


def test_single_values_that_are_missing_are_a_finding(houses) -> None:
    x = houses[["rooms", "age"]].copy()
    x.loc[7, "age"] = np.nan
    finding = ours.diagnose(MLPClassifier(), x, Y).findings[0]
    assert (finding.cause, finding.sites[0].rows) == ("nonfinite-input", (7, 1))
    assert "X" in finding.message
    outcome = ours.cure(MLPClassifier(), x, Y)
    assert not outcome.reached
    assert outcome.about == ("no change of the estimator makes up for values that are not finite",)


def test_masked_arrays_are_refused() -> None:
    """scikit-learn takes them, and what is masked with the rest."""
    x, mask = np.random.default_rng(0).normal(size=(ROWS, 2)), np.eye(ROWS, 2, dtype=bool)
    masked, y = np.ma.masked_array(x, mask), x.sum(axis=1)
    said = "must be a plain array, not a MaskedArray"
    made = ours.MLPRegressor((4,), max_iter=2)
    for call in (
        lambda: made.fit(masked, y),
        lambda: made.partial_fit(masked, y),
        lambda: ours.diagnose(made, masked, y),
        lambda: ours.cure(MLPRegressor((4,), max_iter=2), masked, y),
    ):
        with pytest.raises(TypeError, match=f"X {said}"):
            call()
    with pytest.raises(TypeError, match=f"y {said}"):
        made.fit(x, np.ma.masked_array(y, mask[:, 0]))
    made.partial_fit(x, y)
    with pytest.raises(TypeError, match=f"X {said}"):
        made.predict(masked)
