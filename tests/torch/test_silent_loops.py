"""Monitor of loops in which no gradient comes to the model, or others' parameters are stepped."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.diagnosis.diagnosis import Diagnosis  # noqa: E402
from vegrad.torch import FindingError, FindingWarning, Monitor  # noqa: E402

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


def pass_back(model: nn.Module, optimizer: torch.optim.Optimizer, rows: int = 4) -> None:
    """Empty the gradients, and make others."""
    optimizer.zero_grad()
    model(torch.ones(rows, 16)).square().mean().backward()


def test_a_forgotten_step_is_told() -> None:
    model = mlp()
    optimizer, monitor = torch.optim.SGD(model.parameters(), 0.01), Monitor(model)
    for _ in range(100):
        pass_back(model, optimizer)
    assert not monitor.findings
    with pytest.warns(FindingWarning, match="has never stepped"):
        pass_back(model, optimizer)
    report = monitor.report()
    assert [one.cause for one in report.findings] == ["no-step"]
    assert "optimizer.step()" in report.findings[0].advice


@silent
def test_a_report_tells_of_a_forgotten_step_before_the_alarm_does() -> None:
    model = mlp()
    optimizer, monitor = torch.optim.SGD(model.parameters(), 0.01), Monitor(model)
    for _ in range(20):
        pass_back(model, optimizer)
    with pytest.raises(ValueError, match="after which no optimizer of its parameters has stepped"):
        monitor.report()
    pass_back(model, optimizer)
    assert [one.cause for one in monitor.report().findings] == ["no-step"]


@silent
def test_steps_that_the_user_ends_do_not_hide_a_forgotten_one() -> None:
    model = mlp()
    optimizer, monitor = torch.optim.SGD(model.parameters(), 0.01), Monitor(model)
    for _ in range(60):
        pass_back(model, optimizer)
        monitor.step()
    assert [one.cause for one in monitor.findings] == ["no-step"]


def test_an_error_for_a_forgotten_step_leaves_other_monitors_as_they_are() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    strict, other = Monitor(model, on_finding="raise"), Monitor(model, on_finding=None)
    for _ in range(100):
        pass_back(model, optimizer)
    with pytest.raises(FindingError, match="no-step"):
        pass_back(model, optimizer)
    assert strict.findings
    assert other.loop.depth == strict.loop.depth == 0
    assert other.findings


@pytest.mark.parametrize(
    "way",
    [
        "accumulates",
        "by hand",
        "one row",
        "no optimizer",
        "another steps",
        "scaler",
        "evaluates",
        "of the data",
    ],
)
def test_other_passes_without_a_step_are_no_forgotten_one(way: str) -> None:
    model, other = mlp(), nn.Linear(16, 16)
    kept = torch.optim.SGD((other if way == "no optimizer" else model).parameters(), 0.01)
    turn, scaler = torch.optim.SGD(other.parameters(), 0.01), torch.amp.GradScaler("cpu")
    monitor = Monitor(model.train(way != "evaluates"))
    for _ in range(250):
        if way != "accumulates":
            model.zero_grad()
        x = torch.ones(1 if way == "one row" else 4, 16)
        x = other(x) if way == "another steps" else x.requires_grad_(way == "of the data")
        loss = model(x).square().mean()
        (scaler.scale(loss) if way == "scaler" else loss).backward()
        if way == "by hand":
            with torch.no_grad():
                for one in model.parameters():
                    one -= 0.01 * one.grad
        if way == "another steps":
            turn.step()
    assert not monitor.findings
    del kept


@silent
def test_of_a_model_that_is_left_alone_nothing_is_said_while_another_trains() -> None:
    model = mlp()
    left = Monitor(model)
    for _ in range(5):
        model(torch.ones(4, 16)).square().mean().backward()
    steps(other := mlp(), other, "whole", 150)
    assert not left.findings
    with pytest.raises(ValueError, match="must have seen a step"):
        left.report()


@silent
@pytest.mark.parametrize(
    ("way", "causes"),
    [
        ("detached", ["detached"]),
        ("right", []),
        ("not run", []),
        ("frozen", []),
        ("at first", []),
    ],
)
def test_an_optimizer_whose_parameters_get_no_gradient_is_told_of(
    way: str, causes: list[str]
) -> None:
    """It is none of parts that wait for their turn: they do not run, need none, or have had one."""
    torch.manual_seed(0)
    makes, judges = mlp(), nn.Linear(16, 1)
    both = nn.ModuleDict({"makes": makes, "judges": judges})
    monitor = Monitor(both)
    first, second = (torch.optim.Adam(one.parameters(), 1e-3) for one in (makes, judges))
    makes.requires_grad_(way != "frozen")
    for step in range(60):
        made = torch.randn(8, 16) if way == "not run" else makes(torch.randn(8, 16))
        second.zero_grad()
        judges(made.detach()).square().mean().backward()
        second.step()
        first.zero_grad()
        through = way == "right" or (way == "at first" and step < 3)
        judges(made if through else made.detach()).sigmoid().mean().backward()
        first.step()
    assert [one.cause for one in monitor.report().findings] == causes


def train_copy(way: str, count: int = 100) -> Monitor:
    """Train a copy of a model that is watched."""
    model = mlp()
    monitor, twin = Monitor(model), copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.01)
    other = nn.Linear(16, 16)
    turn = torch.optim.SGD((other if way == "another steps" else model).parameters(), 0.01)
    for step in range(count):
        optimizer.zero_grad()
        twin(other(torch.ones(4, 16))).square().mean().backward()
        (turn if way == "another steps" else optimizer).step()
        if way == "follows" and step % 10 == 9:
            model.load_state_dict(twin.state_dict())
        if way == "takes turns" and step % 10 == 9:
            pass_back(model, turn)
            turn.step()
    return monitor


def test_a_copy_that_is_trained_in_place_of_the_model_is_told() -> None:
    with pytest.warns(FindingWarning, match="a copy of this model is trained"):
        monitor = train_copy("")
    (found,) = monitor.report().findings
    assert (found.kind, found.cause, found.severity) == ("idle", "not-in-optimizer", "warning")


@pytest.mark.parametrize("way", ["follows", "another steps", "takes turns"])
def test_other_copies_are_none_that_are_trained_in_place_of_the_model(way: str) -> None:
    assert not train_copy(way).findings


@silent
@pytest.mark.parametrize(("count", "told"), [(20, False), (21, True)])
def test_a_report_tells_of_a_trained_copy_before_the_alarm_does(count: int, told: bool) -> None:
    monitor = train_copy("", count)
    if told:
        assert [one.cause for one in monitor.report().findings] == ["not-in-optimizer"]
    else:
        with pytest.raises(ValueError, match="must have seen a step"):
            monitor.report()
