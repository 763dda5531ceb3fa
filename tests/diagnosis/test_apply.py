"""Diagnosis.apply does what the advice says, in place, or nothing."""

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
