"""The expected flow beside measured ones: that it hits, and that its spreads are honest."""

import math
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import datasets, theory

from tests import reference

BATCH = 32


def network(width: int, depth: int, seed: int = 0, **options: Any) -> vegrad.MLP:
    return vegrad.MLP([48, *[width] * (depth - 1), 10], seed=seed, **options)


def data(seed: int, loss: str = "mse") -> tuple[np.ndarray, Any]:
    rng = np.random.default_rng([seed, 77])  # not the seed of the weights
    x = rng.standard_normal((BATCH, 48))
    return x, rng.integers(0, 10, BATCH) if loss == "cross_entropy" else rng.normal(
        size=(BATCH, 10)
    )


def measured(net: vegrad.MLP, seed: int) -> tuple[np.ndarray, vegrad.Flow]:
    x, target = data(seed, net.config["loss"])
    net.backward(x, target)
    return x, net.flow


def imagined(sizes: list[int], **options: Any) -> Any:
    """A network that is only a config, as wide as the theory likes it."""
    config = vegrad.MLP([size % 7 + 1 for size in sizes], **options).config
    return SimpleNamespace(config=config | {"sizes": sizes})


# ---------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("init", ["glorot_uniform", "he_normal", "orthogonal", "critical"])
def test_without_width_it_is_the_theory(init: str) -> None:
    """Layer by layer as one reads it in Schoenholz et al. 2017, for layers a million wide."""
    sizes = [300_000, 1_000_000, 600_000, 2_000_000, 10]
    net = imagined(sizes, activation="tanh", init=init)
    flow = theory.expected_flow(net, input_rms=1.5)
    w = b = 0.0
    if init == "critical":
        point = theory.critical_point("tanh", math.sqrt(0.05))
        assert point is not None
        w, b = point.sigma_w, math.sqrt(0.05)
    squares = [
        theory.sigma_w(init, i, o, w or 1.0) ** 2 for i, o in pairwise(sizes)
    ]  # of each layer
    power, slopes, rms = 1.5**2, [], []
    for layer, square in enumerate(squares):
        q = square * power + b * b
        name = "tanh" if layer < 3 else "identity"
        slopes.append(theory.derivative_second_moment(name, q))
        power = theory.second_moment(name, q)
        rms.append(math.sqrt(power))
    np.testing.assert_allclose(flow.activation_rms[:3], rms[:3], rtol=1e-5)
    gains = [  # n_l Var W_{l+1}, and n_l is its fan_in
        0.5 * math.log2(slopes[layer] * squares[layer + 1]) for layer in range(3)
    ]
    np.testing.assert_allclose(flow.gain_log2, gains, atol=5e-5)
    np.testing.assert_allclose(flow.delta_log2[:-1], np.cumsum(gains[::-1])[::-1], atol=1e-4)
    assert flow.delta_log2[-1] == flow.delta_log2_std[-1] == 0.0


def test_one_row_has_the_spread_of_hanin_and_nica() -> None:
    """5/N for relu, (3 μ₂/μ₁² - 1)/N for tanh on the critical line, in ln of squares."""
    for activation, init in (("relu", "he_normal"), ("tanh", "critical")):
        net = imagined([2000] * 60 + [10], activation=activation, init=init)
        spread = (2 * math.log(2) * theory.expected_flow(net).gain_log2_std[5]) ** 2
        b = 0.0 if activation == "relu" else math.sqrt(0.05)
        w = 1.0 if activation == "relu" else theory.critical_point("tanh", b).sigma_w
        moments = theory.gradient_log_moments(activation, w, b, 2000)
        assert spread > 0.999 * moments.variance  # of which the leading order is taken
        # tanh has the fluctuations of q on top
        assert spread < (1.001 if activation == "relu" else 1.35) * moments.variance


def test_layer_normalization_gives_the_chi_of_the_theory() -> None:
    for activation in ("relu", "tanh", "gelu", "sigmoid"):
        net = imagined([20_000] * 30 + [10], activation=activation, init="lecun_normal", norm="rms")
        gain = theory.expected_flow(net).gain_log2[10]
        assert gain == pytest.approx(0.5 * math.log2(theory.normalized_chi(activation)), abs=2e-3)


def test_skip_connections_double_the_variance() -> None:
    """x + tanh: Yang & Schoenholz 2017, p += E φ², ‖D‖² times 1 + σ_w² E φ′² a layer."""
    net = imagined([10**6] * 21 + [10], activation="tanh", init="normal", sigma_w=1.0, sigma_b=0.1,
                   residual=True)  # fmt: skip
    flow = theory.expected_flow(net)
    p, slopes = 1.0, []
    for layer in range(20):
        q = p + 0.01
        p += theory.second_moment("tanh", q)
        slopes.append(theory.derivative_second_moment("tanh", q))
        assert flow.activation_rms[layer] == pytest.approx(math.sqrt(p), rel=1e-4)
    for layer in range(19):
        growth = 1 + slopes[layer + 1]
        gain = 0.5 * math.log2(growth * slopes[layer] / slopes[layer + 1])
        assert flow.gain_log2[layer] == pytest.approx(gain, abs=1e-3)


