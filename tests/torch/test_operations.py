"""Operations that are to blame for NaN or let nothing pass, and those that nearly are."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812
import vegrad.torch as ours  # noqa: E402
from torch import Tensor, nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROWS, WIDTH = 24, 6
ENTROPY = nn.CrossEntropyLoss()


class Net(nn.Module):
    """A map, a function of what it makes, and a map of that."""

    def __init__(
        self, between: Callable[[Tensor], Tensor], hidden: int = 8, width: int = 8
    ) -> None:
        super().__init__()
        self.first, self.between = nn.Linear(WIDTH, 8, bias=False), between
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.between(self.first(x)))


def rows(zero: int | None = None, **values: float) -> Tensor:
    """Rows of numbers, one of which may be all 0, or one number something else."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH)
    if zero is not None:
        x[zero] = 0.0
    for value in values.values():
        x[5, 2] = value
    return x


LABELS = torch.arange(ROWS) % 3
GOALS = torch.linspace(-1, 1, ROWS * 3).view(ROWS, 3)


def mlp(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, outputs))


def found(model: nn.Module, loss: Any, x: Any, target: Any) -> Any:
    diagnosis = ours.diagnose(model, loss, x, target)
    return diagnosis.findings[0] if diagnosis.findings else None


def cause(model: nn.Module, loss: Any, x: Any, target: Any) -> str:
    first = found(model, loss, x, target)
    return first.cause if first is not None else ""


# Within the model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "between", "width"),
    [
        ("sqrt-at-zero", lambda h: h.square().sum(1, keepdim=True).sqrt(), 1),
        ("sqrt-at-zero", lambda h: h.square().sum(1, keepdim=True) ** 0.5, 1),
        ("sqrt-at-zero", lambda h: torch.cat([h, h.square().sum(1, keepdim=True).sqrt()], 1), 9),
        ("", lambda h: (h.square().sum(1, keepdim=True) + 1e-6).sqrt(), 1),
        ("", lambda h: torch.cat([h, h.norm(dim=1, keepdim=True)], 1), 9),  # 0 by convention
        ("zero-division", lambda h: h / h.norm(dim=1, keepdim=True), 8),
        ("", lambda h: h / (h.norm(dim=1, keepdim=True) + 0.1), 8),
        ("zero-vectors", F.normalize, 8),
        ("", lambda h: F.normalize(h + 1), 8),
        ("domain-edge", lambda h: F.relu(h).log(), 8),
        ("domain-edge", lambda h: (3 * h).clamp(-1, 1).acos(), 8),
        ("", lambda h: h.tanh().mul(0.99).acos(), 8),
        ("domain-edge", lambda h: h**1.5, 8),
        ("where-branch", lambda h: torch.where(h > 0, F.relu(h).sqrt(), 0.0), 8),
        ("where-branch", lambda h: torch.where(h > 0, 1 / F.relu(h), 0.0), 8),
        ("where-branch", lambda h: (F.relu(h).log() * h).masked_fill(h <= 0, 0.0), 8),
        ("where-branch", lambda h: torch.where(h > 0, h, (900 * h).exp().log1p()), 8),
        ("", lambda h: torch.where(h > 0, torch.where(h > 0, h, 1.0).sqrt(), 0.0), 8),
        ("masked-row", lambda h: h.masked_fill(h.sum(1, True) == 0, -inf).softmax(1), 8),
        ("", lambda h: h.masked_fill(h.sum(1, True) == 0, -1e4).softmax(1), 8),
        ("", lambda h: h.masked_fill(h < h.mean(1, keepdim=True), -inf).softmax(1), 8),
        ("overflow", lambda h: (500 * h).exp(), 8),
        ("norm-of-one", lambda h: F.group_norm(h, 8), 8),
        ("", lambda h: F.group_norm(h + 1, 2), 8),
        ("norm-of-one", lambda h: F.normalize(h[:, :1], dim=1), 1),
        ("detached", lambda h: h.relu().detach(), 8),
        ("detached", lambda h: h.relu().data, 8),
        ("detached", lambda h: torch.tensor(h.tolist()), 8),
        ("no-derivative", lambda h: (h > 0).float(), 8),
        ("no-derivative", torch.round, 8),
        ("", lambda h: h + (h.round() - h).detach(), 8),
    ],
)
def test_between_two_maps(expected: str, between: Any, width: int) -> None:
    torch.manual_seed(1)
    assert cause(Net(between, width=width), ENTROPY, rows(zero=7), LABELS) == expected


