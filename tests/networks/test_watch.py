"""What `fit` finds while it trains, whom it tells, and what stays in the history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.diagnosis.alarms import FindingError, FindingWarning

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(300, 8))
LABELS = np.argmax(X[:, :3] + 0.3 * X[:, 3:6], axis=1)


def make(hidden: int = 2, **options: Any) -> vegrad.MLP:
    options = {"activation": "relu", "init": "he_normal", "seed": 0} | options
    return vegrad.MLP([8, *[24] * hidden, 3], loss="cross_entropy", **options)


def fit(net: vegrad.MLP, rate: Any = 0.05, x: Any = X, **options: Any) -> vegrad.History:
    options = {"epochs": 6, "batch_size": 20, "seed": 0, "progress": False} | options
    steps = options.pop("optimizer", None) or vegrad.SGD(rate)
    return net.fit(x, LABELS, optimizer=steps, **options)


def told(net: vegrad.MLP, rate: Any = 0.05, **options: Any) -> tuple[list[str], vegrad.History]:
    """The kinds of findings in the order in which they were told, and the history."""
    said: list[vegrad.Finding] = []
    history = fit(net, rate, on_finding=said.append, **options)
    return [finding.kind for finding in said], history


def kinds(history: vegrad.History) -> list[str]:
    return [finding.kind for finding in history.findings]


VANISHING = {"hidden": 20, "activation": "sigmoid", "init": "glorot_uniform"}


def test_a_good_training_is_told_nothing_of() -> None:
    for optimizer in (vegrad.SGD(0.05), vegrad.SGD(0.02, 0.9), vegrad.Adam(3e-3), vegrad.Lion()):
        said, history = told(make(), optimizer=optimizer, epochs=12)
        assert said == kinds(history) == []
        assert history.noted == ()


def test_a_vanishing_network_is_called_vanishing() -> None:
    said, history = told(make(**VANISHING), 0.01)
    assert said[0] == kinds(history)[0] == "vanishing"
    assert "overshooting" not in kinds(history)
    assert history.noted[0].step == 0
    stalled = history.findings[-1]
    assert stalled.kind == "stalled"
    assert stalled.edit is None  # no rate makes up for it
    assert "wanted" not in stalled.evidence


def test_dead_and_exploding_networks_are_called_so() -> None:
    dead = make()
    dead.parameters["layers.1.bias"][:] = -30
    assert kinds(told(dead)[1])[0] == "dead"
    wild = told(make(12, init="normal", sigma_w=4.0))[1]
    assert kinds(wild)[0] == "exploding"
    raw = told(make(), x=100 * X)[1]
    assert raw.findings[0].cause == "input-scale"
    assert kinds(told(make(activation="tanh"), x=100 * X)[1])[0] == "saturated"


def test_units_that_die_on_the_way_are_found_at_an_epochs_end() -> None:
    net = make()

    def kill(network: vegrad.MLP, history: vegrad.History) -> None:
        if history.epochs == 3:
            network.parameters["layers.1.bias"][:] = -1000

    said, history = told(net, epochs=10, callbacks=[kill])
    assert "dead" in said
    step = next(one.step for one in history.noted if one.finding.kind == "dead")
    assert step == 6 * 15  # the third epoch that was no better than a constant


def test_findings_outlive_the_process(tmp_path: Path) -> None:
    path, saved = tmp_path / "state", tmp_path / "history.json"
    net = make(**VANISHING)
    history = fit(net, epochs=2, checkpoint=path, on_finding=lambda _: None)
    history.save(saved)
    read = vegrad.History.from_dict(json.loads(saved.read_text()))
    said, resumed = told(make(**VANISHING), resume=path, epochs=3)
    for other in (read, resumed, vegrad.History.from_dict(history.to_dict())):
        first, again = history.findings[0], other.findings[0]
        assert again == first
        assert (again.message, again.advice) == (first.message, first.advice)
    assert "vanishing" not in said  # it was told before
    with pytest.raises(ValueError, match="noted finding must be"):
        vegrad.History.from_dict(history.to_dict() | {"noted": [{"step": 0}]})


def test_a_warning_once_for_each_cause() -> None:
    with pytest.warns(FindingWarning) as caught:
        fit(make(**VANISHING))
    said = [str(one.message).partition(":")[0] for one in caught]
    assert said == ["vanishing", "stalled"]
    assert {one.filename for one in caught} == {__file__}  # where `fit` is called


def test_an_error_has_finding_and_history() -> None:
    with pytest.raises(FindingError, match="vanishing: each layer") as error:
        fit(make(**VANISHING), on_finding="raise")
    assert error.value.finding.kind == "vanishing"
    assert error.value.history.steps == 0
    assert error.value.history.noted[0].finding == error.value.finding


@pytest.mark.parametrize("on_finding", ["stop", lambda finding: True])
def test_a_finding_may_end_it(on_finding: Any) -> None:
    history = fit(make(**VANISHING), on_finding=on_finding)
    assert history.steps < 20
    assert kinds(history)[0] == "vanishing"
    assert fit(make(**VANISHING), on_finding=lambda finding: False).epochs == 6


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match=r"on_finding must be a function, .* not 'shout'"):
        fit(make(), on_finding="shout")
    with pytest.raises(TypeError, match=r"on_finding must be a function, .* not int"):
        fit(make(), on_finding=3)


def test_a_divergence_is_foretold() -> None:
    """The rate doubles every forty steps, until steps no longer descend."""
    said: list[vegrad.Finding] = []
    history = fit(make(), lambda step: 0.02 * 2 ** (step / 40), epochs=30, on_finding=said.append)
    finding = said[0]
    assert (finding.kind, finding.cause) == ("overshooting", "learning-rate-high")
    assert finding.rule == "long-steps"
    high = np.flatnonzero(history.loss > 2 * history.loss[0])
    assert finding.evidence["seen"] <= high[0] - 5
    assert 0 < finding.evidence["wanted"] < finding.evidence["learning_rate"]
    assert finding in [one.finding for one in history.noted]


def test_steps_are_looked_at_closely_only_if_suspicious() -> None:
    good, wild = fit(make()), told(make(), 3.0)[1]
    assert good.watched is None
    assert np.flatnonzero(~np.isnan(good.alpha)).tolist() == [0]
    looked = np.flatnonzero(~np.isnan(wild.alpha))
    assert looked[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert told(make(), 3.0, gauge_every=None)[1].watched is None


def test_a_resume_looks_at_the_same_steps(tmp_path: Path) -> None:
    path, rate = tmp_path / "state", 0.7
    whole = told(make(), rate, epochs=6)[1]
    told(make(), rate, epochs=2, checkpoint=path)
    other = make()
    resumed = told(other, rate, epochs=6, resume=path)[1]
    np.testing.assert_array_equal(resumed.alpha, whole.alpha)
    assert resumed.met() == whole.met()


def test_a_value_that_is_none_is_found_where_it_is() -> None:
    """Not in the first batch; the loss becomes NaN with it, and nothing has grown before."""
    x = X.copy()
    x[250, 3] = np.nan
    history = told(make(), x=x, shuffle=False)[1]
    first = history.findings[0]
    assert (first.kind, first.cause) == ("nonfinite", "nonfinite-input")
    assert "overshooting" not in kinds(history)
    assert f"x[250, 3] is nan, the only such value in {len(X)} rows; the loss of" in first.message
    assert "nothing was run" not in first.message


def test_a_value_that_is_none_in_the_first_batch_has_its_place_among_all_rows() -> None:
    x = X.copy()
    x[7, 3] = x[260, 1] = np.nan
    history = told(make(), x=x, shuffle=False)[1]
    said = f"x[7, 3] is nan, the first of 2 such values in 2 of {len(X)} rows; the loss of a batch"
    assert said in history.findings[0].message
    assert history.findings[0].evidence["row"] == 7


def test_a_rate_far_too_high_is_the_cause_of_what_is_no_number() -> None:
    history = told(make(), 1e12)[1]
    assert history.findings[0].cause == "learning-rate-high"
    assert all(one.evidence.get("wanted", 1.0) > 0 for one in history.findings)
    with pytest.raises(vegrad.NonFiniteGradientError) as error:
        fit(
            make(),
            optimizer=vegrad.SGD(1e30, clip=vegrad.clipping.GlobalNorm(np.inf)),
            on_finding=lambda _: None,
        )
    findings = error.value.history.findings  # type: ignore[attr-defined]
    assert findings[0].cause == "learning-rate-high"


def test_a_rate_far_too_low_is_told_but_not_of_a_warm_up() -> None:
    said, history = told(make(), 1e-6)
    assert said == ["stalled"]
    assert history.findings[0].cause == "learning-rate-low"
    assert told(make(), vegrad.optim.warmup(0.05, 60), epochs=12)[0] == []


@pytest.mark.parametrize(("size", "causes"), [(300.0, "target-scale"), (1.0, None)])
def test_targets_that_are_large_are_to_blame(size: float, causes: str | None) -> None:
    net = vegrad.MLP([8, 16, 1], activation="relu", init="he_normal", seed=0)
    target = size * (X[:, 0] + X[:, 1] ** 2)
    said: list[vegrad.Finding] = []
    history = net.fit(X, target, optimizer=vegrad.SGD(0.05), epochs=5, batch_size=20, seed=0,
                      progress=False, on_finding=said.append)  # fmt: skip
    assert [one.cause for one in said][:1] == ([causes] if causes else [])
    assert [one.cause for one in history.findings][:1] == ([causes] if causes else [])
