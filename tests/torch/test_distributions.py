"""Distributions that are given parameters or values for which they are not defined."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributions import Bernoulli, Beta, Distribution, Normal  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread", "checking")


@pytest.fixture
def checking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have distributions check what they are given; torch.compile turns that off for good."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


def model(*tail: Any, outputs: int = 2) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs), *tail)


def normal(output: Any, target: Any) -> Any:
    mean, scale = output.chunk(2, -1)
    return -Normal(mean, scale).log_prob(target).mean()


def bernoulli(output: Any, target: Any) -> Any:
    return -Bernoulli(probs=output).log_prob(target).mean()


def beta(output: Any, target: Any) -> Any:
    first, second = output.exp().chunk(2, -1)
    return -Beta(first, second).log_prob(target).mean()


def data(low: float, high: float) -> tuple[Any, Any]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=random)
    return x, low + (high - low) * torch.randint(0, 2, (32, 1), generator=random).float()


CASES = [
    (model(), normal, data(-1, 1), "loss-domain", "scale of Normal must be above 0"),
    (model(outputs=1), bernoulli, data(0, 1), "loss-domain", "probs of Bernoulli must be from 0"),
    (model(nn.Sigmoid(), outputs=1), bernoulli, data(-1, 1), "target-range", "numbers from -1 to"),
    (model(), beta, data(0.5, 2), "target-range", "Beta is a distribution of numbers from 0 to 1"),
]


@pytest.mark.parametrize(("net", "loss", "rows", "cause", "words"), CASES)
def test_what_a_distribution_refuses_is_a_finding(
    net: Any, loss: Any, rows: Any, cause: str, words: str
) -> None:
    found = vegrad.torch.diagnose(net, loss, *rows).findings[0]
    assert found.cause == cause
    assert words in found.message
    cured = vegrad.torch.cure(net, loss, *rows, steps=20)
    assert not cured.attempts  # the loss must be written anew first
    assert words in cured.about[0]


def test_a_distribution_within_its_limits_is_none() -> None:
    for net, loss, rows in (
        (model(nn.Softplus()), normal, data(-1, 1)),
        (model(nn.Sigmoid(), outputs=1), bernoulli, data(0, 1)),
        (model(), beta, data(0.2, 0.8)),
    ):
        causes = [one.cause for one in vegrad.torch.diagnose(net, loss, *rows).findings]
        assert not {"loss-domain", "target-range"} & set(causes)


def test_what_is_not_finite_is_blamed_before_what_it_is_given_to() -> None:
    net = model()
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    found = vegrad.torch.diagnose(net, normal, *data(-1, 1)).findings[0]
    assert found.cause == "nonfinite-weights"


def test_other_errors_are_raised_as_they_are() -> None:
    x, target = data(0, 1)
    with pytest.raises(ValueError, match="target size"):
        vegrad.torch.diagnose(
            model(nn.Sigmoid(), outputs=1), nn.functional.binary_cross_entropy, x, target[:, 0]
        )
