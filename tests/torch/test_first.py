"""The first NaN of a training: the operation or the step that made it."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]
Step = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
nan, inf = float("nan"), float("inf")


def net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def cause(
    model: nn.Module,
    loss: Step,
    x: torch.Tensor | None = None,
    steps: int = 3,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **options: float,
) -> str | None:
    """Return the cause of the first finding on a short training, None if there is none."""
    torch.manual_seed(1)
    x = torch.randn(16, 6) if x is None else x
    target = torch.arange(16) % 3
    monitor, optimizer = Monitor(model), make(model.parameters(), **{"lr": 0.01, **options})
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, x, target).backward()
        optimizer.step()
    findings = monitor.report().findings
    return findings[0].cause if findings else None


def cross_entropy(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), target)


def of_targets(known: float, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    wanted = torch.zeros(16, 3)
    wanted[3, 1] = known

    def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return reduce(model(x) - wanted)

    return loss


LOSSES: dict[str, tuple[Step, str | None]] = {
    "log of a probability": (
        lambda model, x, y: -(model(x) * 1e4).softmax(1).log().gather(1, y[:, None]).mean(),
        "loss-domain",
    ),
    "log_softmax": (
        lambda model, x, y: -(model(x) * 10).log_softmax(1).gather(1, y[:, None]).mean(),
        None,
    ),
    "root of a sum that is 0": (
        lambda model, x, y: (model(x) * 0).square().sum().sqrt(),
        "sqrt-at-zero",
    ),
    "root beside 0": (lambda model, x, y: (model(x).square().sum() + 1e-8).sqrt(), None),
    "no label counts": (
        lambda model, x, y: nn.functional.cross_entropy(model(x), torch.full_like(y, -100)),
        "empty-loss",
    ),
    "a mean over nothing": (lambda model, x, y: model(x)[y > 5].square().mean(), "empty-loss"),
    "a count of 0": (
        lambda model, x, y: model(x).square().sum() / (y > 5).sum().float(),
        "loss-normalizer",
    ),
    "a count of at least 1": (
        lambda model, x, y: model(x)[y > 5].square().sum() / (y > 5).sum().clamp(min=1),
        None,
    ),
    "where() around a logarithm": (
        lambda model, x, y: torch.where(
            model(x) > 0, (model(x) * (model(x) > 0)).log(), 0.0
        ).mean(),
        "where-branch",
    ),
    "where() within it": (
        lambda model, x, y: torch.where(model(x) > 0, model(x), 1).log().mean(),
        None,
    ),
    "a target of NaN": (of_targets(nan, lambda d: d.square().mean()), "nonfinite-target"),
    "a target that nanmean leaves out": (
        of_targets(nan, lambda d: d.square().nanmean()),
        "nonfinite-target",
    ),
    "a target that is left out first": (
        of_targets(nan, lambda d: d[~d.isnan()].square().mean()),
        None,
    ),
    "labels longer than their frames": (
        lambda model, x, y: nn.functional.ctc_loss(
            model(x).view(4, 4, 3).log_softmax(2),
            torch.ones(4, 3, dtype=torch.long),
            torch.full((4,), 4),
            torch.full((4,), 3),
        ),
        "infeasible-alignment",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_operation_of_a_loss_is_named(name: str) -> None:
    loss, wanted = LOSSES[name]
    assert cause(net(), loss) == wanted


SAME = torch.arange(16) < 3


def distances(h: torch.Tensor) -> torch.Tensor:
    return (h * ~SAME[:, None]).square().sum(1).sqrt()


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (lambda h: (lambda d: torch.where(SAME, d, (2 - d).relu()))(distances(h)), "sqrt-at-zero"),
        (lambda h: torch.where(SAME, distances(h), 0.0), "sqrt-at-zero"),
        (lambda h: torch.where(SAME, 0.0, distances(h)), "where-branch"),
        (lambda h: distances(h).masked_fill(SAME, 0.0), "where-branch"),
        (lambda h: distances(h).masked_fill(~SAME, 0.0), "sqrt-at-zero"),
        (lambda h: distances(h)[~SAME], "where-branch"),
        (lambda h: distances(h)[SAME], "sqrt-at-zero"),
        (lambda h: torch.where(SAME, 0.0, (SAME + 0 * h[:, 0]).acos()), "where-branch"),
        (lambda h: torch.where(SAME, (SAME + 0 * h[:, 0]).acos(), 0.0), "loss-domain"),
        (lambda h: distances(h) + torch.where(SAME, h[:, 0], h[:, 1]), "sqrt-at-zero"),
        (lambda h: torch.where(SAME, (distances(h).square() + 1e-8).sqrt(), 0.0), "sqrt-at-zero"),
        (lambda h: torch.where(SAME, h[:, 0], torch.where(SAME, 1.0, h[:, 1]).abs().sqrt()), None),
    ],
)
def test_only_what_a_where_leaves_out_is_hidden_by_it(
    loss: Callable[[torch.Tensor], torch.Tensor], wanted: str | None
) -> None:
    assert cause(net(), lambda model, x, y: loss(model(x)).mean()) == wanted


class Within(nn.Module):
    """Does something between two layers."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


