"""Monitor of loops in which no gradient comes to the model, or others' parameters are stepped."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.diagnosis.diagnosis import Diagnosis  # noqa: E402
from vegrad.torch import FindingWarning, Monitor  # noqa: E402

from tests.torch.test_monitor import mlp  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
silent = pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning")


def steps(model: nn.Module, stepped: nn.Module, way: str, count: int = 12) -> Monitor:
    """Train so many steps; `way` says where the loss's gradient is to come from."""
    monitor, head = Monitor(model), nn.Linear(16, 1)
    optimizer = torch.optim.SGD(stepped.parameters(), 0.01)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=way != "zeros")
        out = model(torch.ones(4, 16))
        if way in ("detached", "zeros"):
            head(out.detach()).square().mean().backward()
        elif way == "whole":
            out.square().mean().backward()
        optimizer.step()
    return monitor


@silent
@pytest.mark.parametrize(
    ("way", "cause"), [("detached", "detached"), ("zeros", "detached"), ("none", "")]
)
def test_no_parameter_gets_a_gradient(way: str, cause: str) -> None:
    model = mlp()
    report: Diagnosis = steps(model, model, way).report()
    first = report.findings[0]
    assert (first.kind, first.cause, first.evidence["steps"]) == ("stalled", cause, 12)
    assert ("no backward pass was made" in report.summary) == (way == "none")


@silent
@pytest.mark.parametrize(("way", "count"), [("whole", 12), ("detached", 9), ("none", 9)])
def test_a_few_steps_or_a_gradient_are_no_silence(way: str, count: int) -> None:
    model = mlp()
    assert not steps(model, model, way, count).report().findings


@silent
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize(("count", "causes"), [(12, ["detached"]), (9, [])])
def test_a_model_that_is_detached_late_is_not_called_emptied(
    every: int | None, count: int, causes: list[str]
) -> None:
    torch.manual_seed(0)
    model, x, target = nn.Linear(8, 1), torch.randn(16, 8), torch.randn(16, 1)
    optimizer, monitor = torch.optim.SGD(model.parameters(), 0.01), Monitor(model, every)
    for step in range(20 + count):
        out = model(x) if step < 20 else model(x).detach().requires_grad_()
        optimizer.zero_grad()
        nn.functional.mse_loss(out, target).backward()
        optimizer.step()
    report = monitor.report()
    assert [one.cause for one in report.findings] == causes
    assert not causes or report.findings[0].evidence["steps"] == count


@silent
@pytest.mark.parametrize(
    ("zeros", "margin", "count", "cause"),
    [(2, 0.0, 12, "closed-gates"), (1, 0.0, 12, None), (2, 0.0, 9, None), (1, 1.0, 12, None)],
)
def test_a_gradient_that_is_0_at_each_step_has_a_cause(
    zeros: int, margin: float, count: int, cause: str | None
) -> None:
    """It is none where nothing is left to learn: a loss of 0 has no gradient."""
    torch.manual_seed(0)
    model = Adapted(zeros)
    optimizer = torch.optim.SGD([model.a, model.b], 0.01)
    monitor, x = Monitor(model), torch.randn(16, 8)
    for _ in range(count):
        optimizer.zero_grad()
        near = nn.functional.mse_loss(model(x), model.base(x) + 0.1)
        (near - margin).relu().backward()
        optimizer.step()
    report = monitor.report()
    assert {one.cause for one in report.findings} == ({cause} if cause else set()), str(report)


class Adapted(nn.Module):
    """A layer that stays as it is, and a product of two matrices beside it, so many of them 0."""

    def __init__(self, zeros: int) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.a, self.b = (
            nn.Parameter(torch.randn(*shape) * (n >= zeros))
            for n, shape in ((1, (8, 4)), (0, (4, 8)))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows of 8."""
        return self.base(x) + x @ self.a @ self.b


def test_the_steps_of_a_copy_are_told() -> None:
    model = mlp()
    with pytest.warns(FindingWarning, match="no optimizer that has this model's parameters"):
        monitor = steps(model, copy.deepcopy(model), "whole")
    assert [one.cause for one in monitor.report().findings] == ["not-in-optimizer"]


@silent
@pytest.mark.parametrize("held", [False, True])
def test_a_copy_is_told_of_before_the_alarm(held: bool) -> None:
    model = mlp()
    owner = torch.optim.SGD(model.parameters() if held else mlp().parameters(), 0.01)
    monitor = steps(model, copy.deepcopy(model), "whole", 3)
    if held:  # its turn may yet come
        with pytest.raises(ValueError, match="must have seen a step"):
            monitor.report()
    else:
        assert [one.cause for one in monitor.report().findings] == ["not-in-optimizer"]
    del owner