# ----------------------------------------------------------------------------------- calibration

NETWORKS: list[dict[str, Any]] = [
    {"activation": "tanh", "init": "glorot_uniform"},
    {"activation": "tanh", "init": "critical"},
    {"activation": "tanh", "init": "normal", "sigma_w": 2.0, "sigma_b": 0.3},
    {"activation": "relu", "init": "he_normal"},
    {"activation": "relu", "init": "glorot_normal", "loss": "cross_entropy"},
    {"activation": "relu", "init": "orthogonal"},
    {"activation": "sigmoid", "init": "glorot_uniform", "loss": "cross_entropy"},
    {"activation": "gelu", "init": "critical"},
    {"activation": "leaky_relu", "init": "he_uniform"},
    {"activation": "tanh", "init": "glorot_uniform", "residual": True},
    {"activation": "relu", "init": "he_normal", "residual": True},
    {"activation": "gelu", "init": "lecun_normal", "residual": True, "loss": "cross_entropy"},
    {"activation": "relu", "init": "he_normal", "norm": "layer"},
    {"activation": "tanh", "init": "glorot_uniform", "norm": "rms"},
    {"activation": "relu", "init": "he_normal", "norm": "layer", "residual": True},
]


def deviations(width: int, depth: int, seeds: range, options: dict[str, Any]) -> np.ndarray:
    rows = []
    for seed in seeds:
        net = network(width, depth, seed, **options)
        x, flow = measured(net, seed)
        rows.append(theory.expected_flow(net, x).deviations(flow))
    return np.array(rows)


@pytest.mark.usefixtures("keep_threads")
def test_the_spread_is_honest() -> None:
    """Fifteen kinds of network, 128 wide: two spreads hold 95 % of the layers, one about 2/3."""
    vegrad.set_num_threads(1)
    apart = {str(o): deviations(128, 12, range(8), o).ravel() for o in NETWORKS}
    inside = {name: float(np.mean(np.abs(d) < 2)) for name, d in apart.items()}
    everything = np.concatenate(list(apart.values()))
    assert min(inside.values()) > 0.88, inside
    assert np.mean(np.abs(everything) < 2) >= 0.95
    assert 0.60 < np.mean(np.abs(everything) < 1) < 0.85  # not wider than need be
    assert 0.7 < everything.std() < 1.05
    assert abs(everything.mean()) < 0.25


