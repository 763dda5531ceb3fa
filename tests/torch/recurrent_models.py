"""Classifiers of sequences, and data for them."""

from typing import Any

import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

UNITS = 32
LOSS = nn.CrossEntropyLoss()
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class Reader(nn.Module):
    """A classifier of sequences of words or numbers, from the last output or from each."""

    def __init__(self, kind: str = "LSTM", words: bool = False, each: bool = False, **options: Any):
        super().__init__()
        options = {"batch_first": True} | options
        self.words = nn.Embedding(30, 12) if words else nn.Identity()
        self.cells = KINDS[kind](12, UNITS, **options)
        outputs = options.get("proj_size") or UNITS
        self.out = nn.Linear(outputs * (2 if options.get("bidirectional") else 1), 10)
        self.each = each

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.words(x)
        x = x if self.cells.batch_first else x.transpose(0, 1)
        y, _ = self.cells(x)
        y = y if self.cells.batch_first else y.transpose(0, 1)
        return self.out(y).transpose(1, 2) if self.each else self.out(y[:, -1])


def made(kind: str = "LSTM", seed: int = 0, **options: Any) -> Reader:
    torch.manual_seed(seed)
    return Reader(kind, **options)


def data(model: nn.Module, steps: int = 40, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    words = isinstance(model.words, nn.Embedding)
    shape = (rows, steps)
    x = torch.randint(0, 30, shape, generator=random)
    x = x if words else torch.randn(*shape, 12, generator=random)
    return x, torch.randint(0, 10, shape if model.each else shape[:1], generator=random)


def diagnosed(model: nn.Module, steps: int = 40) -> vegrad.Diagnosis:
    return ours.diagnose(model, LOSS, *data(model, steps), resamples=0)


def times(model: nn.Module, name: str, factor: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
