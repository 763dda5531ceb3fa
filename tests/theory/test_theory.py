"""Mean-field theory beside reference cases, mpmath and plain iteration."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import vegrad
from hypothesis import given
from hypothesis import strategies as st
from vegrad import theory
from vegrad.activations import ACTIVATIONS
from vegrad.theory import correlation, gaussian, moments

from tests import reference
from tests.reference_activations import precisely

CASES = json.loads((Path(__file__).parent / "theory_cases.json").read_text(encoding="utf-8"))
every_activation = pytest.mark.parametrize("activation", reference.ACTIVATIONS)


# ------------------------------------------------------------------------------ reference cases


def growth(a: str, w: float, b: float, q: float, layers: int) -> float:
    """Product of χ at each layer's own q: ‖δ_1‖²/‖δ_L‖² without the fixed point."""
    product = 1.0
    for _ in range(layers - 1):
        product *= w * w * theory.derivative_second_moment(a, q)
        q = theory.variance_map(q, a, w, b)
    return product


def iterated(a: str, w: float, b: float, q: float, layers: int) -> list[float]:
    qs = [q]
    for _ in range(layers - 1):
        qs.append(theory.variance_map(qs[-1], a, w, b))
    return qs


def residual(a: str, w: float, b: float, p: float, layers: int) -> tuple[float, float]:
    """Variance and gradient of x + φ(W x + b), Yang & Schoenholz 2017."""
    ratio = 1.0
    for _ in range(layers):
        q = w * w * p + b * b
        p += theory.second_moment(a, q)
        ratio *= 1 + w * w * theory.derivative_second_moment(a, q)
    return p, ratio


def computed(case: dict[str, Any]) -> Any:
    i = case.get("inputs", {})
    a = case.get("activation", "")
    slope = {"negative_slope": i["negative_slope"]} if "negative_slope" in i else {}
    at = (a, case.get("sigma_w"), case.get("sigma_b"))
    quantities: dict[str, Callable[[], Any]] = {
        "second_moment": lambda: theory.second_moment(a, i["q"]),
        "deriv_second_moment": lambda: theory.derivative_second_moment(a, i["q"]),
        "mean_activation": lambda: theory.mean(a, i["q"]),
        "q_star": lambda: theory.fixed_point(*at, **slope),
        "chi_1": lambda: theory.chi(*at, **slope),
        "chi_parallel": lambda: theory.chi_parallel(*at, **slope),
        "xi_q": lambda: theory.depth_scales(*at).variance,
        "xi_c": lambda: theory.depth_scales(*at).correlation,
        "xi_grad": lambda: theory.depth_scales(*at).gradient,
        "critical_sigma_w": lambda: theory.critical_point(a, at[2], **slope).sigma_w,
        "critical_q": lambda: theory.critical_point(a, at[2], **slope).q,
        "critical_sigma_w_at_q0": lambda: theory.critical_point(a, 0.0).sigma_w,
        "correlation_map": lambda: theory.correlation_map(i["c"], *at, **slope),
        "c_star": lambda: theory.correlation_fixed_point(*at),
        "chi_c_star": lambda: math.exp(-1 / theory.depth_scales(*at).correlation),
        "nf_gamma": lambda: theory.gain(a),
        "layernorm_chi": lambda: theory.normalized_chi(a),
        "effective_sigma_w2": lambda: theory.sigma_w(i["init"], i["n_in"], i["n_out"]) ** 2,
        "log_norm2_mean_per_layer": lambda: theory.gradient_log_moments(*at, i["n"]).mean,
        "log_norm2_var_per_layer": lambda: theory.gradient_log_moments(*at, i["n"]).variance,
        "grad_norm2_relvar_per_layer": lambda: theory.gradient_log_moments(*at, i["n"]).variance,
        "q_layers": lambda: iterated(*at, i["q1"], i["layers"]),
        "grad_norm2_ratio": lambda: growth(*at, i["q1"], i["layers"]),
        "rrn_p": lambda: residual(*at, i["p0"], i["layers"])[0],
        "rrn_grad_ratio": lambda: residual(*at, i["p0"], i["layers"])[1],
    }
    return quantities[case["quantity"]]()


@pytest.mark.parametrize("case", CASES, ids=[f"{c['id']}-{c['quantity']}" for c in CASES])
def test_reference_cases(case: dict[str, Any]) -> None:
    np.testing.assert_allclose(computed(case), case["expected"], rtol=case["rtol"])


# -------------------------------------------------------------------------- means over Gaussians


