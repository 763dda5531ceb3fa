"""Models with checkpoints of the reentrant kind: they are read as if there were none."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils import checkpoint as torchs  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402
from vegrad.torch.models import untouched  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


class First(nn.Module):
    """The outputs of a recurrent network, without its states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


class Residual(nn.Module):
    """A branch beside its input; what it adds is small at first."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
        self.branch[2].weight.data *= 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Net(nn.Module):
    """Blocks one after another, each within a checkpoint of its own or without."""

    def __init__(self, block: Callable[[], nn.Module], depth: int, way: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Linear(16, 16)
        self.blocks, self.head = nn.ModuleList(block() for _ in range(depth)), nn.Linear(16, 3)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for one in self.blocks:
            x = checkpoint(one, x, use_reentrant=True) if self.way == "reentrant" else one(x)
        return self.head(x if x.ndim == 2 else x.mean(1))


BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sigmoid": (lambda: nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()), 10),
    "relu": (lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2)), 4),
    "norm": (lambda: nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.GELU()), 4),
    "residual": (Residual, 8),
    "lstm": (First, 2),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3),
}


def data(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(32, 5, 16) if kind in ("lstm", "attention") else torch.randn(32, 16)
    return x, torch.randint(0, 3, (32,))


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_diagnosis_sees_through_them(kind: str) -> None:
    def found(way: str) -> Any:
        torch.manual_seed(2)
        return diagnose(Net(*BLOCKS[kind], way), functional.cross_entropy, *data(kind))

    plain, within = found("plain"), found("reentrant")
    assert (within.verdict, within.summary) == (plain.verdict, plain.summary)
    assert [one.cause for one in within.findings] == [one.cause for one in plain.findings]
    if kind == "sigmoid":
        assert within.verdict == "vanishing"


@pytest.mark.parametrize("kind", ["sigmoid", "relu", "norm", "residual"])
def test_a_monitor_says_what_it_says_without_them(kind: str) -> None:
    def report(way: str) -> Any:
        model, (x, y) = Net(*BLOCKS[kind], way), data(kind)
        monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(12):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return monitor.report()

    plain, within = report("plain"), report("reentrant")
    assert [one.cause for one in within.findings] == [one.cause for one in plain.findings]
    assert "other ways" not in within.summary or "other ways" in plain.summary


def test_only_a_reading_runs_them_otherwise() -> None:
    original, model = torchs.CheckpointFunction, Net(*BLOCKS["relu"], "reentrant")
    with untouched(model):
        instead = torchs.CheckpointFunction
    assert instead is not original
    assert torchs.CheckpointFunction is original
    out = instead.apply(model.blocks[0], True, model.stem(data("relu")[0]))
    assert out.grad_fn.name() == "CheckpointFunctionBackward"


def test_a_checkpoint_that_runs_something_else_again_is_read_as_it_is() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.runs = nn.Linear(16, 16), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return self.inner(x) if self.runs % 2 else self.inner(x).exp().sin() * 2

    report = diagnose(Net(Counts, 1, "reentrant"), functional.cross_entropy, *data("relu"))
    assert report.verdict


def test_a_checkpoint_without_an_input_that_needs_a_gradient_is_left_as_it_is() -> None:
    """PyTorch gives none to what is within it, and that is to be found."""

    class Stemless(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(checkpoint(self.blocks[0], x, use_reentrant=True) + self.stem(x))

    model = Stemless(*BLOCKS["relu"], "reentrant")
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        report = diagnose(model, functional.cross_entropy, *data("relu"))
    assert "detached" in [one.cause for one in report.findings], str(report)
