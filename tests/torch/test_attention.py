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


class Mixer(nn.Module):
    """Attention written out, layer on layer, whose heads may be mixed."""

    def __init__(self, layers: int, *, skips: bool, heads: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(12, WIDTH), nn.Linear(WIDTH, 2)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(layers)])
        self.maps = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3 * layers)])
        self.mixes = nn.ModuleList([nn.Linear(heads, heads) for _ in range(2 if heads else 0)])
        self.skips, self.heads = skips, heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        for layer, norm in enumerate(self.norms):
            maps = self.maps[3 * layer : 3 * layer + 3]
            heads = (max(self.heads, 1), -1)
            q, k, v = (one(norm(h)).unflatten(-1, heads).transpose(1, 2) for one in maps)
            a = q @ k.mT / q.shape[-1] ** 0.5
            if self.heads:
                a = self.mixes[0](a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            a = a.softmax(-1)
            if self.heads:
                a = self.mixes[1](a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            h = h * self.skips + (a @ v).transpose(1, 2).flatten(2)
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


def test_tokens_that_become_alike_without_skip_connections() -> None:
    model = Mixer(6, skips=False)
    found = diagnose(model, functional.cross_entropy, TOKENS, LABELS).findings[0]
    assert (found.kind, found.cause) == ("collapsed", "collapse")
    assert found.evidence["now"] < 1e-4 < 0.1 < found.evidence["was"]
    monitor, optimizer = Monitor(model, on_finding=None), torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(model(TOKENS), LABELS).backward()
        optimizer.step()
    assert "collapse" in [one.cause for one in monitor.report().findings]


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_tokens_that_skip_connections_keep_apart(layers: int) -> None:
    model = Mixer(layers, skips=True)
    assert diagnose(model, functional.cross_entropy, TOKENS, LABELS).healthy


def test_tokens_that_are_alike_from_the_first_are_the_datas() -> None:
    model = Mixer(6, skips=False)
    found = diagnose(model, functional.cross_entropy, TOKENS[:, :1].expand(-1, STEPS), LABELS)
    assert "collapse" not in [one.cause for one in found.findings]


def test_heads_that_are_mixed_around_a_softmax_are_no_units() -> None:
    model = Mixer(2, skips=True, heads=4)
    assert diagnose(model, functional.cross_entropy, TOKENS, LABELS).healthy
