"""Second looks of a monitor: a diagnosis, where sizes of modules may have several causes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402


class Gate(nn.Module):
    """A branch of two layers, the last `zeros` of which begin at 0."""

    def __init__(self, zeros: int) -> None:
        super().__init__()
        self.entry, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.gate = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        for one in self.gate[::2][-zeros:]:
            nn.init.zeros_(one.weight)
            nn.init.zeros_(one.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.entry(x))
        return self.head(h + self.gate(h))


class Cut(nn.Module):
    """An encoder whose output is detached, or a head that no loss takes."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.unused = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.encoder(x))
        self.unused(h)
        return self.head(h.detach() if self.cut else h)


def mlp(fill: float | None = None) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    for one in model[::2] if fill is not None else ():
        nn.init.constant_(one.weight, fill)
        nn.init.zeros_(one.bias)
    return model


def causes_of(
    make: Callable[[], nn.Module],
    loss_fn: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    *,
    rate: float = 0.01,
    steps: int = 30,
) -> list[str]:
    torch.manual_seed(0)
    model, x = make(), torch.randn(64, 8)
    y = x[:, :3].argmax(1)
    monitor = Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    return [one.cause for one in monitor.report().findings]


def test_a_dead_module_of_two_layers_that_begin_at_zero_is_a_closed_gate() -> None:
    assert causes_of(lambda: Gate(2))[0] == "closed-gates"
    assert causes_of(lambda: Gate(1)) == []


def test_units_that_are_copies_are_no_matter_of_the_weights_scale() -> None:
    assert causes_of(lambda: mlp(0.05))[0] == "symmetry"
    assert causes_of(lambda: mlp(0.0))[0] == "symmetry"
    assert causes_of(mlp) == []


def test_a_layer_without_gradient_is_detached_only_where_something_ends_the_graph() -> None:
    assert causes_of(lambda: Cut(cut=True)) == ["detached"]
    assert causes_of(lambda: Cut(cut=False)) == []


def test_an_activation_before_the_loss_is_looked_at_with_the_loss() -> None:
    assert causes_of(lambda: nn.Sequential(mlp(), nn.Softmax(1)))[0] == "double-softmax"
    assert causes_of(lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), functional.nll_loss) == []

    def shares(output: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(output, functional.one_hot(y, 3).float())

    assert causes_of(lambda: nn.Sequential(mlp(), nn.Sigmoid()), shares) == []


def of_softmax(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.softmax(-1), target)


def of_first_softmax(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(nn.Softmax(dim=1)(output), target) + output.square().mean() / 10


def of_sigmoid(output: Tensor, target: Tensor) -> Tensor:
    wanted = functional.one_hot(target, 3).float()
    return functional.binary_cross_entropy_with_logits(output.sigmoid(), wanted)


def of_flat_sigmoid(output: Tensor, target: Tensor) -> Tensor:
    wanted = functional.one_hot(target, 3).float().view(-1)
    return functional.binary_cross_entropy_with_logits(output.view(-1).sigmoid(), wanted)


def of_cosines(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.softmax(1) / 0.05, target)


def of_logarithms(output: Tensor, target: Tensor) -> Tensor:
    return functional.nll_loss(output.log_softmax(1), target)


def of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    wanted = functional.one_hot(target, 3).float()
    return functional.binary_cross_entropy(output.sigmoid(), wanted)


@pytest.mark.parametrize("loss", [of_softmax, of_first_softmax, of_sigmoid, of_flat_sigmoid])
def test_an_activation_between_the_model_and_its_loss_is_found(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert causes_of(mlp, loss) == ["double-softmax"]


@pytest.mark.parametrize("loss", [of_cosines, of_logarithms, of_probabilities])
def test_an_activation_that_belongs_between_them_is_none(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert causes_of(mlp, loss) == []


def flipped(output: Tensor, target: Tensor) -> Tensor:
    return -functional.cross_entropy(output, target)


def opposed(output: Tensor, target: Tensor) -> Tensor:
    """A task, and labels that are not to be told from it."""
    return functional.mse_loss(output, output.detach() + 1) - functional.cross_entropy(
        output, target
    )


def test_a_cross_entropy_that_falls_below_zero_has_its_sign_flipped() -> None:
    assert causes_of(mlp, flipped, rate=0.1, steps=60)[0] == "wrong-reduction"
    assert causes_of(mlp, flipped, rate=0.1, steps=8) == []  # too few to tell
    assert "wrong-reduction" not in causes_of(mlp, opposed, rate=0.1, steps=60)


def test_what_was_learnt_may_be_unlearnt() -> None:
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(64, 8)
    y = x[:, :3].argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(200):
        if step == 150:
            monitor = Monitor(model, on_finding=None)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        (loss if step < 150 else -loss).backward()
        optimizer.step()
    assert float(monitor.history.loss[-1]) < 10 * float(monitor.history.loss[0]) < 0
    assert "wrong-reduction" not in [one.cause for one in monitor.report().findings]


def test_an_opponent_may_climb_the_loss_of_the_network_that_is_watched() -> None:
    torch.manual_seed(0)
    made, judge = nn.Linear(4, 8), mlp()
    monitor = Monitor(judge, on_finding=None)
    first, second = (torch.optim.Adam(one.parameters(), 0.01) for one in (made, judge))
    for _ in range(60):
        x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))
        second.zero_grad()
        functional.cross_entropy(judge(made(x).detach()), y).backward()
        second.step()
        first.zero_grad()
        (-functional.cross_entropy(judge(made(x)), y)).backward()
        first.step()
    assert "wrong-reduction" not in [one.cause for one in monitor.report().findings]


def beside_all(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output[:, :1], target.float())


def beside_its_own(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output[:, :1], target.float()[:, None])


def beside_several(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output[:, :1], functional.one_hot(target, 3).float())


@pytest.mark.parametrize(
    ("outputs", "loss", "wanted"),
    [
        (1, beside_all, ["broadcast"]),
        (1, beside_its_own, []),
        (1, beside_several, []),
        (3, functional.nll_loss, ["loss-domain"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_is_not_made_for_what_it_gets(
    outputs: int, loss: Callable[[Tensor, Tensor], Tensor], wanted: list[str]
) -> None:
    assert (
        causes_of(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, outputs)), loss)
        == wanted
    )


def test_logarithms_are_taken_by_nll_loss_but_not_those_of_a_relu() -> None:
    for last, wanted in ((nn.ReLU(), ["output-range"]), (nn.Identity(), [])):
        found = causes_of(
            lambda last=last: nn.Sequential(mlp(), last, nn.LogSoftmax(1)), functional.nll_loss
        )
        assert found == wanted


def test_steps_that_throw_a_network_are_blamed_and_not_its_weights() -> None:
    assert causes_of(mlp, rate=30.0)[0] == "learning-rate-high"
    assert causes_of(mlp, rate=0.0, steps=60) == ["learning-rate-low"]
    assert causes_of(mlp, rate=1e-3, steps=60) == []


def test_a_second_look_leaves_the_training_as_it_was() -> None:
    def trained(watched: bool) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(Gate(2), nn.BatchNorm1d(3), nn.Dropout(0.5))
        x, y = torch.randn(64, 8), torch.randint(3, (64,))
        monitor = Monitor(model, on_finding=None) if watched else None
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(12):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if monitor is not None:
            assert monitor.report().findings
        gradients = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        return [*map(torch.clone, model.state_dict().values()), *gradients], torch.rand(3)

    plain, seen = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], seen[0], strict=True))
    assert torch.equal(plain[1], seen[1])