def gaussian_integral(f: Callable[[Any], Any], q: float) -> float:
    """E f(√q Z) by mpmath's tanh-sinh rule between ends of its own."""
    root = mpmath.sqrt(q)
    inner = [mpmath.mpf(end) / root for end in (0.3, 1, 3, 10, 30, 90)]
    ends = sorted({s * min(e, mpmath.mpf(12)) for s in (-1, 1) for e in [0, 1, 4, *inner, 12]})
    return float(mpmath.quad(lambda z: f(root * z) * mpmath.npdf(z), ends, maxdegree=5))


@every_activation
@pytest.mark.parametrize("q", [1e-8, 0.37, 8.6e3])
def test_moments_beside_mpmath(activation: str, q: float) -> None:
    exact = precisely(activation)
    second = gaussian_integral(lambda x: exact(x)[0] ** 2, q)
    assert theory.second_moment(activation, q) == pytest.approx(second, rel=1e-9)
    derivative = gaussian_integral(lambda x: exact(x)[1] ** 2, q)
    assert theory.derivative_second_moment(activation, q) == pytest.approx(derivative, rel=1e-9)
    first = gaussian_integral(lambda x: exact(x)[0], q)
    assert theory.mean(activation, q) == pytest.approx(first, rel=1e-9, abs=1e-14 * q**0.5)


@every_activation
def test_moments_go_on_to_their_limits(activation: str) -> None:
    """From 1e-8 to 1e6 the moments are smooth, and they end where the half-lines are."""
    a = ACTIVATIONS[activation]
    q = np.geomspace(1e-8, 1e6, 400)
    for moment in (theory.second_moment, theory.derivative_second_moment):
        log = np.log(moment(activation, q))
        bend = np.diff(log, 2) / np.diff(np.log(q))[0] ** 2
        assert np.all(np.abs(bend) < 1.0)
        assert np.all(np.abs(np.diff(bend)) < 0.08)  # no jumps between closed form and panels
    far = theory.derivative_second_moment(activation, math.inf)
    assert far == gaussian.mean_square(a.at_infinity)
    assert theory.derivative_second_moment(activation, 1e14) == pytest.approx(far, abs=1e-6)
    bound = theory.second_moment(activation, math.inf)
    assert bound == pytest.approx(theory.second_moment(activation, 1e14), rel=1e-6) or far > 0
    if a.at_zero is not None:
        near = gaussian.mean_square(a.at_zero)
        assert theory.derivative_second_moment(activation, 0.0) == pytest.approx(near, rel=1e-15)
        assert theory.second_moment(activation, 1e-30) == pytest.approx(near * 1e-30, rel=1e-9)


def test_arrays_and_numbers() -> None:
    q = np.array([[0.0, 0.5, math.inf], [1.0, 2.0, 3.0]])
    for f in (theory.second_moment, theory.derivative_second_moment, theory.mean):
        values = f("tanh", q)
        assert values.shape == q.shape
        assert values.dtype == np.float64
        assert f("tanh", np.zeros(0)).shape == (0,)
        assert type(f("tanh", 0.5)) is type(f("tanh", 1)) is float
        assert f("tanh", 0.5) == values[0, 1]
    assert theory.variance_map(np.ones(3), "relu", 1.0, 0.5).tolist() == [0.75] * 3
    assert theory.second_moment("leaky_relu", 1.0, negative_slope=0.5) == 0.625
    assert type(theory.correlation_map(0.5, "tanh", 2.0, 0.1)) is float
    assert theory.correlation_map(np.array([[0.5, 1.0]]), "tanh", 2.0, 0.1).shape == (1, 2)


# ----------------------------------------------------------------------------------- fixed points