def masked(h: torch.Tensor, fill: float) -> torch.Tensor:
    hidden = torch.zeros(h.shape, dtype=torch.bool)
    hidden[2] = True
    return h.masked_fill(hidden, fill).softmax(1)


OPERATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str | None]] = {
    "root of 0": (lambda h: (h - h.detach()).sqrt(), "sqrt-at-zero"),
    "root beside 0": (lambda h: (h - h.detach() + 1e-6).sqrt(), None),
    "logarithm of what is negative": (lambda h: h.log(), "domain-edge"),
    "logarithm of what is positive": (lambda h: h.exp().log(), None),
    "a row of -inf": (lambda h: masked(h, -inf), "masked-row"),
    "a row of -1e4": (lambda h: masked(h, -1e4), None),
    "a division by 0": (lambda h: h / h.relu(), "zero-division"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operation_of_a_model_is_named(name: str) -> None:
    between, wanted = OPERATIONS[name]
    assert cause(Within(between), cross_entropy) == wanted


def test_an_input_is_named() -> None:
    x = torch.randn(16, 6)
    x[5, 2] = nan
    assert cause(net(), cross_entropy, x) == "nonfinite-input"


def test_a_step_that_makes_nan_is_named() -> None:
    def half(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x.half()).float(), target)

    adam = torch.optim.Adam
    assert cause(net().half(), half, make=adam, eps=1e-8) == "optimizer-eps"
    assert cause(net().half(), half, make=adam, eps=1e-4) is None
    assert cause(net(), cross_entropy, make=adam) is None


def test_steps_that_are_too_large_are_named() -> None:
    def squared(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (model(x) - 1).square().mean()

    assert cause(net(), squared, steps=60, lr=3.0) == "learning-rate-high"
    assert cause(net(), squared, steps=60, lr=1e30) == "learning-rate-high"
    assert cause(net(), squared, steps=60, lr=0.01) is None


def test_values_beyond_a_dtype_are_named() -> None:
    def half(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x.half()).float(), target)

    assert cause(net().half(), half) is None
    large = net().half()
    with torch.no_grad():
        large[2].weight.mul_(2e5)
    assert cause(large, half) == "dtype-range"


def test_weights_that_are_nan_from_the_start_are_named() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = nan
    assert cause(model, cross_entropy) == "nonfinite-weights"


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_states_that_overflow_after_a_step_are_at_no_edge(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"r": nn.RNN(8, 64, nonlinearity=kind, batch_first=True)})
    nn.init.orthogonal_(model["r"].weight_hh_l0, 1.6)
    monitor = Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model["r"](torch.randn(32, 60, 8))[0][:, -1].square().mean().backward()
        optimizer.step()
    causes = [one.cause for one in monitor.report().findings]
    assert ("learning-rate-high" in causes) == (kind == "relu")
    assert "domain-edge" not in causes


def test_a_parameter_is_no_place_in_words() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.RNN(8, 16, nonlinearity="relu", batch_first=True))
    with torch.no_grad():
        model[0].weight_hh_l0.mul_(1e6)
    x = torch.randn(4, 60, 8)
    found = diagnose(model, lambda out, _: out[0].square().mean(), x).findings[-1]
    assert found.kind == "nonfinite"
    assert found.cause == "overflow"
    assert "rnn_relu in 0 " in found.message
