"""Diagnoses of what is wrong at the loss, each beside one that nearly has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vegrad.torch import diagnose

ROWS, COLUMNS = 96, 10
Loss = Callable[[Any, Any], Tensor]


def made(outputs: int, *last: nn.Module, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(COLUMNS, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, outputs), *last
    )


def inputs() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))


def labels(classes: int, rows: int = ROWS) -> Tensor:
    return torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(2))


def numbers(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def binary(columns: int = 1) -> Tensor:
    return labels(2, ROWS * columns).float().reshape(ROWS, columns)


def cause(model: nn.Module, loss: Loss, target: object, x: object = None) -> str:
    """Return the first cause; "" if the model is healthy."""
    found = diagnose(model, loss, inputs() if x is None else x, target, resamples=0).findings
    assert all(one.message and one.advice for one in found)
    return found[0].cause if found else ""


def keras(output: Tensor, target: Tensor) -> Tensor:
    """Work out a categorical cross entropy of probabilities, as Keras does."""
    output = output / output.sum(-1, keepdim=True)
    return -(target * output.clamp(1e-7, 1 - 1e-7).log()).sum(-1).mean()


def of_own(output: Tensor, target: Tensor) -> Tensor:
    """Work out a binary cross entropy of probabilities."""
    log, other = (output + 1e-7).log(), (1 - output + 1e-7).log()
    return -(target * log + (1 - target) * other).mean()


def squared(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


# An output that nothing can change ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "loss", "target"),
    [
        (made(1), functional.cross_entropy, torch.zeros(ROWS, dtype=torch.long)),
        (made(1), functional.cross_entropy, binary()),
        (made(1, nn.Softmax(-1)), functional.binary_cross_entropy, binary()),
        (made(1, nn.Softmax(-1)), functional.mse_loss, numbers(ROWS, 1)),
        (made(1, nn.LogSoftmax(-1)), functional.nll_loss, torch.zeros(ROWS, dtype=torch.long)),
        (made(1, nn.Sigmoid()), keras, binary()),
    ],
)
def test_a_softmax_over_one_unit(model: nn.Module, loss: Loss, target: Tensor) -> None:
    assert cause(model, loss, target) == "constant-output"


def test_one_class_among_two_is_no_constant_output() -> None:
    assert cause(made(2), functional.cross_entropy, torch.zeros(ROWS, dtype=torch.long)) == ""
    assert cause(made(2, nn.Softmax(-1)), keras, functional.one_hot(labels(2), 2).float()) == ""
    assert cause(made(1), functional.binary_cross_entropy_with_logits, binary()) == ""


# Probabilities and logits ------------------------------------------------------------------------


class Exponentials(nn.Module):
    """A softmax of one's own."""

    def forward(self, z: Tensor) -> Tensor:
        e = z.exp()
        return e / e.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("last", "loss", "target"),
    [
        (nn.Softmax(1), functional.cross_entropy, labels(4)),
        (nn.Softmax(1), functional.cross_entropy, numbers(ROWS, 4).softmax(1)),
        (Exponentials(), functional.cross_entropy, labels(4)),
        (nn.Sigmoid(), functional.cross_entropy, labels(4)),
        (nn.Sigmoid(), functional.binary_cross_entropy_with_logits, binary(4)),
        (nn.Softmax(1), functional.nll_loss, labels(4)),
        (nn.Softmax(1), lambda p, y: functional.nll_loss(p.softmax(1).log(), y), labels(4)),
    ],
)
def test_probabilities_where_logits_belong(last: nn.Module, loss: Loss, target: Tensor) -> None:
    assert cause(made(4, last), loss, target) == "double-softmax"


@pytest.mark.parametrize(
    ("last", "loss", "target"),
    [
        (nn.LogSoftmax(1), functional.cross_entropy, labels(4)),  # idempotent
        (nn.LogSoftmax(1), functional.nll_loss, labels(4)),
        (nn.Softmax(1), lambda p, y: functional.nll_loss(p.log(), y), labels(4)),
        (nn.Sigmoid(), functional.binary_cross_entropy, binary(4)),
        (nn.Softmax(1), functional.mse_loss, functional.one_hot(labels(4), 4).float()),
        (nn.Identity(), functional.cross_entropy, labels(4)),
        (nn.Identity(), functional.multilabel_soft_margin_loss, binary(4)),
    ],
)
def test_each_loss_with_what_it_takes(last: nn.Module, loss: Loss, target: Tensor) -> None:
    assert cause(made(4, last), loss, target) == ""


def test_numbers_where_probabilities_belong() -> None:
    assert cause(made(4), functional.nll_loss, labels(4)) == "loss-domain"
    assert cause(made(1), functional.binary_cross_entropy, binary()) == "loss-domain"


def test_a_focal_loss_gives_nll_loss_other_numbers() -> None:
    def focal(output: Tensor, target: Tensor) -> Tensor:
        log = output.log_softmax(1)
        return functional.nll_loss((1 - log.exp()) ** 2 * log, target)

    assert cause(made(4), focal, labels(4)) == ""


