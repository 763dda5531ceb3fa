"""Diagnosis.apply does what the advice says, in place, or nothing."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import vegrad
from vegrad.flow.edits import Normalize, Redraw, Scale
from vegrad.flow.finding import Finding

RNG = np.random.default_rng(3)
X, LABELS = RNG.standard_normal((128, 16)), RNG.integers(0, 4, 128)


def network(**options: object) -> vegrad.MLP:
    options = {"activation": "tanh", "init": "lecun_normal", "loss": "cross_entropy"} | options
    return vegrad.MLP([16, *[32] * 15, 4], seed=0, **options)  # type: ignore[arg-type]


def times(factor: float, *layers: int) -> Callable[[vegrad.MLP], None]:
    def edit(net: vegrad.MLP) -> None:
        for layer in layers or range(16):
            net.parameters[f"layers.{layer}.weight"][...] *= factor

    return edit


def push(net: vegrad.MLP) -> None:
    net.parameters["layers.5.bias"][...] += 40.0


def pierce(net: vegrad.MLP) -> None:
    net.parameters["layers.2.weight"][1, 1] = np.nan


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        (times(1e-4, 7), ("layers.7.weight",)),
        (times(0.5), tuple(f"layers.{n}.weight" for n in range(1, 16))),
        (push, ("layers.5.bias",)),
        (pierce, ("layers.2.weight",)),
    ],
    ids=["one layer", "all layers", "biases", "nan"],
)
def test_the_first_advice_is_done_in_place(
    fault: Callable[[vegrad.MLP], None], changed: tuple[str, ...]
) -> None:
    net = network()
    fault(net)
    found = vegrad.diagnose(net, X, LABELS)
    assert not found.healthy
    assert found.apply(net) == changed
    assert vegrad.diagnose(net, X, LABELS).healthy


def test_nothing_is_done_where_there_is_nothing_to_do() -> None:
    net = network()
    before = {name: value.copy() for name, value in net.parameters.items()}
    healthy = vegrad.diagnose(net, X, LABELS)
    assert healthy.apply(net) is None
    sick = vegrad.diagnose(network(activation="sigmoid", init="glorot_uniform"), X, LABELS)
    assert sick.findings[0].edit is not None
    assert sick.apply(net) is None  # another activation is another network
    unusable = vegrad.diagnose(net, np.full_like(X, np.nan), LABELS)
    assert unusable.apply(net) is None
    assert vegrad.diagnose_gradients(net.gradients).apply(net) is None
    for name, value in net.parameters.items():
        np.testing.assert_array_equal(value, before[name])


def test_a_finding_of_choice_and_what_it_does_not_fit() -> None:
    net = network()
    found = vegrad.diagnose(net, X, LABELS)
    given = Finding(kind="vanishing", severity="warning", edit=Scale(("layers.0.weight",), 2.0))
    before = net.parameters["layers.0.weight"].copy()
    assert found.apply(net, given) == ("layers.0.weight",)
    np.testing.assert_array_equal(net.parameters["layers.0.weight"], 2 * before)
    assert found.apply(net, replace(given, edit=Scale(("nobody.weight",), 2.0))) is None
    assert found.apply(net, replace(given, edit=Normalize())) is None
    assert found.apply(net, replace(given, edit=Redraw(("layers.0.weight",))))
    with pytest.raises(TypeError, match=r"must be a vegrad.MLP, not dict"):
        found.apply({}, given)
    with pytest.raises(TypeError, match=r"must be a vegrad.MLP, not NoneType"):
        replace(found, findings=()).apply(None)  # also where there is nothing to do


def test_what_changes_nothing_is_not_said_to_be_changed() -> None:
    net = network()
    found = vegrad.diagnose(net, X, LABELS)
    same = Finding(kind="vanishing", severity="warning", edit=Redraw(("layers.3.weight",)))
    assert found.apply(net, same) is None  # as it was drawn from the network's seed
    with pytest.raises(TypeError, match=r"finding must be a vegrad.Finding, not str"):
        found.apply(net, "vanishing")  # type: ignore[arg-type]


def test_numbers_beyond_floats_are_written_and_no_edit() -> None:
    gradients = {f"l{n}.weight": np.ones((3, 3)) * (1e-300 if n < 4 else 1e300) for n in range(9)}
    finding = vegrad.diagnose_gradients(gradients).findings[0]
    assert "multiplied by 1.0e-600," in finding.message
    assert "multiplying that by 1.0e+600" in finding.advice
    assert finding.edit is None
    net = network()
    net.parameters["layers.0.bias"][...] = np.inf
    for one in vegrad.diagnose(net, X, LABELS).findings:
        assert "nan" not in one.advice
        json.dumps(one.to_dict(), allow_nan=False)