def test_where_it_is() -> None:
    first = found(Net(lambda h: h.round()), ENTROPY, rows(), LABELS)
    assert [site.name for site in first.sites if site.kind == "parameter"] == ["first.weight"]
    first = found(Net(lambda h: F.relu(h).log()), ENTROPY, rows(), LABELS)
    assert first.kind == "nonfinite"
    assert "log" in first.message
    first = found(nn.Sequential(mlp(8), nn.GroupNorm(8, 8), mlp_of(8)), ENTROPY, rows(), LABELS)
    assert (first.cause, first.sites[0].kind, first.sites[0].name) == ("norm-of-one", "module", "1")


def mlp_of(width: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, 3))


class Reader(nn.Module):
    """The mean of the words of a text, by a mask of those that are there."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.words, self.least, self.out = nn.Embedding(9, 8), least, nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Any:
        mask = (tokens > 0).float()[..., None]
        return self.out((self.words(tokens) * mask).sum(1) / mask.sum(1).clamp(min=self.least))


@pytest.mark.parametrize(("least", "expected"), [(0.0, "zero-division"), (1.0, "")])
def test_a_mean_over_no_words(least: float, expected: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1, 9, (ROWS, 5))
    tokens[3] = 0
    assert cause(Reader(least), ENTROPY, tokens, LABELS) == expected


def test_float16_has_a_range_of_its_own() -> None:
    model = mlp().half()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.float(), target)

    assert cause(model, loss, rows().half(), LABELS) == ""
    with torch.no_grad():
        model[0].weight.mul_(2e4)
        model[2].weight.mul_(1e2)
    assert cause(model, loss, rows().half(), LABELS) == "dtype-range"


# Within the loss --------------------------------------------------------------------------------

LONG, SHORT = torch.full((ROWS,), 4), torch.full((ROWS,), 2)


def ctc(labels: list[int], **more: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        frames = output.log_softmax(1).expand(4, ROWS, 3)
        several = torch.tensor(labels).expand(ROWS, -1)
        return F.ctc_loss(frames, several, LONG, torch.full((ROWS,), len(labels)), **more)

    return loss


@pytest.mark.parametrize(
    ("expected", "loss", "target"),
    [
        ("loss-domain", lambda o, t: -(-400 * o.exp()).exp().log().mean(), None),
        ("loss-domain", lambda o, t: o.log().mean(), None),
        ("loss-domain", lambda o, t: (2 * o).clamp(-1, 1).asin().sum(), None),
        ("", lambda o, t: o.softmax(1).clamp(min=1e-6).log().mean(), None),
        ("sqrt-at-zero", lambda o, t: (o - o.detach()).square().mean().sqrt(), None),
        ("sqrt-at-zero", lambda o, t: (o[:, None] - o).square().sum(2).sqrt().mean(), None),
        ("", lambda o, t: torch.cdist(o, o).mean(), None),
        ("where-branch", lambda o, t: torch.where(o > 0, o.relu().sqrt(), 0.0).sum(), None),
        ("empty-loss", ENTROPY, torch.full((ROWS,), -100)),
        ("", ENTROPY, torch.where(torch.arange(ROWS) < 9, -100, LABELS)),
        ("empty-loss", lambda o, t: (o - t)[t > 9].square().mean(), GOALS),
        ("empty-loss", lambda o, t: ((o - t) * (t > 9)).sum() / (t > 9).sum(), GOALS),
        ("", lambda o, t: (o - t)[t > 0].square().mean(), GOALS),
        ("loss-normalizer", lambda o, t: (o - t).square().sum() / (t > 9).sum(), GOALS),
        ("loss-normalizer", lambda o, t: (o - t).square().sum() / ((t > 9).sum() + 1e-8), GOALS),
        ("", lambda o, t: 1e-6 * (o - t).square().sum() / ((t > 0).sum() * 1e-6), GOALS),
        ("", lambda o, t: ((o - t) * (t > 9)).sum() / ((t > 9).sum() + 1e-8) + o.mean(), GOALS),
        ("loss-domain", lambda o, t: (o.masked_fill(o < o.mean(), -inf) * 0).mean(), None),
        ("zero-division", lambda o, t: ((o - t) / (t.sign() + 1)).square().mean(), GOALS),
        ("infeasible-alignment", ctc([1, 2, 1, 2, 1]), None),
        ("infeasible-alignment", ctc([1, 1, 1]), None),
        ("infeasible-alignment", ctc([1, 1, 1], zero_infinity=True), None),
        ("", ctc([1, 2]), None),
        ("overflow", lambda o, t: (o * 1e38).square().mean(), None),
    ],
)
def test_within_the_loss(expected: str, loss: Any, target: Any) -> None:
    first = found(mlp(), loss, rows(), target)
    assert (first.cause if first is not None else "") == expected
    if expected and expected not in ("infeasible-alignment", "overflow"):
        assert first.sites[0].kind == "loss"


class LogProbability(nn.Module):
    """A policy that returns the logarithm of the density of what it does."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.body, self.bound = mlp(), bound

    def forward(self, x: Tensor) -> Any:
        action = self.bound * self.body(x).mul(3).tanh()
        return -torch.log(1 - action.square() + 1e-6)


