"""The verdicts: every kind found where it was planted, none where nothing is wrong."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf, log2, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.rules.table import RULES
from vegrad.flow.trend import Gains
from vegrad.networks.diagnosis import diagnose
from vegrad.networks.mlp import MLP

Parameters = Mapping[str, Any]
RNG = np.random.default_rng(7)
X = RNG.standard_normal((200, 32))
LABELS = RNG.integers(0, 10, 200)


def build(depth: int = 30, width: int = 64, **options: Any) -> MLP:
    options = {
        "activation": "relu",
        "init": "he_normal",
        "loss": "cross_entropy",
        "seed": 0,
    } | options
    return MLP([32, *[width] * (depth - 1), 10], **options)


def judge(edit: Callable[[Parameters], None] | None = None, **options: Any) -> Diagnosis:
    network = build(**options)
    if edit is not None:
        edit(network.parameters)
    return diagnose(network, X, LABELS)


def scale(layers: range, factor: float) -> Callable[[Parameters], None]:
    def edit(parameters: Parameters) -> None:
        for layer in layers:
            parameters[f"layers.{layer}.weight"][...] *= factor

    return edit


def shift(layer: int, amount: float) -> Callable[[Parameters], None]:
    def edit(parameters: Parameters) -> None:
        parameters[f"layers.{layer}.bias"][...] += amount

    return edit


# ------------------------------------------------------------------------------------ healthy

HEALTHY = [
    {"activation": "relu", "init": "he_normal", "depth": 50},
    {"activation": "relu", "init": "he_uniform", "depth": 50},
    {"activation": "leaky_relu", "init": "he_normal", "depth": 50},
    {"activation": "tanh", "init": "lecun_normal", "depth": 50},
    {"activation": "tanh", "init": "orthogonal", "depth": 50},
    {"activation": "tanh", "init": "normal", "sigma_w": sqrt(1.76095), "sigma_b": sqrt(0.05),
     "depth": 50},
    {"activation": "selu", "init": "lecun_normal", "depth": 50},
    {"activation": "identity", "init": "orthogonal", "depth": 100},
    {"activation": "relu", "norm": "layer", "residual": True, "depth": 50},
    {"activation": "gelu", "init": "lecun_normal", "norm": "rms", "residual": True, "depth": 50},
    {"activation": "sigmoid", "init": "glorot_uniform", "depth": 3},
    {"activation": "relu", "width": 16, "depth": 20},
    {"activation": "tanh", "depth": 2, "width": 1},
    {"activation": "tanh", "depth": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", HEALTHY, ids=str)
def test_healthy_networks_are_called_healthy(options: dict[str, Any]) -> None:
    for seed in range(12):
        diagnosis = judge(**options, seed=seed)
        assert diagnosis.verdict == "healthy", f"seed {seed}: {diagnosis.summary}"


def test_a_deep_residual_network_with_normalization_is_healthy() -> None:
    """Its δ falls as 1/depth behind the normalization; the gradients of its weights do not."""
    assert judge(depth=300, width=16, norm="layer", residual=True).healthy


def test_the_gradient_may_be_zero() -> None:
    network = build(depth=3, loss="mse", activation="tanh")
    diagnosis = diagnose(network, X, network.forward(X))
    assert diagnosis.healthy
    assert "exactly 0" in diagnosis.summary


# ------------------------------------------------------------------------------------- chains

VANISHING = [
    ({"activation": "sigmoid", "init": "glorot_uniform"}, "activation"),
    ({"activation": "relu", "init": "glorot_uniform"}, "activation"),
    ({"activation": "tanh", "init": "normal", "sigma_w": 0.5}, "weights"),
    ({"activation": "relu", "init": "normal", "sigma_w": 0.5}, "weights"),
    ({"activation": "softplus", "init": "lecun_normal"}, "activation"),
    ({"activation": "sigmoid", "init": "glorot_uniform", "norm": "layer"}, "activation"),
    ({"activation": "sigmoid", "init": "glorot_uniform", "depth": 6}, "activation"),
]
EXPLODING = [
    ({"activation": "tanh", "init": "normal", "sigma_w": 3.0}, "weights"),
    ({"activation": "relu", "init": "normal", "sigma_w": 2.5}, "weights"),
    ({"activation": "relu", "residual": True, "depth": 50}, "weights"),
    ({"activation": "tanh", "init": "lecun_normal", "norm": "layer", "depth": 120}, "activation"),
]


@pytest.mark.parametrize(("kind", "options", "blame"), [
    *(("vanishing", *row) for row in VANISHING), *(("exploding", *row) for row in EXPLODING)
], ids=str)  # fmt: skip
def test_chains_are_judged_and_the_factor_blamed(
    kind: str, options: dict[str, Any], blame: str
) -> None:
    for seed in range(3):
        diagnosis = judge(**options, seed=seed)
        finding = diagnosis.findings[0]
        assert (finding.kind, finding.blame) == (kind, blame), diagnosis.summary
        assert finding.layers[0] == 0
        assert diagnosis.flow is not None
        gain = np.log2(finding.evidence["gain"])
        assert gain == pytest.approx(diagnosis.flow.gain_log2.mean(), abs=1e-6)
        assert (gain < 0) == (kind == "vanishing")


def test_the_sentence() -> None:
    summary = judge(depth=50, activation="sigmoid", init="glorot_uniform").summary
    assert re.fullmatch(
        r"vanishing: each layer passes on 0\.2\d of the gradient, so that the first layer gets "
        r"\de-3\d of what the last gets; the activation's derivative is to blame "
        r"\(0\.2\d a layer, the weights \d\.\d\d\)",
        summary,
    )


class Rescaled:
    """A network whose loss is multiplied by 1000."""

    def __init__(self, network: MLP) -> None:
        self._network = network
        self.config, self.parameters = network.config, network.parameters
        self.forward = network.forward

    def backward(self, x: Any, target: Any) -> float:
        loss = 1000 * self._network.backward(x, target)
        flow, more = self._network.flow, log2(1000)
        self.flow = replace(
            flow, delta_log2=flow.delta_log2 + more, gradient_log2=flow.gradient_log2 + more
        )
        self.gradients = {k: 1000 * v for k, v in self._network.gradients.items()}
        return loss

    def examined(self, x: Any, target: Any) -> Any:
        seen = self._network.examined(x, target)
        return seen._replace(loss=self.backward(x, target), row_squares=1e6 * seen.row_squares)


CASES = [
    {"activation": "sigmoid", "init": "glorot_uniform", "depth": 50},
    {"activation": "relu", "init": "normal", "sigma_w": 2.5},
    {"activation": "tanh", "init": "lecun_normal", "depth": 50},
    {"activation": "relu", "depth": 50},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_scale_of_the_loss_changes_nothing(options: dict[str, Any]) -> None:
    once, times_1000 = build(**options), Rescaled(build(**options))
    plain, scaled = diagnose(once, X, LABELS), diagnose(times_1000, X, LABELS)
    assert plain.summary == scaled.summary
    assert [f.layers for f in plain.findings] == [f.layers for f in scaled.findings]

    network = build(**options | {"loss": "mse"})
    for factor in (1, 1e3, 1e6):
        found = diagnose(network, X, factor * np.eye(10)[LABELS]).findings
        kinds = [f.kind for f in found if f.cause != "target-scale" or factor == 1]
        assert kinds[:1] == [plain.verdict] * (not plain.healthy)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_batch_changes_nothing(options: dict[str, Any]) -> None:
    network = build(**options)
    verdicts = {diagnose(network, X[:rows], LABELS[:rows]).verdict for rows in (1, 3, 20, 200)}
    assert len(verdicts) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_the_dtype_loses_is_said(dtype: str) -> None:
    diagnosis = judge(activation="sigmoid", init="glorot_uniform", depth=100, dtype=dtype)
    lost = diagnosis.findings[0].evidence["underflowed_layers"]
    assert len(diagnosis.underflowed) == lost
    assert ("cannot hold" in str(diagnosis)) == (lost > 0)
    assert (lost > 0) == (dtype == "float32")
    assert diagnosis.flow is not None
    assert np.isfinite(diagnosis.flow.delta_log2).all()


def test_an_explosion_comes_before_the_overflow_it_causes() -> None:
    diagnosis = judge(init="normal", sigma_w=40.0, depth=50)
    assert [f.kind for f in diagnosis.findings] == ["exploding", "nonfinite"]
    assert diagnosis.findings[0].evidence["overflowed_layers"] > 0


# ----------------------------------------------------------------------------- single layers


@pytest.mark.parametrize(("factor", "kind"), [(1e-4, "vanishing"), (1e4, "exploding"),
                                              (0.0, "vanishing")])  # fmt: skip
@pytest.mark.parametrize(
    ("activation", "init"), [("elu", "lecun_normal"), ("tanh", "lecun_normal")]
)
def test_a_broken_layer_is_named(activation: str, init: str, factor: float, kind: str) -> None:
    diagnosis = judge(scale(range(12, 13), factor), activation=activation, init=init)
    finding = diagnosis.findings[0]
    assert (finding.kind, finding.layers, finding.blame) == (kind, (12,), "weights")
    assert "layer 12" in finding.message
    if factor:
        assert 1 / multiplier(finding.advice) == pytest.approx(factor, rel=0.5)


def test_a_block_of_layers_is_named() -> None:
    finding = judge(scale(range(10, 20), 0.3), depth=50).findings[0]
    assert finding.kind == "vanishing"
    assert finding.blame == "weights"
    assert set(range(10, 19)) <= set(finding.layers) <= set(range(8, 21))


def test_opposite_halves_are_both_found() -> None:
    def edit(parameters: Parameters) -> None:
        scale(range(1, 25), 0.5)(parameters)
        scale(range(25, 49), 2.0)(parameters)

    diagnosis = judge(edit, depth=50)
    assert [f.kind for f in diagnosis.findings] == ["exploding", "vanishing"]
    assert diagnosis.findings[0].layers[0] in range(22, 27)
    assert diagnosis.findings[1].layers[-1] in range(22, 27)


def test_dead_layers() -> None:
    diagnosis = judge(shift(7, -50.0))
    finding = diagnosis.findings[0]
    assert [f.kind for f in diagnosis.findings] == ["dead"]
    assert (finding.severity, finding.layers[0], finding.evidence["layer"]) == ("critical", 7, 7)
    added = float(re.search(r"add ([0-9.]+)", finding.advice)[1])  # type: ignore[index]
    assert added == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "hard_tanh", "erf"])
def test_saturated_layers(activation: str) -> None:
    diagnosis = judge(shift(2, 9.0), activation=activation, init="lecun_normal", depth=4)
    finding = diagnosis.findings[0]
    assert (finding.kind, finding.layers) == ("saturated", (2,))


def test_saturation_comes_before_the_vanishing_that_it_causes() -> None:
    diagnosis = judge(activation="tanh", init="normal", sigma_w=0.8, sigma_b=5.0)
    assert [f.kind for f in diagnosis.findings] == ["saturated", "vanishing"]
    assert diagnosis.findings[1].blame == "activation"


def test_saturation_comes_after_the_vanishing_that_it_does_not_cause() -> None:
    diagnosis = judge(shift(30, 3.0), activation="tanh", init="normal", sigma_w=0.5, depth=50)
    assert [f.kind for f in diagnosis.findings] == ["vanishing", "saturated"]


# ---------------------------------------------------------------------------------- nonfinite


@pytest.mark.parametrize("value", [nan, inf, 1e60])
def test_bad_data_are_a_finding_and_nothing_is_run(value: float) -> None:
    x = X.copy()
    x[17, 5] = x[40, 2] = value
    network = build(depth=3)
    diagnosis = diagnose(network, x, LABELS)
    finding = diagnosis.findings[0]
    assert diagnosis.verdict == "nonfinite"
    assert finding.evidence == {"row": 17, "column": 5, "count": 2, "rows": 2}
    assert "x[17, 5]" in diagnosis.summary
    assert diagnosis.flow is None
    assert diagnosis.loss is None
    with pytest.raises(RuntimeError, match="no flow yet"):
        _ = network.flow
    with pytest.raises(ValueError, match="no flow to draw, because the data are not finite"):
        diagnosis.plot("never.png")
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert "nothing was run" in " ".join(str(diagnosis).split())


def test_a_bad_target_is_a_finding() -> None:
    network = MLP([32, 4, 1], loss="mse")
    diagnosis = diagnose(network, X, np.where(np.arange(200) == 9, nan, 0.5))
    assert diagnosis.verdict == "nonfinite"
    assert "target[9]" in diagnosis.summary


@pytest.mark.parametrize("value", [nan, inf])
def test_bad_parameters_are_named(value: float) -> None:
    def edit(parameters: Parameters) -> None:
        parameters["layers.4.weight"][3, 2] = value

    diagnosis = judge(edit)
    assert [f.kind for f in diagnosis.findings] == ["nonfinite"]
    assert diagnosis.findings[0].layers == (4,)
    assert "layers.4.weight[3, 2]" in diagnosis.summary
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert str(diagnosis)


def test_wrong_use_is_an_error_and_no_finding() -> None:
    network = build(depth=3)
    with pytest.raises(ValueError, match=r"\(B, 32\)"):
        diagnose(network, X[:, :5], LABELS)
    with pytest.raises(ValueError, match=r"\(200,\)"):
        diagnose(network, X, LABELS[:5])
    with pytest.raises(ValueError, match="at least one row"):
        diagnose(network, X[:0], LABELS[:0])
    with pytest.raises(TypeError, match="array of"):
        diagnose(network, "text", LABELS)


# ------------------------------------------------------------------------------------- advice


def multiplier(advice: str) -> float:
    found = re.search(r"multiply .* by ([0-9.e+-]*\d)", advice)
    assert found, advice
    return float(found[1])


@pytest.mark.parametrize("activation", ["relu", "tanh", "erf", "elu", "selu", "hard_tanh"])
@pytest.mark.parametrize("sigma_w", [0.5, 2.0, 3.0])
def test_following_the_advice_heals(activation: str, sigma_w: float) -> None:
    """Twice at most: SELU's gain is only about proportional to the weights."""
    network = build(50, activation=activation, init="normal", sigma_w=sigma_w)
    for _ in range(3):
        diagnosis = diagnose(network, X, LABELS)
        if diagnosis.healthy:
            break
        scale(range(50), multiplier(diagnosis.findings[0].advice))(network.parameters)
    assert diagnosis.healthy, diagnosis.summary