# Outputs and targets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "loss", "target"),
    [
        (nn.Sigmoid(), functional.mse_loss, numbers(ROWS, 1, mean=200, std=50)),
        (nn.Sigmoid(), squared, numbers(ROWS, 1)),
        (nn.ReLU(), functional.l1_loss, numbers(ROWS, 1)),
        (nn.Tanh(), functional.huber_loss, numbers(ROWS, 1, std=100)),
        (nn.ReLU(), functional.binary_cross_entropy_with_logits, binary()),
    ],
)
def test_targets_that_the_output_cannot_reach(last: nn.Module, loss: Loss, target: Tensor) -> None:
    assert cause(made(1, last), loss, target) == "output-range"


@pytest.mark.parametrize(
    ("last", "loss", "target"),
    [
        (nn.Sigmoid(), functional.mse_loss, numbers(ROWS, 1).sigmoid()),
        (nn.Tanh(), squared, numbers(ROWS, 1).tanh()),
        (nn.Softplus(), functional.poisson_nll_loss, numbers(ROWS, 1).abs().round()),
        (nn.Identity(), functional.mse_loss, numbers(ROWS, 1, std=3)),
        (nn.Identity(), functional.mse_loss, numbers(ROWS, 1, mean=10)),
        (nn.Identity(), functional.mse_loss, numbers(ROWS, 1, mean=150, std=77)),
    ],
)
def test_targets_that_the_output_reaches(last: nn.Module, loss: Loss, target: Tensor) -> None:
    assert cause(made(1, last), loss, target) == ""


@pytest.mark.parametrize(
    ("last", "loss", "classes"),
    [
        ((nn.ReLU(),), functional.cross_entropy, 2),
        ((nn.ReLU(),), functional.cross_entropy, 6),
        ((nn.ReLU6(),), functional.cross_entropy, 6),
        ((nn.ReLU(), nn.LogSoftmax(1)), functional.nll_loss, 6),
    ],
)
def test_logits_that_an_activation_holds(
    last: tuple[nn.Module, ...], loss: Loss, classes: int
) -> None:
    assert cause(made(classes, *last), loss, labels(classes)) == "output-range"


def test_a_class_that_is_held_on_every_row_is_counted() -> None:
    model = made(6, nn.ReLU())
    model[4].bias.data[:] = torch.tensor([3.0, 3.0, -3.0, 3.0, 3.0, -3.0])  # type: ignore[union-attr]
    (found,) = diagnose(model, functional.cross_entropy, inputs(), labels(6), resamples=0).findings
    assert (found.evidence["held"], found.evidence["units"]) == (2, 6)


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        ((nn.LeakyReLU(),), functional.cross_entropy),
        ((nn.Softplus(),), functional.cross_entropy),
        ((nn.Hardtanh(-50, 50),), functional.cross_entropy),
        ((nn.Hardtanh(-50, 50), nn.LogSoftmax(1)), functional.nll_loss),
        ((nn.ReLU(), nn.Linear(2, 2)), functional.cross_entropy),
    ],
)
def test_logits_that_none_holds(last: tuple[nn.Module, ...], loss: Loss) -> None:
    assert cause(made(2, *last), loss, labels(2)) == ""


def test_means_of_what_a_relu_makes_are_not_held() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU())
    model = nn.Sequential(head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert cause(model, functional.cross_entropy, labels(4, 32), torch.randn(32, 3, 8, 8)) == ""


def test_logits_of_a_relu_that_has_learned_its_classes_are_left_alone() -> None:
    model, target = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), torch.arange(48) % 6
    torch.nn.init.eye_(model[0].weight)  # type: ignore[arg-type]
    x = functional.one_hot(target).float()
    assert cause(model, functional.cross_entropy, target, x) == ""


@pytest.mark.parametrize(("bias", "wanted"), [(1.0, ""), (-1.0, "output-range")])
def test_outputs_at_their_bound(bias: float, wanted: str) -> None:
    model = made(1, nn.ReLU())
    nn.init.constant_(model[4].bias, bias)
    assert cause(model, functional.mse_loss, numbers(ROWS, 1).abs()) == wanted


@pytest.mark.parametrize(
    ("outputs", "loss", "target"),
    [
        (4, functional.cross_entropy, labels(4) + 1),
        (4, functional.cross_entropy, labels(4) - 1),
        (4, functional.cross_entropy, labels(4).float()),
        (3, functional.cross_entropy, labels(9)),
        (1, functional.binary_cross_entropy_with_logits, labels(9)[:, None].float()),
        (1, functional.binary_cross_entropy_with_logits, 2 * binary() - 1),
        (1, functional.soft_margin_loss, binary()),
        (1, lambda z, y: of_own(z.sigmoid(), y), labels(9)[:, None].float()),
    ],
)
def test_targets_out_of_the_losss_range(outputs: int, loss: Loss, target: Tensor) -> None:
    assert cause(made(outputs), loss, target) == "target-range"