@pytest.mark.parametrize(("bound", "expected"), [(2.0, "loss-domain"), (0.9, "")])
def test_a_logarithm_that_no_layer_follows_belongs_to_the_loss(bound: float, expected: str) -> None:
    assert cause(LogProbability(bound), lambda o, t: o.mean(), rows(), None) == expected


# Data -------------------------------------------------------------------------------------------


def holes(value: float = nan) -> Tensor:
    target = GOALS.clone()
    target[4, 1] = value
    return target


def indexed(output: Tensor, target: Tensor) -> Tensor:
    known = ~target.isnan()
    return (output[known] - target[known]).square().mean()


@pytest.mark.parametrize(
    ("expected", "loss"),
    [
        ("", indexed),
        ("", lambda o, t: ((o - t.nan_to_num()) * ~t.isnan()).square().mean()),
        ("nonfinite-target", F.mse_loss),
        ("nonfinite-target", lambda o, t: (o - t).square().nanmean()),
        ("nonfinite-target", lambda o, t: torch.where(t.isnan(), 0.0, (o - t) ** 2).mean()),
        ("nonfinite-target", lambda o, t: ((o - t) ** 2 * ~t.isnan()).mean()),
    ],
)
def test_targets_that_are_not_known(expected: str, loss: Any) -> None:
    first = found(mlp(), loss, rows(), holes())
    assert (first.cause if first is not None else "") == expected
    if expected:
        assert first.sites[0].rows == (4, 1)
    assert cause(mlp(), lambda o, t: (o - t).square().nanmean(), rows(), GOALS * nan) in (
        "empty-loss",
    )


@pytest.mark.parametrize(
    ("expected", "prepare"),
    [
        ("", lambda x: x.nan_to_num()),
        ("", lambda x: torch.where(x.isnan(), torch.zeros_like(x), x)),
        ("nonfinite-input", lambda x: x),
    ],
)
@pytest.mark.parametrize("value", [nan, inf])
def test_inputs_that_are_not_finite(expected: str, prepare: Any, value: float) -> None:
    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Any:
            return self.body(prepare(x).clamp(-9, 9) if expected == "" else x)

    first = found(Prepared(), ENTROPY, rows(hole=value), LABELS)
    assert (first.cause if first is not None else "") == expected
    if expected:
        assert first.sites[0].rows == (5, 2)


