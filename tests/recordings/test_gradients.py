"""Diagnoses from recorded gradients and from a history, without the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import diagnose, diagnose_gradients, diagnose_history
from vegrad.diagnosis.diagnosis import Diagnosis

RNG = np.random.default_rng(3)
X, LABELS = RNG.standard_normal((128, 32)), RNG.integers(0, 10, 128)


def build(depth: int = 30, width: int = 32, **options: Any) -> vegrad.MLP:
    sizes = [32] + [width] * (depth - 1) + [10]
    return vegrad.MLP(sizes, loss="cross_entropy", seed=0, **options)


def recorded(net: vegrad.MLP) -> dict[str, Any]:
    net.backward(X, LABELS)
    return {name: gradient.copy() for name, gradient in net.gradients.items()}


SICK = [
    ({"activation": "sigmoid"}, "vanishing"),
    ({"activation": "tanh", "init": "normal", "sigma_w": 0.7}, "vanishing"),
    ({"activation": "relu", "init": "normal", "sigma_w": 2.5}, "exploding"),
    ({"activation": "relu", "init": "he_normal"}, "healthy"),
    ({"activation": "tanh", "init": "lecun_normal", "depth": 10}, "healthy"),
    ({"activation": "gelu", "residual": True, "norm": "layer"}, "healthy"),
]


@pytest.mark.parametrize(("options", "verdict"), SICK)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_alone_tell_what_the_network_tells(
    options: dict[str, Any], verdict: str, dtype: str
) -> None:
    net = build(dtype=dtype, **options)
    gradients = recorded(net)
    with_network, without = diagnose(net, X, LABELS), diagnose_gradients(gradients)
    assert with_network.verdict == without.verdict == verdict
    assert without.flow is None
    assert without.measurement is not None
    if verdict != "healthy":
        ours, theirs = without.findings[0].evidence, with_network.findings[0].evidence
        assert ours["gain"] == pytest.approx(theirs["gain"], rel=0.15)
    for scale in (1e-9, 1e9):  # of the loss
        scaled = {name: gradient * scale for name, gradient in gradients.items()}
        assert diagnose_gradients(scaled).verdict == verdict


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_one_scaled_layer_is_named(factor: float) -> None:
    net = build(12, activation="tanh", init="lecun_normal", norm=None, dtype="float64")
    net.parameters["layers.6.weight"][...] *= factor if factor < 1 else 1
    gradients = recorded(net)
    if factor > 1:  # as if layers 0 to 5 had been scaled up: a step between 5 and 6
        for layer in range(6):
            gradients[f"layers.{layer}.weight"] *= factor
    found = diagnose_gradients(gradients)
    first = found.findings[0]
    assert first.layers == (6,)
    assert "layers.6.weight" in first.message
    assert "layers.5.weight" in first.message
    assert first.kind == ("vanishing" if factor < 1 else "exploding")
    assert first.evidence["gain"] == pytest.approx(factor, rel=0.9)


@pytest.mark.parametrize(("decades", "whole", "verdict"), [
    (3.3, True, "vanishing"), (3.3, False, "healthy"), (3.7, False, "vanishing"),
])  # fmt: skip
def test_a_stretch_must_go_further_than_a_chain(decades: float, whole: bool, verdict: str) -> None:
    """Of 30 layers all shrink the gradient, or the lower half, by as many decades in all."""
    down = np.linspace(-decades, 0.0, 31 if whole else 16)
    logs = down if whole else np.concatenate([down, np.linspace(0.0, -decades / 2, 16)[1:]])
    wiggle = 0.01 * np.random.default_rng(0).standard_normal(31)
    found = diagnose_gradients([np.full(4, 10**log) for log in logs + wiggle])
    assert found.verdict == verdict


def test_what_weights_hide_biases_show() -> None:
    """Where the signal grows upwards as δ grows downwards, their products stay as they are."""
    net = build(20, activation="relu", init="normal", sigma_w=3.0, dtype="float64")
    gradients = recorded(net)
    norms = [np.linalg.norm(g) for name, g in gradients.items() if name.endswith("weight")]
    assert max(norms) / min(norms) < 30
    found = diagnose_gradients(gradients)
    assert found.verdict == "exploding"
    assert "each layer multiplies the biases' gradient by 2." in found.findings[0].message
    weights = {name: g for name, g in gradients.items() if name.endswith("weight")}
    assert diagnose_gradients(weights).healthy  # nothing can be seen there


def test_kinds_of_containers_and_of_names() -> None:
    gradients = recorded(build(activation="sigmoid"))
    names = [name for name in gradients if name.endswith("weight")]
    expected = diagnose_gradients(gradients)
    listed = diagnose_gradients([gradients[name] for name in names])
    assert listed.findings[0].evidence == expected.findings[0].evidence
    assert diagnose_gradients([None, *(gradients[n] for n in names)]).findings[0].layers == (
        expected.findings[0].layers
    )
    turned = diagnose_gradients(gradients, order=names[::-1])
    assert turned.verdict == "exploding"
    part = diagnose_gradients(gradients, order=names[10:20])
    assert part.config["chain"] == names[10:20]
    assert diagnose_gradients(gradients[names[0]]).healthy  # no chain
    with pytest.raises(ValueError, match="unknown"):
        diagnose_gradients(gradients, order=["nobody"])
    with pytest.raises(ValueError, match="is there twice"):
        diagnose_gradients(gradients, order=[names[0], names[0]])
    with pytest.raises(TypeError, match="int"):
        diagnose_gradients({"a": np.arange(3)})


def test_parameters_add_evidence() -> None:
    net = build(activation="sigmoid")
    gradients = recorded(net)
    found = diagnose_gradients(gradients, dict(net.parameters))
    weight = net.parameters["layers.29.weight"]
    ratio = np.log10(np.linalg.norm(gradients["layers.29.weight"]) / np.linalg.norm(weight))
    assert found.findings[0].evidence["last_ratio_log10"] == pytest.approx(ratio, abs=1e-5)
    with pytest.raises(ValueError, match="there is no"):
        diagnose_gradients(gradients, {"layers.0.bias": np.zeros(32)})


def test_zeros_and_what_is_not_finite() -> None:
    gradients = recorded(build(120, activation="sigmoid"))  # float32 stores 0.0
    assert not gradients["layers.0.weight"].any()
    found = diagnose_gradients(gradients)
    assert [f.kind for f in found.findings] == ["vanishing", "vanishing"]
    assert "exactly 0: layers.0.weight to layers." in found.findings[0].message
    gradients["layers.3.weight"][2, 1] = np.inf
    gradients["layers.3.weight"][2, 5] = np.nan
    gradients["layers.7.bias"][0] = np.nan
    first = diagnose_gradients(gradients).findings[0]
    assert first.kind == "nonfinite"
    assert "layers.3.weight[2, 1] is the first of 2 elements" in first.message
    assert "2 of 240 gradients" in first.message
    nothing = diagnose_gradients({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))})
    assert nothing.verdict == "dead"


def test_text_and_dictionary() -> None:
    found = diagnose_gradients(recorded(build(80, activation="sigmoid", dtype="float64")))
    text = str(found)
    assert len(text.splitlines()) <= 25
    assert max(map(len, text.splitlines())) <= 80
    assert "layers.79.weight" in text
    assert "not shown" in text
    assert len(found.to_text(all_layers=True).splitlines()) > 80
    content = found.to_dict()
    assert content["flow"] is None
    assert len(content["measurement"]["buffers"]) == 160


# ------------------------------------------------------------------------------------- histories


def trained(rate: float, **options: Any) -> vegrad.History:
    net = build(**options)
    return net.fit(X, LABELS, optimizer=vegrad.SGD(rate), epochs=6, batch_size=32, seed=0,
                   progress=False, gauge_every=2, on_finding=lambda _: None)  # fmt: skip


def test_a_history_alone() -> None:
    vanishing = diagnose_history(trained(0.01, activation="sigmoid"))
    assert [f.kind for f in vanishing.findings] == ["vanishing", "stalled"]
    assert vanishing.findings[0].evidence["gain"] == pytest.approx(0.24, abs=0.04)
    assert "6 epochs" in str(vanishing)
    good = diagnose_history(trained(0.05, depth=3, activation="relu", init="he_normal"))
    assert good.healthy
    wild = diagnose_history(trained(30.0, depth=3, activation="relu", init="he_normal"))
    assert wild.verdict == "overshooting"
    assert diagnose_history(vegrad.History()).healthy
    with pytest.raises(TypeError, match="History"):
        diagnose_history({})  # type: ignore[arg-type]


def test_a_history_beside_the_network() -> None:
    net = build(activation="sigmoid")
    history = net.fit(X, LABELS, optimizer=vegrad.SGD(0.01), epochs=6, batch_size=32, seed=0,
                      progress=False, on_finding=lambda _: None)  # fmt: skip
    found = diagnose(net, X, LABELS, history=history)
    assert [f.kind for f in found.findings] == ["vanishing", "stalled"]  # the cause first
    assert diagnose(net, X, LABELS).verdict == "vanishing"


# ------------------------------------------------------ expected beside measured, and resamples


def test_expected_stands_beside_measured() -> None:
    net = build(20, width=128, activation="tanh", init="lecun_normal")
    found = diagnose(net, X, LABELS)
    assert found.expected is not None
    deviations = found.expected.deviations(found.flow)
    assert np.abs(deviations).max() < 5
    content = found.to_dict()
    assert content["expected"]["gain_log2"] == found.expected.gain_log2.tolist()
    assert content["expected"]["deviations"] == deviations.tolist()
    assert "expected" in str(found)
    net.parameters["layers.7.weight"][...] *= 1e-3
    broken = diagnose(net, X, LABELS)
    finding = broken.findings[0]
    assert finding.layers == (7,)
    assert finding.evidence["expected_gain"] == pytest.approx(1.0, abs=0.1)
    assert "theory expects 0.9" in finding.message or "theory expects 1.0" in finding.message


def test_the_interval_takes_in_the_chance_of_the_batch() -> None:
    def interval(rows: int, resamples: int) -> float:
        net = build(15, width=256, activation="relu", init="he_normal")
        found: Diagnosis = diagnose(net, X[:rows], LABELS[:rows], resamples=resamples)
        assert found.trend is not None
        return found.trend.high - found.trend.low

    one_pass = interval(4, 0)
    assert interval(4, 8) > one_pass
    assert interval(128, 8) - interval(128, 0) < interval(4, 8) - one_pass
    with pytest.raises(ValueError, match="resamples"):
        interval(4, -1)


def test_resampling_leaves_the_whole_batch_s_gradients() -> None:
    net, once = build(5), build(5)
    found = diagnose(net, X, LABELS)
    once.backward(X, LABELS)
    for name, gradient in net.gradients.items():
        np.testing.assert_array_equal(gradient, once.gradients[name])
    assert found.flow is not None
    np.testing.assert_array_equal(found.flow.delta_log2, once.flow.delta_log2)