def test_targets_within_the_losss_range() -> None:
    some = labels(4)
    some[::3] = -100
    assert cause(made(4), functional.cross_entropy, some) == ""
    some[::3] = 255
    assert cause(made(4), nn.CrossEntropyLoss(ignore_index=255), some) == ""
    assert cause(made(1), functional.soft_margin_loss, 2 * binary() - 1) == ""
    assert cause(made(1, nn.Sigmoid()), of_own, binary()) == ""
    assert cause(made(4), nn.CrossEntropyLoss(label_smoothing=0.1), labels(4)) == ""


@pytest.mark.parametrize(
    "target",
    [
        numbers(ROWS, 1, mean=2e5, std=1e5),
        numbers(ROWS, 1, mean=2000, std=10),
        numbers(ROWS, 1, mean=100, std=1),
        numbers(ROWS, 1, std=1e-6),
    ],
)
@pytest.mark.parametrize("loss", [functional.mse_loss, functional.l1_loss, squared])
def test_targets_far_from_the_outputs_size(loss: Loss, target: Tensor) -> None:
    assert cause(made(1), loss, target) == "target-scale"


def test_targets_that_the_loss_scales_are_none() -> None:
    target = numbers(ROWS, 1, mean=2e5, std=1e5)
    assert cause(made(1), lambda o, y: functional.mse_loss(o, (y - 2e5) / 1e5), target) == ""


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [functional.mse_loss, functional.smooth_l1_loss, squared])
def test_outputs_beside_the_targets_of_other_rows(loss: Loss) -> None:
    assert cause(made(1), loss, numbers(ROWS)) == "broadcast"
    assert cause(made(1), loss, numbers(ROWS, 1)) == ""
    assert cause(made(1, nn.Flatten(0)), loss, numbers(ROWS)) == ""


def test_differences_of_all_pairs_that_are_meant() -> None:
    def nearest(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, None] - target[None]).square().sum(-1).amin(1).mean()

    assert cause(made(3), nearest, numbers(ROWS, 3)) == ""


# The sign and the axis ----------------------------------------------------------------------------


def test_a_softmax_over_the_rows() -> None:
    assert cause(made(4, nn.LogSoftmax(0)), functional.nll_loss, labels(4)) == "wrong-reduction"
    log = made(4, nn.Softmax(0))
    assert cause(log, lambda p, y: functional.nll_loss(p.log(), y), labels(4)) == "wrong-reduction"


def test_a_softmax_too_many_has_one_advice() -> None:
    told = diagnose(made(4, nn.Softmax(0)), functional.cross_entropy, inputs(), labels(4))
    assert [finding.cause for finding in told.findings] == ["double-softmax"]


def test_a_loss_without_a_lower_bound_is_finite() -> None:
    told = diagnose(made(4), functional.nll_loss, inputs(), labels(4))
    assert [(one.kind, one.cause) for one in told.findings] == [("stalled", "loss-domain")]


def test_a_flipped_sign() -> None:
    one_hot = functional.one_hot(labels(4), 4).float()
    assert (
        cause(made(4), lambda o, y: -functional.cross_entropy(o, y), labels(4)) == "wrong-reduction"
    )
    assert cause(made(1), lambda o, y: -squared(o, y), numbers(ROWS, 1)) == "wrong-reduction"
    flipped = cause(made(4), lambda o, y: (y * o.log_softmax(1)).sum(1).mean(), one_hot)
    assert flipped == "wrong-reduction"


def test_losses_that_may_be_negative() -> None:
    def policy(output: Tensor, advantage: Tensor) -> Tensor:
        return -(output.log_softmax(1)[:, 0] * advantage).mean()

    def critic(output: Tensor, sign: Tensor) -> Tensor:
        return (output * sign).mean()

    def fooled(output: Tensor, target: object) -> Tensor:
        return -functional.binary_cross_entropy_with_logits(output, torch.zeros_like(output))

    assert cause(made(4), policy, numbers(ROWS)) == ""
    assert cause(made(1), critic, 2 * binary() - 1) == ""
    assert cause(made(1), fooled, None) == ""


# Targets that move -------------------------------------------------------------------------------


class Values(nn.Module):
    """The values of two states."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.body = made(actions)

    def forward(self, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(now), self.body(then)


@pytest.mark.parametrize("held", [False, True])
def test_a_target_made_by_what_is_trained(held: bool) -> None:
    def best(values: tuple[Tensor, Tensor], reward: Tensor) -> Tensor:
        then = values[1].amax(1)
        return functional.mse_loss(
            values[0][:, 0], reward + 0.9 * (then.detach() if held else then)
        )

    def value(values: tuple[Tensor, Tensor], reward: Tensor) -> Tensor:
        then = values[1].detach() if held else values[1]
        return (reward + 0.9 * then[:, 0] - values[0][:, 0]).square().mean()

    both = inputs(), inputs().flip(0)
    for loss, actions in ((best, 3), (value, 1)):
        found = cause(Values(actions), loss, numbers(ROWS), both)
        assert found == ("" if held else "moving-target")


def test_two_views_that_are_drawn_together_are_no_moving_target() -> None:
    def alike(views: tuple[Tensor, Tensor], target: object) -> Tensor:
        return functional.mse_loss(*views)

    both = inputs(), inputs() + 0.1 * numbers(ROWS, COLUMNS)
    assert cause(Values(8), alike, None, both) == ""
