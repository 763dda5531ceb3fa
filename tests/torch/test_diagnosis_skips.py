"""Diagnose models with skip connections: healthy ones, and sizes beyond the dtype."""

import copy
from collections.abc import Iterable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

X = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32))
LABELS = torch.from_numpy(np.random.default_rng(1).integers(0, 10, 64))
LOSS = nn.CrossEntropyLoss()


class Bottleneck(nn.Module):
    """A sum of x and a branch whose last weights are 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def test_branches_that_start_at_zero_are_healthy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), *[Bottleneck(32) for _ in range(6)], nn.Linear(32, 10))
    found = ours.diagnose(model, LOSS, X, LABELS)
    assert found.healthy
    assert found.flow is not None


class Post(nn.Module):
    """A block norm(x + branch(x))."""

    def __init__(self, width: int, inplace: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.inplace = nn.LayerNorm(width), inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.tanh(self.up(x)))
        if self.inplace:
            y += x
            return self.norm(y)
        return self.norm(x + y)


class Aside(nn.Module):
    """A layer on the inputs beside the chain, and a skip connection round some blocks."""

    def __init__(self, body: Iterable[nn.Module], width: int) -> None:
        super().__init__()
        self.body, self.aside = nn.ModuleList(body), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, early = x, None
        for number, block in enumerate(self.body):
            h = block(h)
            if number == 5:
                early = h
            if number == 8:
                h = h + 0.5 * early + 0.1 * self.aside(x)
        return h


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("aside", [False, True])
def test_sizes_are_right_beyond_the_dtype_with_skip_connections(inplace: bool, aside: bool) -> None:
    torch.manual_seed(0)
    blocks = [Post(32, inplace) for _ in range(260)]
    body = Aside(blocks, 32) if aside else nn.Sequential(*blocks)
    model = nn.Sequential(body, nn.Linear(32, 10))
    with torch.no_grad():
        for block in blocks:
            # The norm divides the activations by the size of the biases, and δ too.
            nn.init.normal_(block.down.bias, std=1.5)
    found = ours.diagnose(model, LOSS, X, LABELS, resamples=0)
    wide = copy.deepcopy(model).double()
    right = ours.diagnose(wide, LOSS, X.double(), LABELS, resamples=0)
    gradients = torch.autograd.grad(
        LOSS(wide(X.double()), LABELS), [wide.get_parameter(f"{n}.weight") for n in right.modules]
    )
    plain = [float(one.norm().log2()) for one in gradients]
    assert min(plain) < -155  # float32 ends at 2^-149
    np.testing.assert_allclose(right.flow.gradient_log2, plain, atol=1e-6)
    np.testing.assert_allclose(found.flow.gradient_log2, plain, atol=0.1)
    np.testing.assert_allclose(found.flow.gain_log2, right.flow.gain_log2, atol=0.02)
    assert found.underflowed
    assert found.verdict == "vanishing"


class Attention(nn.Module):
    """Attention with a Linear each for queries, keys and values, as in most transformers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(x + self.out(y))


def test_queries_and_keys_of_a_fresh_transformer_are_no_finding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(20, 64), *[Attention(64) for _ in range(8)], nn.Flatten(), nn.Linear(640, 10)
    )
    for one in model.modules():
        if isinstance(one, nn.Linear | nn.Embedding):
            nn.init.normal_(one.weight, std=0.02)  # BERT's
    x, target = torch.randint(0, 20, (8, 10)), LABELS[:8]
    assert ours.diagnose(model, LOSS, x, target).healthy
    with torch.no_grad():
        model[4].value.weight *= 1e6
    found = ours.diagnose(model, LOSS, x, target)
    assert any("4.value" in finding.advice for finding in found.findings)


class Shaped(nn.Module):
    """Layers down and up again, whose inputs on the way up stand beside those on the way down."""

    def __init__(self, levels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(levels))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(levels))
        self.both = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels))
        self.out = nn.Linear(width, 10)
        for one in (*self.down, *self.up, *self.both):
            nn.init.kaiming_normal_(one.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for layer in self.down:
            x = layer(x).relu()
            skips.append(x)
        for up, both in zip(self.up, self.both, strict=True):
            x = both(torch.cat([up(x), skips.pop()], 1)).relu()
        return self.out(x)


def test_a_concatenated_skip_is_not_taken_for_what_an_activation_does() -> None:
    """At its ends gradients jump where the way through the middle is weak, which is to blame."""
    torch.manual_seed(0)
    model = Shaped()
    assert ours.diagnose(model, LOSS, X, LABELS).healthy
    with torch.no_grad():
        model.up[1].weight *= 0.001
    found = ours.diagnose(model, LOSS, X, LABELS).findings
    assert [(one.cause, one.sites[0].name) for one in found] == [("weight-scale", "up.1")]
