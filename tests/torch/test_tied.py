"""Logits that are too large where the head's weights are an embedding's too."""

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.flow.edits import Scale  # noqa: E402
from vegrad.torch import diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOKENS, STEPS, WIDTH = 32, 12, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = h + h.cumsum(1) / STEPS
        return x + self.down(functional.gelu(self.up(h)))


class Model(nn.Module):
    """Tokens and their positions; the head may be the tokens' table."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(STEPS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        nn.init.normal_(self.head.weight, 0.0, 4.0)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(STEPS))
        return self.head(self.norm(self.blocks(h))).transpose(1, 2)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(TOKENS, (32, 1), generator=random)
    rows = (first + 3 * torch.arange(STEPS + 1)) % TOKENS
    return rows[:, :-1], rows[:, 1:]


def trained(model: nn.Module) -> float:
    """Return the loss after a few steps."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for seed in range(40):
        x, y = batch(seed)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_table_takes_with_it_what_it_is_added_to(tied: bool) -> None:
    model = Model(tied)
    found = diagnose(model, functional.cross_entropy, *batch(0))
    first = found.findings[0]
    assert first.cause == ("logits-scale" if tied else "weight-scale")
    assert isinstance(first.edit, Scale)
    wanted = ("tokens.weight", "places.weight") if tied else ("head.weight",)
    assert first.edit.parameters == wanted
    assert ("an embedding's too" in first.advice) == tied
    found.apply(model)
    assert diagnose(model, functional.cross_entropy, *batch(0)).healthy


def test_the_advice_trains_faster_than_the_table_alone_made_smaller() -> None:
    model, alone = Model(True), Model(True)
    edit = diagnose(model, functional.cross_entropy, *batch(0)).findings[0].edit
    assert isinstance(edit, Scale)
    with torch.no_grad():
        alone.tokens.weight.mul_(edit.factor)
        for one in (model.tokens, model.places):
            one.weight.mul_(edit.factor)
    assert trained(model) < trained(alone)