@given(
    activation=st.sampled_from(reference.ACTIVATIONS),
    w=st.floats(0.1, 4.0),
    b=st.one_of(st.just(0.0), st.floats(1e-4, 2.0)),
)
def test_fixed_points(activation: str, w: float, b: float) -> None:
    """Iteration from 1 goes where the solution is; V′ there is the slope of V."""
    q = theory.fixed_point(activation, w, b)
    if math.isnan(q):  # every q is one
        assert theory.variance_map(7.0, activation, w, b) == pytest.approx(7.0, rel=1e-14)
        return
    seen = 1.0
    for _ in range(300):
        seen = min(theory.variance_map(seen, activation, w, b), 1e100)
    if q == math.inf:
        assert seen > 1.0
        assert theory.chi(activation, w, b) == pytest.approx(
            w * w * gaussian.mean_square(ACTIVATIONS[activation].at_infinity)
        )
        return
    assert theory.chi(activation, w, b) == w * w * theory.derivative_second_moment(activation, q)
    parallel = theory.chi_parallel(activation, w, b)
    if q == 0.0:
        assert b == 0.0
        assert parallel <= 1.0 + 1e-12
        assert seen < 1.0
        return
    assert theory.variance_map(q, activation, w, b) == pytest.approx(q, rel=1e-13)
    assert parallel <= 1.0 + 1e-9  # what one comes to is stable
    if parallel < 0.95:
        assert seen == pytest.approx(q, rel=1e-5)
    step = 1e-4
    around = theory.variance_map(q * np.array([1 - step, 1 + step]), activation, w, b)
    slope_seen = (around[1] - around[0]) / (2 * step * q)
    assert parallel == pytest.approx(slope_seen, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("activation", "w", "b", "q"),
    [
        ("tanh", 1.0, 0.0, 0.0), ("tanh", 0.9, 0.0, 0.0), ("erf", math.sqrt(math.pi) / 2, 0.0, 0.0),
        ("hard_tanh", 0.5, 0.0, 0.0), ("gelu", 1.4, 0.0, 0.0), ("gelu", 2.0, 0.0, math.inf),
        ("relu", 1.0, 0.0, 0.0), ("relu", 1.0, 0.5, 0.5), ("relu", 1.5, 0.0, math.inf),
        ("relu", math.sqrt(2), 0.1, math.inf), ("identity", 2.0, 0.0, math.inf),
        ("elu", math.sqrt(2), 0.0, math.inf), ("softplus", 1.5, 0.0, math.inf),
        ("tanh", 0.0, 0.3, 0.09), ("tanh", 0.5, 1e-9, 1e-18 / 0.75), ("sigmoid", 0.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_fixed_points_at_the_ends(activation: str, w: float, b: float, q: float) -> None:
    assert theory.fixed_point(activation, w, b) == pytest.approx(q, rel=1e-12)


def test_rectifiers_without_a_fixed_point_of_their_own() -> None:
    for activation, w in (("relu", math.sqrt(2)), ("identity", 1.0)):
        assert math.isnan(theory.fixed_point(activation, w, 0.0))
        assert theory.chi(activation, w, 0.0) == pytest.approx(1.0, rel=1e-15)
        assert theory.chi_parallel(activation, w, 0.0) == pytest.approx(1.0, rel=1e-15)
        assert theory.depth_scales(activation, w, 0.0).gradient == math.inf
    assert theory.correlation_fixed_point("relu", math.sqrt(2), 0.0) == 1.0


def test_just_above_criticality() -> None:
    """q* of tanh is about (σ_w² - 1)/2 there, where iteration would take 1e8 steps."""
    for excess in (1e-4, 1e-6, 1e-8):
        q = theory.fixed_point("tanh", math.sqrt(1 + excess), 0.0)
        assert q == pytest.approx(excess / 2, rel=3 * excess + 1e-6)


# ------------------------------------------------------------------------------------ correlation


@pytest.mark.parametrize("t", [1e-14, 1e-9, 1e-4, 0.3, 1.0, 1.9, 2.0])
@pytest.mark.parametrize("q", [1e-6, 0.8, 3e5])
def test_pair_means_beside_closed_forms(q: float, t: float) -> None:
    """Williams 1997 for erf, Cho & Saul 2009 for relu; as t → 0 nothing is lost."""
    with mpmath.workdps(40):
        c, angle = 1 - mpmath.mpf(t), mpmath.acos(1 - mpmath.mpf(t))
        wide = 2 * mpmath.mpf(q) / (1 + 2 * mpmath.mpf(q))
        fall = float(4 / mpmath.pi * (mpmath.asin(wide) - mpmath.asin(wide * c)))
        kernel = float((mpmath.sin(angle) + (mpmath.pi - angle) * c) / mpmath.pi)
        quadrant = float((mpmath.pi - angle) / (2 * mpmath.pi))
    erf, relu = ACTIVATIONS["erf"], ACTIVATIONS["relu"]
    seen = gaussian.pair_mean(lambda u, v: (erf.phi(u) - erf.phi(v)) ** 2, q, t)
    assert seen == pytest.approx(fall, rel=1e-9)
    seen = gaussian.pair_mean(lambda u, v: relu.phi(u) * relu.phi(v), q, t)
    assert seen == pytest.approx(q / 2 * kernel, rel=1e-11, abs=1e-14 * q)
    seen = gaussian.pair_mean(lambda u, v: relu.slope(u) * relu.slope(v), q, t)
    assert seen == pytest.approx(quadrant, rel=1e-11, abs=1e-14)
    seen = gaussian.rectifier_decorrelation((0.0, 1.0), t)
    assert seen == pytest.approx(float(1 - kernel), rel=1e-9, abs=2e-16)


@every_activation
def test_correlation_maps(activation: str) -> None:
    """C(1) = 1; C′ is σ_w² E φ′φ′, at c* the rate of ξ_c and at 1 χ₁; C(c*) = c*."""
    w, b = (3.0, 0.3) if ACTIVATIONS[activation].at_infinity == (0.0, 0.0) else (1.2, 0.3)
    at = (
        (activation, w, b) if activation not in ("identity", "leaky_relu") else (activation, 0.8, b)
    )
    near = theory.correlation_map(np.array([-1.0, 0.2, 1 - 1e-10, 1.0]), *at)
    assert near[-1] == 1.0
    assert np.all(np.diff(near) > 0)
    assert (1 - near[2]) / 1e-10 == pytest.approx(theory.chi(*at), rel=1e-3)
    c = theory.correlation_fixed_point(*at)
    assert theory.correlation_map(c, *at) == pytest.approx(c, abs=1e-13)
    assert (c < 1) is (theory.chi(*at) > 1)
    if 0 < c < 1:
        around = theory.correlation_map(c + np.array([-1e-4, 1e-4]), *at)
        rate = (around[1] - around[0]) / 2e-4
        assert math.exp(-1 / theory.depth_scales(*at).correlation) == pytest.approx(rate, rel=1e-6)


def test_correlation_just_above_criticality() -> None:
    """1 - c* stays in proportion to χ₁ - 1."""
    point = theory.critical_point("tanh", 0.3)
    assert point is not None
    ratios = []
    for excess in (1e-3, 1e-5, 1e-7):
        at = ("tanh", point.sigma_w * (1 + excess), 0.3)
        t = correlation._decorrelated(*at, 0.01)
        assert theory.correlation_fixed_point(*at) == 1 - t
        ratios.append(t / (theory.chi(*at) - 1))
    assert ratios[2] == pytest.approx(ratios[1], rel=1e-3)
    assert theory.correlation_fixed_point("tanh", point.sigma_w * (1 - 1e-9), 0.3) == 1.0


# ------------------------------------------------------------------------------------ criticality


@pytest.mark.parametrize(
    ("activation", "square_b", "w", "stable"),
    [
        ("tanh", 0.05, math.sqrt(1.76095), True), ("erf", 0.05, 1.17296, True),
        ("hard_tanh", 0.05, 1.07960, True), ("relu", 0.0, math.sqrt(2), True),
        ("elu", 0.04, 1.22925, True), ("selu", 0.04, 0.93748, True), ("gelu", 0.3, 1.39863, True),
        ("silu", 0.8, 1.40351, True), ("sigmoid", 0.0, 10.1493, True), ("tanh", 0.0, 1.0, True),
        ("selu", 0.0, math.sqrt(2 / (1 + reference.SELU_ALPHA**2)) / reference.SELU_LAMBDA, True),
        ("gelu", 0.0, 2.0, False), ("silu", 0.0, 2.0, False), ("identity", 0.0, 1.0, True),
    ],
)  # fmt: skip
def test_critical_points(activation: str, square_b: float, w: float, stable: bool) -> None:
    b = math.sqrt(square_b)
    point = theory.critical_point(activation, b)
    assert point is not None
    assert point.sigma_w == pytest.approx(w, rel=6e-6)
    assert point.stable is stable
    if stable and point.q > 0:
        assert theory.fixed_point(activation, point.sigma_w, b) == pytest.approx(point.q, rel=1e-7)
        assert theory.chi(activation, point.sigma_w, b) == pytest.approx(1.0, abs=1e-8)


def test_no_critical_point() -> None:
    for b in (0.0, 0.1, 1.0, 10.0):
        assert theory.critical_point("softplus", b) is None
    assert theory.critical_point("relu", 0.1) is None
    half = theory.critical_point("leaky_relu", 0.0, negative_slope=0.5)
    assert half is not None
    assert half.sigma_w == pytest.approx(math.sqrt(2 / 1.25))
    assert math.isnan(half.q)


def test_gains() -> None:
    """Published values (Brock et al. 2021 by Monte Carlo; layer norm from theory.md's sources)."""
    published = {"relu": 1.7139588594436646, "gelu": 1.7015043497085571, "silu": 1.7881293296813965,
                 "tanh": 1.5939117670059204, "elu": 1.2716004848480225}  # fmt: skip
    for activation, value in published.items():
        assert theory.gain(activation) == pytest.approx(value, rel=1e-3)
    for activation, value in (("relu", 1), ("tanh", 1.178), ("gelu", 1.072), ("silu", 1.067)):
        assert theory.normalized_chi(activation) == pytest.approx(value, abs=6e-4)


# ---------------------------------------------------------------------------------- finite width


def test_log_moments_of_relu_by_drawing() -> None:
    rng, n = np.random.default_rng(0), 12
    active, normal = rng.random((200_000, n)) < 0.5, rng.standard_normal((200_000, n))
    sums = np.sum(normal**2 * active, axis=1)
    logs = np.log(1.7**2 / n * sums[sums > 0])
    moments = theory.gradient_log_moments("relu", 1.7, 0.0, n)
    error = math.sqrt(moments.variance / len(logs))
    assert logs.mean() == pytest.approx(moments.mean, abs=4 * error)
    assert logs.var() == pytest.approx(moments.variance, rel=0.02)


def test_log_moments() -> None:
    x = np.array([0.5, 1.0, 3.5, 40.0, 1e4])
    digamma, trigamma = moments._polygamma(x)
    np.testing.assert_allclose(digamma, [float(mpmath.digamma(v)) for v in x], rtol=1e-14)
    np.testing.assert_allclose(trigamma, [float(mpmath.psi(1, v)) for v in x], rtol=1e-13)
    mean, variance = theory.gradient_log_moments("identity", 1.0, 0.0, 50)
    assert (mean, variance) == (-0.02, 0.04)
    assert theory.gradient_log_moments("tanh", 0.0, 0.1, 50) == (-math.inf, 0.0)
    wide = theory.gradient_log_moments("relu", math.sqrt(2), 0.0, 4000)
    assert wide.variance == pytest.approx(5 / 4000, rel=2e-3)
    assert wide.mean == pytest.approx(-5 / 8000, rel=2e-3)


def test_sigma_w() -> None:
    for init in theory.INITIALIZERS:
        if init in ("normal", "critical"):
            assert theory.sigma_w(init, 30, 50, 1.3) == pytest.approx(1.3)
            continue
        weight = vegrad.MLP([150, 100], init=init, seed=0).parameters["layers.0.weight"]
        assert theory.sigma_w(init, 150, 100) == pytest.approx(
            math.sqrt(150) * weight.std(), rel=0.03
        )
    assert theory.sigma_w("orthogonal", 100, 400) == 0.5
    assert theory.sigma_w("he", 7, 9, 0.5) == pytest.approx(math.sqrt(0.5))


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: theory.mean("sine", 1.0), ValueError, "activation must be one of identity"),
        (lambda: theory.mean(3, 1.0), TypeError, "activation must be one of.*int"),
        (lambda: theory.second_moment("tanh", -1.0), ValueError, "q must not be negative, got -1"),
        (lambda: theory.mean("tanh", np.array([1, np.nan])), ValueError, "q .*got nan"),
        (lambda: theory.mean("tanh", "1"), TypeError, "q must be a number"),
        (lambda: theory.variance_map(1.0, "tanh", -1, 0), ValueError, "sigma_w .*got -1"),
        (lambda: theory.fixed_point("tanh", 1, -0.5), ValueError, "sigma_b .*got -0.5"),
        (lambda: theory.fixed_point("tanh", math.inf, 0), ValueError, "sigma_w .*finite.*inf"),
        (lambda: theory.chi("tanh", "1", 0), TypeError, "sigma_w must be a number, not str"),
        (lambda: theory.correlation_map(1.5, "tanh", 1, 0), ValueError, "c must be from -1 to 1"),
        (lambda: theory.correlation_fixed_point("tanh", "2", 0), TypeError, "sigma_w must be"),
        (lambda: theory.critical_point("tanh", -1), ValueError, "sigma_b .*got -1"),
        (lambda: theory.sigma_w("xavier", 3, 3), ValueError, "init must be one of glorot_uniform"),
        (lambda: theory.sigma_w("he", 0, 3), ValueError, "fan_in must be at least 1, not 0"),
        (lambda: theory.sigma_w("he", 2.5, 3), TypeError, "fan_in must be an integer"),
        (lambda: theory.gradient_log_moments("relu", 1, 0, 0), ValueError, "width must be"),
        (lambda: theory.mean("leaky_relu", 1.0, negative_slope=math.nan), ValueError, "slope"),
    ],
)  # fmt: skip
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
