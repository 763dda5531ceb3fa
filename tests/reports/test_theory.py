"""The table and the picture of theory."""

from pathlib import Path

import numpy as np
import pytest
from vegrad import theory
from vegrad.reports import theory as theory_report

from tests import reference


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize(("w", "b"), [(0.0, 0.0), (1.0, 0.0), (1.3, 0.3), (9.0, 2.0)])
def test_tables_fit_the_terminal(activation: str, w: float, b: float) -> None:
    text = theory_report.theory_table(activation, w, b)
    assert all(len(line) <= 80 and line == line.rstrip() for line in text.splitlines())
    assert "nan" not in text
    assert activation in text.splitlines()[0]


def test_what_the_table_says() -> None:
    text = theory_report.theory_table("tanh", 1.3, 0.3)
    for line in (
        "phase                  ordered   signals come together, gradients vanish",
        "q*                       0.607   variance of pre-activations",
        "χ₁                      0.9398   of ‖δ‖² a layer: the gain is 0.97×",
        "depth scales       16.1 layers   of gradients",
        "critical σ_w            1.3956   at this σ_b (q 0.7635)",
    ):
        assert line in text.splitlines()
    assert "gain is 0.24×" in theory_report.theory_table("sigmoid", 1.0, 0.0)
    assert "none   at this σ_b; 1.4142 at σ_b 0" in theory_report.theory_table("relu", 1.0, 0.5)
    assert "keep softplus's gradient" in theory_report.theory_table("softplus", 1.0, 0.0)
    assert "which does not stay" in theory_report.theory_table("gelu", 1.0, 0.1)
    assert "of gradients, which grow" in theory_report.theory_table("tanh", 3.0, 0.1)


def test_a_critical_point_where_units_saturate_says_so() -> None:
    """The share is that of the network vegrad measures: 0.55 of the elements, layer by layer."""
    sigmoid = " ".join(theory_report.theory_table("sigmoid", 10.149, 0.0).split())
    assert "keep their size, but units are saturated" in sigmoid
    assert "saturated 52% of a unit's values" in sigmoid
    assert "lecun_normal 0.05572 χ₁ there (σ_w 1, σ_b 0): the gain is 0.24×" in sigmoid
    assert "saturated" not in theory_report.theory_table("tanh", 1.327, 0.05**0.5)
    assert "lecun_normal" not in theory_report.theory_table("relu", 2**0.5, 0.0)
    assert theory_report.saturated("tanh", np.inf) == 1.0
    assert theory_report.saturated("relu", 1.0) == 0.0


def test_phases() -> None:
    assert theory_report.phase("tanh", 1.3, 0.3) == "ordered"
    assert theory_report.phase("tanh", 2.0, 0.3) == "chaotic"
    assert theory_report.phase("relu", 2**0.5, 0.0) == "critical"
    point = theory.critical_point("gelu", 0.6)
    assert point is not None
    assert theory_report.phase("gelu", point.sigma_w, 0.6) == "critical"


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "sigmoid", "softplus"])
def test_the_colours_are_the_theory(activation: str) -> None:
    w, b = np.array([0.2, 0.9, 1.3, 1.7, 3.0, 12.0]), np.array([0.0, 0.05, 0.4, 1.5])
    want = [[np.log(theory.chi(activation, x, y)) for x in w] for y in b]
    np.testing.assert_allclose(theory_report._growth(activation, w, b), want, atol=2e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "softplus"])
def test_pictures(activation: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "phases.png"
    assert theory_report.plot_phases(activation, path, sigma_w=5.0) == str(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    theory_report.plot_phases(activation, tmp_path / "phases.svg")
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_arguments(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for said, activation, name, options in (
        ("activation must be one of", "sine", "a.png", {}),
        ("a picture's name must end in", "tanh", "a.doc", {}),
        ("sigma_w must be finite and not negative, got -1", "tanh", "a.png", {"sigma_w": -1}),
        ("sigma_b must come with sigma_w", "tanh", "a.png", {"sigma_b": 1.0}),
    ):
        with pytest.raises(ValueError, match=said):
            theory_report.plot_phases(activation, tmp_path / name, **options)
    with pytest.raises(OSError, match=r"nowhere"):
        theory_report.plot_phases("tanh", tmp_path / "nowhere" / "a.png")
    assert list(tmp_path.iterdir()) == []