def test_no_weights_are_advised_where_none_help() -> None:
    for options in ({"activation": "sigmoid"}, {"activation": "gelu"}, {"norm": "layer",
                    "activation": "tanh", "depth": 120}):  # fmt: skip
        options = {"init": "lecun_normal", "depth": 40} | options
        advice = judge(**options).findings[0].advice
        assert "multiply" not in advice
        assert "use " in advice


# --------------------------------------------------------------------------- text and picture


def test_the_text_fits_a_screen_and_shows_all_rows_on_demand() -> None:
    diagnosis = judge(depth=80, activation="sigmoid", init="glorot_uniform", width=20)
    short, long = str(diagnosis).splitlines(), diagnosis.to_text(all_layers=True).splitlines()
    assert len(short) <= 28
    assert max(map(len, short + long)) <= 80
    assert any("70 layers not shown" in line for line in short)
    rows = [line for line in long if re.match(r" +\d+  +\d", line)]
    assert [int(row.split()[0]) for row in rows] == list(range(80))


def test_the_text_keeps_the_layers_that_are_spoken_of() -> None:
    diagnosis = judge(shift(40, -50.0), depth=80)
    assert re.search(r"^ +40 .* zero .* dead$", str(diagnosis), flags=re.MULTILINE)
    content = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert content["flow"]["delta_log2"][0] is None  # -inf


