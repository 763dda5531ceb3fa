"""First losses that are far above that of guessing, and some that are larger by intention."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import diagnose  # noqa: E402

ROWS, WIDTH, CLASSES = 64, 32, 6


class Block(nn.Module):
    """A branch of two layers that is added to its input, with weights drawn for ReLU."""

    def __init__(self, *, conv: bool = False, norm: bool = False) -> None:
        super().__init__()
        if conv:
            two = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2)]
        else:
            two = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
        for one in two:
            nn.init.kaiming_normal_(one.weight)
        first = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.f = nn.Sequential(first, two[0], nn.ReLU(), two[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Cosines(nn.Module):
    """Cosines that are made larger by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.map, self.factor = nn.Linear(WIDTH, CLASSES, bias=False), factor

    def forward(self, x: Tensor) -> Tensor:
        x, weight = functional.normalize(x), functional.normalize(self.map.weight)
        return self.factor * functional.linear(x, weight)


def stream(blocks: int, outputs: int = CLASSES, *, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[Block(norm=norm) for _ in range(blocks)], nn.Linear(WIDTH, outputs))


def convolutions(blocks: int) -> nn.Sequential:
    torch.manual_seed(0)
    body = [Block(conv=True) for _ in range(blocks)]
    return nn.Sequential(
        nn.Unflatten(1, (2, 4, 4)),
        nn.Conv2d(2, WIDTH, 3, padding=1),
        *body,
        nn.Flatten(),
        nn.Linear(16 * WIDTH, CLASSES),
    )


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    return x, x[:, :CLASSES].argmax(1)


@pytest.mark.parametrize("make", [lambda: stream(9), lambda: convolutions(12)])
def test_a_stream_that_grows_gets_smaller_branches(make: type[nn.Module]) -> None:
    model, (x, y) = make(), data()
    found = diagnose(model, functional.cross_entropy, x, y)
    (one,) = found.findings
    assert one.cause == "logits-scale"
    assert all(site.name.endswith("f.3.weight") for site in one.sites)
    assert one.evidence["loss"] > 12 * one.evidence["guess"]
    assert found.apply(model)
    assert diagnose(model, functional.cross_entropy, x, y).healthy


def test_so_it_does_for_a_squared_error() -> None:
    x, y = data()
    (one,) = diagnose(stream(9, 1), functional.mse_loss, x, y[:, None].float()).findings
    assert (one.cause, one.evidence["guess"]) == (
        "logits-scale",
        pytest.approx(float(y.double().var(correction=0))),
    )


@pytest.mark.parametrize("model", [stream(3), stream(60, norm=True), Cosines(20.0), Cosines(64.0)])
def test_short_and_normalized_streams_and_scaled_cosines_are_left_alone(
    model: nn.Module,
) -> None:
    assert diagnose(model, functional.cross_entropy, *data()).healthy