def test_a_loss_that_raises_on_nan_is_a_finding() -> None:
    model, target = nn.Sequential(mlp(1), nn.Sigmoid()), (LABELS[:, None] > 0).float()
    first = found(model, nn.BCELoss(), rows(hole=nan), target)
    assert (first.cause, first.sites[0].rows) == ("nonfinite-input", (5, 2))
    assert "RuntimeError" in first.message
    with torch.no_grad():
        model[0][2].weight[0, 3] = nan
    assert cause(model, nn.BCELoss(), rows(), target) == "nonfinite-weights"
    with pytest.raises(ValueError, match="batch_size"):
        found(mlp(), ENTROPY, rows(), LABELS[:3])


def test_a_buffer_that_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[1].running_mean[2] = nan
    assert cause(model, ENTROPY, rows(), LABELS) == "nonfinite-weights"


# The graph --------------------------------------------------------------------------------------


class Listed(nn.Module):
    """Layers in a plain list, or in one that registers them."""

    def __init__(self, kept: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.layers, self.out = (
            kept([nn.Linear(WIDTH, WIDTH) for _ in range(2)]),
            nn.Linear(WIDTH, 3),
        )

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x).relu()
        return self.out(x)


def test_layers_in_a_plain_list() -> None:
    torch.manual_seed(0)
    first = found(Listed(list), ENTROPY, rows(), LABELS)
    assert first.cause == "unregistered"
    assert first.sites[0].name == "layers[0].weight"
    assert cause(Listed(nn.ModuleList), ENTROPY, rows(), LABELS) == ""
    scale = nn.Parameter(torch.zeros(1))  # of the loss, not of the model
    assert cause(mlp(), lambda o, t: ENTROPY(o * scale.exp(), t), rows(), LABELS) == ""


class Pair(nn.Module):
    """Two networks, of which one is not to learn now."""

    def __init__(self, *, frozen: bool, target: bool) -> None:
        super().__init__()
        self.body, self.head, self.target = mlp(), nn.Linear(3, 3), target
        self.body.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            h = self.body(x)
        return (self.head(x[:, :3]), h) if self.target else (self.head(h), h)


@pytest.mark.parametrize(
    ("frozen", "target", "expected"),
    [(False, False, "detached"), (True, False, ""), (False, True, "")],
)
def test_what_is_frozen_or_a_target_is_no_fault(frozen: bool, target: bool, expected: str) -> None:
    torch.manual_seed(0)
    model = Pair(frozen=frozen, target=target)
    got = cause(
        model, lambda o, t: ENTROPY(o[0], t) + (o[0] - o[1]).square().mean(), rows(), LABELS
    )
    assert got == expected


def test_a_loss_that_was_told_to_require_a_gradient() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) != target).float().mean().requires_grad_()

    assert cause(mlp(), loss, rows(), LABELS) == "no-derivative"


class Gated(nn.Module):
    """A stream with a branch of two factors, of which some begin at 0."""

    def __init__(self, *zeros: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, 3)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.gate = nn.Parameter(torch.ones(1))
        for name in zeros:
            nn.init.zeros_(getattr(self, name))

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).relu()
        return self.last(h + self.gate * (h @ self.down.T @ self.up.T))


@pytest.mark.parametrize(
    ("zeros", "expected"),
    [(("down", "up"), "closed-gates"), (("up", "gate"), "closed-gates"), (("up",), "")],
)
def test_gates_that_are_all_closed(zeros: tuple[str, ...], expected: str) -> None:
    torch.manual_seed(0)
    first = found(Gated(*zeros), ENTROPY, rows(), LABELS)
    assert (first.cause if first is not None else "") == expected
    if expected:
        assert {site.name for site in first.sites} == set(zeros)
