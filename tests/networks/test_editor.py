"""Edits of own networks: in place where the shape stays, and their code does the same."""

from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.flow.edits import (
    AddSkips,
    Edit,
    Initialize,
    Lsuv,
    Normalize,
    Redraw,
    Scale,
    ScaleData,
    SetActivation,
    Shift,
    Zero,
    together,
)
from vegrad.flow.subject import Code, Refusal
from vegrad.networks.editor import clone
from vegrad.networks.subject import NetworkSubject
from vegrad.treatment.data import ArrayData

W, B = "layers.1.weight", "layers.1.bias"
X = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32) * 3
DATA = ArrayData(X, np.zeros(100, np.intp))


def build(**options: Any) -> vegrad.MLP:
    options = {"init": "normal", "sigma_w": 1.0, "sigma_b": 0.5, "seed": 3} | options
    return vegrad.MLP([5, 8, 8, 8, 2], **options)


def done(network: vegrad.MLP, edit: Edit) -> tuple[NetworkSubject, Code]:
    """Return the subject after an edit, with its code held to do the same to a copy."""
    given = clone(network)
    subject = NetworkSubject(network, DATA, seed=7)
    code = subject.apply(edit, np.random.default_rng(7).permutation(100)[:40])
    assert isinstance(code, Code)
    names: dict[str, Any] = {"np": np, "vegrad": vegrad, "network": given, "x": X}
    exec("\n".join(code.lines), names)
    for name, array in subject.network.parameters.items():
        np.testing.assert_array_equal(names["network"].parameters[name], array)
    return subject, code


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Scale((W,), 0.3), lambda w: w * np.float32(0.3)),
        (Scale((W,), 2.0, rows=(2, 5)), lambda w: np.vstack([w[:2], 2 * w[2:5], w[5:]])),
        (Zero((W,), rows=(0, 3)), lambda w: np.vstack([0 * w[:3], w[3:]])),
        (Shift((W,), 0.5), lambda w: w + np.float32(0.5)),
    ],
)
def test_values_are_changed_in_place(edit: Edit, expected: Any) -> None:
    network, before = build(), build()
    _, code = done(network, edit)
    assert code.changed == (W,)
    np.testing.assert_array_equal(network.parameters[W], expected(before.parameters[W]))
    for name in set(before.parameters) - {W}:
        np.testing.assert_array_equal(network.parameters[name], before.parameters[name])


def test_several_parameters_are_changed_by_one_loop() -> None:
    network = build()
    names = tuple(f"layers.{n}.weight" for n in range(4))
    _, code = done(network, Scale(names, 0.5))
    assert code.lines[0] == 'for name in [f"layers.{n}.weight" for n in range(0, 4)]:'
    assert code.changed == names


def test_layers_are_drawn_again_as_they_were_drawn() -> None:
    network = build()
    network.parameters[W][...] = np.nan
    network.parameters[B][...] = 9.0
    done(network, together(Zero((B,)), Redraw((W,))))
    np.testing.assert_array_equal(network.parameters[W], build().parameters[W])
    assert not network.parameters[B].any()


def test_another_initialization_is_in_place() -> None:
    network = build()
    memory = network.parameters[W]
    before = {name: value.copy() for name, value in network.parameters.items()}
    subject, code = done(network, Initialize("lecun_normal"))
    assert subject.network is network
    assert network.parameters[W] is memory
    assert network.config == vegrad.MLP([5, 8, 8, 8, 2], init="lecun_normal", seed=3).config
    changed = {n for n, value in network.parameters.items() if not (value == before[n]).all()}
    assert set(code.changed) == changed
    assert len(changed) > 3


def test_architectures_are_other_networks() -> None:
    network = build()
    edit = together(SetActivation("relu"), Normalize(), AddSkips(), Initialize("he_normal"))
    subject, code = done(network, edit)
    made = subject.network
    assert made is not network
    assert [made.config[k] for k in ("activation", "norm", "residual")] == ["relu", "layer", True]
    assert code.changed == ()
    fresh = vegrad.MLP(**made.config)
    ratio = made.parameters[W] / fresh.parameters[W]
    np.testing.assert_allclose(ratio, 0.707, rtol=1e-6)  # 1/√2


def test_lsuv_on_the_rows_that_may_be_looked_at() -> None:
    subject, code = done(build(), Lsuv())
    assert "permutation(len(x))[:40]" in code.lines[0]
    assert code.passed == pytest.approx(40 / 3)
    rows = np.random.default_rng(7).permutation(100)[:40]
    z = X[rows] @ subject.network.parameters["layers.0.weight"].T
    z += subject.network.parameters["layers.0.bias"]
    assert z.std() == pytest.approx(1.0, abs=0.05)


def test_what_cannot_be_done_is_refused() -> None:
    subject = NetworkSubject(build(norm="layer"))
    for edit in (Lsuv(), Normalize(), ScaleData(), Scale(("layers.9.weight",), 2.0)):
        assert isinstance(subject.apply(edit), Refusal)
    no_square = NetworkSubject(vegrad.MLP([5, 4, 3, 2]))
    refused = no_square.apply(AddSkips())
    assert refused == Refusal("no two neighbouring layers are equally wide")
    assert not no_square.network.config["residual"]
    with pytest.raises(TypeError, match=r"must be a vegrad\.MLP, not str"):
        NetworkSubject("net")  # type: ignore[arg-type]


def test_a_diagnosis_is_applied_in_place() -> None:
    network = vegrad.MLP([5, *[16] * 9, 2], init="critical", loss="cross_entropy", seed=0)
    network.parameters["layers.4.weight"][...] *= 1e-4
    x, labels = X / 3, np.random.default_rng(1).integers(0, 2, 100)
    found = vegrad.diagnose(network, x, labels)
    assert found.apply(network) == ("layers.4.weight",)
    assert vegrad.diagnose(network, x, labels).healthy
