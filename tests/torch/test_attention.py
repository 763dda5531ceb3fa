"""Attention whose masks hide all keys, which is 0 and not NaN; and masks that hide some."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402

STEPS, WIDTH = 6, 16
TOKENS = torch.randint(1, 12, (24, STEPS), generator=torch.Generator().manual_seed(0))
LABELS = (TOKENS == 3).any(1).long()


class Encoder(nn.Module):
    """An encoder of PyTorch's own whose masks are given as one."""

    def __init__(self, mask: Tensor | None, padding: Tensor | None, *, first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, batch_first=True, norm_first=first)
        self.table, self.head = nn.Embedding(12, WIDTH), nn.Linear(WIDTH, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mask, self.padding = mask, padding

    def forward(self, x: Tensor) -> Tensor:
        padding = None if self.padding is None else self.padding.expand(len(x), -1)
        h = self.encoder(self.table(x), mask=self.mask, src_key_padding_mask=padding)
        return self.head(h.mean(1))


class Own(nn.Module):
    """Attention that calls PyTorch's function, in which True lets a key in."""

    def __init__(self, keeps: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(12, WIDTH), nn.Linear(WIDTH, 2)
        self.maps, self.keeps = nn.Linear(WIDTH, 3 * WIDTH), keeps

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        q, k, v = self.maps(h).chunk(3, -1)
        a = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.keeps)
        return self.head((h + a).mean(1))


ALL, NONE = torch.ones(STEPS, STEPS, dtype=torch.bool), torch.zeros(STEPS, STEPS, dtype=torch.bool)
CAUSAL = ALL.triu(1)
INFINITE = torch.zeros(STEPS, STEPS).masked_fill(ALL, -torch.inf)
LATE, EARLY = torch.arange(STEPS)[None] >= 3, torch.arange(STEPS)[None] < 3


@pytest.mark.parametrize(
    "model",
    [
        Encoder(ALL, None),
        Encoder(ALL, None, first=False),
        Encoder(INFINITE, None),
        Encoder(None, ALL[:1]),
        Encoder(CAUSAL.T | LATE, EARLY | NONE[:1]),
        Own(NONE),
    ],
)
def test_masks_that_hide_every_key(model: nn.Module) -> None:
    found = diagnose(model, functional.cross_entropy, TOKENS, LABELS).findings[0]
    assert (found.kind, found.cause) == ("dead", "masked-row")
    assert all(site.kind in ("module", "model") for site in found.sites)


@pytest.mark.parametrize(
    "model",
    [
        Encoder(CAUSAL, None),
        Encoder(None, LATE),
        Encoder(CAUSAL, EARLY),  # the first rows see nothing, as padding on the left
        Own(~CAUSAL),
        Own(ALL),
    ],
)
def test_masks_that_hide_some(model: nn.Module) -> None:
    assert diagnose(model, functional.cross_entropy, TOKENS, LABELS).healthy


@pytest.mark.parametrize(("mask", "wanted"), [(ALL, ["masked-row"]), (CAUSAL, [])])
def test_a_monitor_tells_of_the_mask_and_of_no_activation(mask: Tensor, wanted: list[str]) -> None:
    model = Encoder(mask, None)
    monitor, optimizer = Monitor(model, on_finding=None), torch.optim.Adam(model.parameters())
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(model(TOKENS), LABELS).backward()
        optimizer.step()
    assert [one.cause for one in monitor.report().findings] == wanted