def clusters() -> tuple[np.ndarray, np.ndarray]:
    """Points of the plane around three centres: rows near, opposite, small and large."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 128)
    x = rng.standard_normal((3, 2))[labels] * 3 + rng.standard_normal((128, 2))
    return (x - x.mean(axis=0)) / x.std(axis=0), labels


def real(name: str) -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("sklearn")
    found = datasets.load(name)
    rows = np.random.default_rng(1).permutation(len(found.x))[:128]
    return found.x[rows], found.target(found.loss)[rows]


REDRAWN = [  # data, hidden layers, and a network whose spread or mean they decide
    ("clusters", 7, {"activation": "gelu", "init": "he_normal"}),
    ("clusters", 9, {"activation": "tanh", "init": "lecun_normal"}),
    ("clusters", 9, {"activation": "elu", "init": "he_normal", "norm": "layer", "residual": True}),
    ("breast_cancer", 7, {"activation": "elu", "init": "lecun_normal"}),
    ("breast_cancer", 9, {"activation": "selu", "init": "normal", "sigma_w": 0.4}),
    ("breast_cancer", 3, {"activation": "tanh", "init": "glorot_uniform"}),
    ("digits", 9, {"activation": "elu", "init": "normal", "sigma_w": 3.0}),
    ("digits", 9, {"activation": "relu", "init": "he_normal"}),
]


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize(("name", "hidden", "options"), REDRAWN)
def test_the_spread_is_that_of_redrawn_networks(
    name: str, hidden: int, options: dict[str, Any]
) -> None:
    """The same rows, other weights: what the spread is by definition, 96 times.

    Layers are about independent, so that a mean over `count` of them has an error of 1/√count of
    a spread, and a standard deviation of 1/√(2 count). 15 % are left to the theory, whose order
    is the leading one.
    """
    vegrad.set_num_threads(1)
    x, target = clusters() if name == "clusters" else real(name)
    outputs = 1 if name == "breast_cancer" else int(target.max()) + 1
    loss = "binary_cross_entropy" if outputs == 1 else "cross_entropy"
    sizes = [x.shape[1], *[128] * hidden, outputs]
    expected = theory.expected_flow(vegrad.MLP(sizes, loss=loss, **options), x)
    apart = []
    for seed in range(96):
        net = vegrad.MLP(sizes, loss=loss, seed=seed, **options)
        net.backward(x, target)
        apart.append(expected.deviations(net.flow))
    count = np.size(apart)
    assert abs(np.mean(apart)) < 0.2 + 3 / count**0.5
    assert abs(np.std(apart - np.mean(apart, axis=0)) - 1.0) < 0.15 + 3 / (2 * count) ** 0.5
    least = math.erf(2 / 1.15 / 2**0.5)
    assert np.mean(np.abs(apart) < 2) > least - 3 * (least * (1 - least) / count) ** 0.5


@pytest.mark.usefixtures("keep_threads")
def test_of_orthogonal_and_linear_layers_nothing_is_left_to_chance() -> None:
    """‖Wᵀδ‖ is ‖δ‖ times the gain of W, whatever the loss has to do with W."""
    vegrad.set_num_threads(1)
    x, target = clusters()
    net = vegrad.MLP([2, *[64] * 6, 3], activation="identity", init="orthogonal", dtype="float64",
                     loss="cross_entropy")  # fmt: skip
    net.backward(x, target)
    expected = theory.expected_flow(net, x)
    np.testing.assert_allclose(net.flow.gain_log2, expected.gain_log2, atol=1e-9)


@pytest.mark.usefixtures("keep_threads")
def test_fifty_networks_without_a_look_at_the_data() -> None:
    """The spread of one row is that of many that move alike, and more than that of others."""
    vegrad.set_num_threads(1)
    inside = []
    for seed in range(50):
        net = network(128, 10, seed, **NETWORKS[seed % len(NETWORKS)])
        flow = measured(net, seed)[1]
        inside.append(np.abs(theory.expected_flow(net).deviations(flow)) < 2)
    assert np.mean(inside) >= 0.95


@pytest.mark.usefixtures("keep_threads")
def test_one_row_at_small_width() -> None:
    """Width 16, where norms vary by tens of percent from layer to layer."""
    vegrad.set_num_threads(1)
    apart, rms = [], []
    for options in (NETWORKS[0], NETWORKS[3], NETWORKS[6]):
        for seed in range(40):
            net = network(16, 12, seed, **options)
            x, target = data(seed, net.config["loss"])
            net.backward(x[:1], target[:1])
            expected = theory.expected_flow(net, x[:1])
            apart.append(expected.deviations(net.flow))
            ratio = np.log2(net.flow.activation_rms / expected.activation_rms)
            rms.append((ratio / expected.activation_rms_std)[:-1])
    assert np.mean(np.abs(apart) < 2) >= 0.93
    assert 0.75 < np.std(apart) < 1.15
    assert abs(np.mean(apart)) < 0.25
    assert np.mean(np.abs(rms) < 2) >= 0.90


def test_a_wrong_layer_stands_out() -> None:
    net = network(128, 20, 3, activation="relu", init="he_normal")
    net.parameters["layers.7.weight"][...] *= 0.25
    x, flow = measured(net, 3)
    apart = theory.expected_flow(net, x).deviations(flow)
    assert np.argmax(np.abs(apart)) == 6
    assert apart[6] < -8


def test_the_table_marks_a_layer_unlike_its_draw() -> None:
    """Of weights fifty times too small or large; no finding, and not where all layers are."""

    def marks(factor: float, layers: range) -> list[str]:
        net = network(64, 30, activation="relu", init="he_normal", loss="cross_entropy")
        for layer in layers:
            net.parameters[f"layers.{layer}.weight"][...] *= factor
        diagnosis = vegrad.diagnose(net, *data(0, "cross_entropy"))
        assert diagnosis.healthy
        return re.findall(r"^ +(\d+) .*([≪≫] expected)$", str(diagnosis), re.M)

    assert marks(0.02, range(14, 15)) == [("13", "≪ expected")]
    assert marks(50.0, range(14, 15)) == [("13", "≫ expected")]
    assert marks(1.0, range(14, 15)) == []
    assert marks(0.8, range(1, 29)) == []


def test_alignment_with_the_signal() -> None:
    """Positive activations and skip connections: gains of up to 0.8 instead of 0.5."""
    gains = []
    for seed in range(6):
        net = network(128, 20, seed, activation="relu", init="he_normal", residual=True)
        x, flow = measured(net, seed)
        gains.append(flow.gain_log2 - theory.expected_flow(net, x).gain_log2)
    assert flow.gain_log2[1:4].mean() > 0.65
    assert np.abs(np.mean(gains, axis=0)[:10]).max() < 0.1


def test_alignment_with_the_outputs() -> None:
    """A loss that is all outputs: relu lets 1 + 10/n of the gradient through."""
    apart, gains = [], []
    for seed in range(60):
        net = network(64, 5, seed, activation="relu", init="he_normal", dtype="float64")
        x, target = data(seed)
        net.backward(20 * x, target)
        expected = theory.expected_flow(net, 20 * x)
        apart.append(net.flow.gain_log2 - expected.gain_log2)
        gains.append(net.flow.gain_log2)
    error = np.std(gains, axis=0) / 60**0.5
    assert np.all(np.abs(np.mean(apart, axis=0)) < 0.02 + 3 * error)
    assert np.mean(gains) > 0.06  # without it, 0


def test_orthogonal_weights_leave_less_to_chance() -> None:
    """Of one row through square orthogonal tanh layers, norms are given."""
    for init in ("orthogonal", "lecun_normal"):
        logs = []
        for seed in range(60):
            net = vegrad.MLP([150] * 6, activation="tanh", init=init, seed=seed, dtype="float64")
            x = np.random.default_rng([seed, 1]).standard_normal((1, 150))
            x *= 12.0 / np.linalg.norm(x)
            net.backward(x, np.zeros((1, 150)))
            logs.append(np.log2(net.flow.activation_rms[1:5]))
        expected = theory.expected_flow(net, x).activation_rms_std[1:5]
        assert np.all(np.std(logs, axis=0) < 1.3 * expected)
        assert np.all(np.std(logs, axis=0) > 0.45 * expected)


# ------------------------------------------------------------------------------------- the edges


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    options = {"activation": activation, "init": "lecun_normal", "dtype": "float64"}
    apart = deviations(200, 6, range(3), options)
    assert np.abs(apart).max() < 4.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sigma_w", [0.0, 1e-3, 40.0])
@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("more", [{}, {"residual": True}, {"norm": "layer"}])
def test_far_ends(sigma_w: float, activation: str, more: dict[str, Any]) -> None:
    net = network(32, 150, activation=activation, init="normal", sigma_w=sigma_w, **more)
    flow = theory.expected_flow(net)
    assert flow.gain_log2.shape == (149,)
    assert flow.activation_rms.shape == flow.delta_log2.shape == (150,)
    assert not np.isnan(flow.delta_log2).any()
    assert np.isfinite(flow.gain_log2_std).all()
    if sigma_w == 0.0 and "residual" not in more:
        assert (flow.gain_log2 == -np.inf).all()


def test_few_layers_and_units() -> None:
    flow = theory.expected_flow(vegrad.MLP([3, 2]))
    assert flow.gain_log2.shape == (0,)
    assert flow.delta_log2.tolist() == [0.0]
    for sizes in ([1, 1, 1], [1, 300, 1], [64, 400, 30, 200, 10]):
        for init in ("orthogonal", "glorot_uniform"):
            flow = theory.expected_flow(vegrad.MLP(sizes, init=init), np.ones((1, sizes[0])))
            assert np.isfinite(flow.gain_log2).all()


def test_rows_that_are_alike_narrow_less() -> None:
    """Their targets differ still, so that they narrow something."""
    net = network(64, 10, activation="tanh", init="glorot_uniform")
    row = data(0)[0][:1]
    alone = theory.expected_flow(net, row).gain_log2_std
    same = theory.expected_flow(net, np.repeat(row, BATCH, axis=0)).gain_log2_std
    unlike = theory.expected_flow(net, data(0)[0]).gain_log2_std
    assert np.all(unlike < same)
    assert np.all(same < alone)


def test_bad_arguments() -> None:
    net = network(8, 3)
    for x, said in (
        (np.ones((2, 5)), r"x must be of shape \(B, 48\), not \(2, 5\)"),
        (np.ones(48), r"x must be of shape \(B, 48\)"),
        (np.zeros((2, 48)), "not all zero"),
        (np.full((2, 48), np.nan), "must be finite"),
    ):
        with pytest.raises(ValueError, match=said):
            theory.expected_flow(net, x)
    with pytest.raises(ValueError, match="input_rms must be finite and positive, not 0"):
        theory.expected_flow(net, input_rms=0)
    with pytest.raises(TypeError, match="input_rms must be a number, not str"):
        theory.expected_flow(net, input_rms="1")  # type: ignore[arg-type]


def test_without_theory_the_verdict_is_the_same() -> None:
    network = vegrad.MLP([8, *[16] * 20, 3], activation="sigmoid", loss="cross_entropy", seed=0)
    x, target = np.random.default_rng(0).normal(size=(40, 8)), np.arange(40) % 3
    whole = vegrad.diagnose(network, x, target)
    plain = vegrad.diagnose(network, x, target, theory=False)
    assert whole.expected is not None
    assert plain.expected is None
    assert plain.verdict == whole.verdict == "vanishing"
    assert [f.layers for f in plain.findings] == [f.layers for f in whole.findings]
    assert str(plain)
