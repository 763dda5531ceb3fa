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
