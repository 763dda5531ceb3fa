"""vegrad.torch.cure and what lies beside a network's weights: settings, sums, goals, softmaxes."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch.settings import are_suspect  # noqa: E402

from tests.torch.patched import cure  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def classes(rows: int = 256) -> tuple[Any, Any]:
    """Four clouds of points and their numbers."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (rows,), generator=random)
    places = 3.0 * torch.randn(4, 8, generator=random)
    return torch.randn(rows, 8, generator=random) + places[target], target


def numbers(rows: int = 256, noise: float = 0.0) -> tuple[Any, Any]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=random)
    return x, x[:, :1] + noise * torch.randn(rows, 1, generator=random)


def model(activation: Any = nn.ReLU, depth: int = 2, outputs: int = 4) -> Any:
    torch.manual_seed(0)
    hidden = [one for _ in range(depth - 1) for one in (nn.Linear(32, 32), activation())]
    return nn.Sequential(nn.Linear(8, 32), activation(), *hidden, nn.Linear(32, outputs))


def sgd(rate: float, **more: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **more)


# ------------------------------------------------------------------------ the optimizer's settings


def test_a_decay_that_outweighs_the_gradient_is_named_first() -> None:
    found = cure(model(depth=3), nn.CrossEntropyLoss(), *classes(),
                 optimizer=sgd(0.1, weight_decay=2.0))  # fmt: skip
    assert found.before.findings[0].cause == "weight-decay"
    assert not found.attempts
    assert "weight decay" in found.about[0]


def test_a_usual_decay_is_not_watched() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2))]
    usual = [
        torch.optim.SGD(weights, lr=0.1, weight_decay=5e-4),
        torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1),
        torch.optim.Adam(weights),
    ]
    assert not any(are_suspect(one) for one in usual)
    assert are_suspect(torch.optim.Adam(weights, eps=10.0))
    assert are_suspect(torch.optim.AdamW(weights, lr=1e-2, weight_decay=10.0))


def test_a_rate_of_0_becomes_one_that_trains() -> None:
    found = cure(model(), nn.CrossEntropyLoss(), *classes(), optimizer=sgd(0.0))
    assert found.reached, str(found)
    assert found.learning_rate is not None
    assert found.learning_rate > 0


def test_a_rate_that_does_not_hold_the_goal_is_no_cure() -> None:
    x, target = classes()
    found = cure(model(), nn.CrossEntropyLoss(), x, target, optimizer=lambda parameters:
                 torch.optim.Adam(parameters, lr=3.0))  # fmt: skip
    assert found.reached, str(found)
    assert found.learning_rate is not None
    optimizer = torch.optim.Adam(found.model.parameters(), lr=found.learning_rate)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(found.model(x), target).backward()
        optimizer.step()
    assert float((found.model(x).argmax(1) == target).float().mean()) > 0.95


# --------------------------------------------------------------------------- the loss and its goal


def test_a_sum_over_rows_counts_by_row() -> None:
    found = cure(model(depth=3), nn.CrossEntropyLoss(reduction="sum"), *classes(),
                 optimizer=sgd(0.1))  # fmt: skip
    assert found.proof is None or found.proof.loss[1] < 5.0
    assert found.reached, str(found)


def test_a_goal_leaves_room_for_noise() -> None:
    loss = nn.MSELoss()
    x, target = numbers(noise=2.0)  # a fifth of the variance can be told
    found = cure(model(outputs=1), loss, x, target, optimizer=sgd(0.05))
    assert found.reached, str(found)
    assert found.goal.wanted > 0.7 * float(target.var())
    clean = cure(model(outputs=1), loss, *numbers(), optimizer=sgd(0.05))
    assert clean.goal.wanted == pytest.approx(float(numbers()[1].var()) / 2, rel=0.01)


def test_targets_beside_which_the_outputs_are_lost_are_scaled() -> None:
    x, target = numbers()
    found = cure(model(outputs=1), nn.MSELoss(), x, 1e6 * target)
    assert found.cured, str(found)
    assert "target_scale" in found.patch


def test_a_constant_target_is_called_so() -> None:
    x, target = numbers()
    found = cure(model(outputs=1), nn.MSELoss(), x, torch.full_like(target, 3.0))
    assert "the same in every row" in found.about[0]
    unused = cure(model(outputs=1), lambda output, _: (output - x[:1, :1]).square().mean(), x,
                  torch.zeros_like(target))  # fmt: skip
    assert not any("the same in every row" in words for words in unused.about)


# -------------------------------------------------------------------------------- hidden softmaxes


def test_a_hidden_softmax_is_exchanged() -> None:
    model_ = model(lambda: nn.Softmax(dim=1), depth=4)
    found = cure(model_, nn.CrossEntropyLoss(), *classes(), optimizer=sgd(0.1))
    assert found.cured, str(found)
    assert not any(isinstance(one, nn.Softmax) for one in found.model.modules())