def test_the_picture(tmp_path: Path) -> None:
    for number, options in enumerate([CASES[0], {"depth": 1}]):
        path = tmp_path / f"{number}.png"
        assert judge(**options).plot(path).axes
        assert path.read_bytes().startswith(b"\x89PNG")
    judge(shift(7, -50.0)).plot(tmp_path / "dead.svg")


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    diagnosis = judge(depth=3)
    with pytest.raises(ValueError, match=r"must end in \.png"):
        diagnosis.plot(tmp_path / "picture.txt")
    with pytest.raises(FileNotFoundError) as error:
        diagnosis.plot(tmp_path / "no" / "picture.png")
    assert error.value.filename == str(tmp_path / "no" / "picture.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  which one depends on the system
        diagnosis.plot(tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_pictures_leave_pyplot_alone_and_text_needs_no_matplotlib(tmp_path: Path) -> None:
    program = """
import sys, numpy, vegrad
from vegrad.networks.diagnosis import diagnose
d = diagnose(vegrad.MLP([2, 3, 1], seed=0), numpy.ones((4, 2)), numpy.ones(4))
str(d)
assert not {"matplotlib", "rich", "sklearn"} & set(sys.modules)
d.plot(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
sys.modules["matplotlib.figure"] = None
try:
    d.plot(sys.argv[1])
except ImportError as error:
    assert "vegrad[cli]" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.png")], check=True)


# -------------------------------------------------------------------------- table and numbers


def test_every_rule_says_what_and_why() -> None:
    for rule in RULES:
        assert abs(rule.critical) >= abs(rule.warning) > 0
        assert min(map(len, (rule.measured, rule.reason, rule.source))) > 10


def test_intervals_are_students() -> None:
    gains = np.array([-1.0, -2.0, -4.0])
    trend = Gains(gains, gains, np.zeros(3), local=gains).trend
    assert trend is not None
    assert trend.gain == pytest.approx(-7 / 3)
    assert trend.high - trend.gain == pytest.approx(4.3027 * 1.5275252 / sqrt(3), rel=1e-4)
    assert trend.blame(-1) == "weights"
    assert trend.significant  # three layers cannot tell chance
