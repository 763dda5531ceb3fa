"""Models that mix the rows of a batch, and those that only look like it."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from vegrad.torch import diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
B, T, D = 16, 10, 6


class Steps(nn.Module):
    """A recurrent classifier that takes its steps from the first axis, by one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.cell, self.head = nn.LSTM(D, 12, batch_first=way == "first"), nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        if self.way == "view":
            return self.head(self.cell(x.view(T, B, D))[0][-1])
        if self.way == "transpose":
            return self.head(self.cell(x.transpose(0, 1))[0][-1])
        if self.way == "as it is, at once":
            return self.head(self.cell(x)[0][-1])
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """Attention whose weights sum to 1 along some axis."""

    def __init__(self, axis: int | None) -> None:
        super().__init__()
        self.axis, self.into, self.out = axis, nn.Linear(D, 12), nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        h = self.into(x)
        scores = h @ h.transpose(1, 2)
        if self.axis is None:
            flat = scores.view(B * T, T).softmax(1)
            return self.out((flat.view(B, T, T) @ h).mean(1))
        return self.out((scores.softmax(self.axis) @ h).mean(1))


class Heads(nn.Module):
    """PyTorch's own attention, with the rows where its first axis belongs to the tokens or not."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(D, 12), nn.Linear(12, 3)
        self.heads = nn.MultiheadAttention(12, 2, batch_first=batch_first)

    def forward(self, x: Any) -> Any:
        h = self.into(x)
        return self.out(self.heads(h, h, h)[0].mean(1))


def causes(model: Any, x: Any = None, target: Any = None) -> list[str]:
    x = torch.randn(B, T, D) if x is None else x
    target = torch.arange(B) % 3 if target is None else target

    def loss(out: Any, wanted: Any) -> Any:
        return F.cross_entropy(out.flatten(0, -2), wanted.flatten())

    return [one.cause for one in diagnose(model, loss, x, target).findings]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Steps("view"),
        lambda: Steps("as it is"),
        lambda: Attention(0),
        lambda: Heads(False),
    ],
)
def test_rows_that_are_mixed(make: Any) -> None:
    torch.manual_seed(0)
    assert causes(make()) == ["mixed-rows"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Steps("transpose"),
        lambda: Steps("first"),
        lambda: Attention(2),
        lambda: Attention(None),
        lambda: Heads(True),
    ],
)
def test_rows_that_stay_apart(make: Any) -> None:
    torch.manual_seed(0)
    assert causes(make()) == []


class Tagger(nn.Module):
    """A label for each step, the steps on the first axis as PyTorch has them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(D, 12), nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.cell(x)[0])


class Nodes(nn.Module):
    """A graph whose nodes are the rows, with attention between all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(D, 12), nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        h = self.into(x)
        return self.out((h @ h.T).softmax(-1) @ h + h)


def test_rows_that_belong_together() -> None:
    torch.manual_seed(0)
    steps = torch.randn(T, B, D), torch.randint(3, (T, B))
    assert causes(Tagger(), *steps) == []
    assert causes(Tagger(), steps[0][:, :1], steps[1][:, :1]) == []
    assert causes(Nodes(), torch.randn(B, D), torch.arange(B) % 3) == []
    assert causes(Steps("as it is, at once"), *steps[:1], torch.arange(B) % 3) == []
