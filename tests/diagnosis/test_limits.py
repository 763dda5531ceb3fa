"""Limits: a signal that is far too large from the first layer on; the decades of a chain."""

import numpy as np
import pytest
from vegrad import MLP, diagnose

RNG = np.random.default_rng(5)
X, LABELS = RNG.standard_normal((200, 32)), RNG.integers(0, 10, 200)


def network(**options: object) -> MLP:
    options = {"activation": "relu", "init": "he_normal", "loss": "cross_entropy"} | options
    return MLP([32, *[64] * 9, 10], seed=0, **options)  # type: ignore[arg-type]


def entrances(net: MLP, factor: float) -> list[str]:
    findings = diagnose(net, factor * X, LABELS).findings
    return [f.severity for f in findings if f.kind == "exploding" and "std" in f.evidence]


@pytest.mark.parametrize(("factor", "severities"), [
    (1, []), (1e-3, []), (15, []), (30, ["warning"]), (100, ["critical"]),
])  # fmt: skip
def test_it_is_a_matter_of_size(factor: float, severities: list[str]) -> None:
    assert entrances(network(), factor) == severities


@pytest.mark.parametrize("options", [
    {"activation": "tanh", "init": "lecun_normal"}, {"norm": "layer"}, {"norm": "rms"},
])  # fmt: skip
def test_what_bounds_the_signal_says_otherwise(options: dict[str, object]) -> None:
    assert entrances(network(**options), 100) == []


def test_the_advice_is_in_numbers_and_works() -> None:
    net = network()
    diagnosis = diagnose(net, 100 * X, LABELS)
    assert diagnosis.verdict == "exploding"
    assert diagnosis.findings[0].layers == (0,)
    factor = float(diagnosis.findings[0].advice.rsplit(" by ", 1)[1].rstrip("."))
    net.parameters["layers.0.weight"][...] *= factor
    assert diagnose(net, 100 * X, LABELS).healthy
    assert diagnose(network(), X, LABELS).healthy


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("decades", "severities"), [
    (2.7, []), (3.3, ["warning"]), (4.3, ["critical"]),
])  # fmt: skip
def test_a_chain_is_sick_from_three_decades_on(
    sign: int, decades: float, severities: list[str]
) -> None:
    """Orthogonal layers without a nonlinearity pass the gradient at exactly their scale."""
    net = network(activation="identity", init="orthogonal", loss="mse")
    for layer in range(1, 9):
        net.parameters[f"layers.{layer}.weight"][...] *= 10 ** (sign * decades / 9)
    # The last layer, 64 to 10, lets through what it is given; it is scaled as the rest.
    net.parameters["layers.9.weight"][...] *= 10 ** (sign * decades / 9)
    target = np.eye(10)[LABELS]
    diagnosis = diagnose(net, X, target)
    kind = "exploding" if sign > 0 else "vanishing"
    assert diagnosis.flow is not None
    assert abs(diagnosis.flow.chain_log10 - sign * decades) < 0.1
    assert [f.severity for f in diagnosis.findings if f.kind == kind] == severities


def test_a_healthy_chain_near_the_limit_says_where_that_lies() -> None:
    sizes = [32, *[64] * 24, 10]
    tanh = MLP(sizes, activation="tanh", init="normal", sigma_w=0.85, loss="cross_entropy", seed=0)
    summary = diagnose(tanh, X, LABELS).summary
    assert summary.startswith("healthy: ")
    assert summary.endswith(" of the last (vanishing begins at 0.001)")
    assert "begins" not in diagnose(network(), X, LABELS).summary
