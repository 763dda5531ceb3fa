"""Layers whose normalization undoes the size of what comes in."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def net(norm: bool, layers: int) -> nn.Module:
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    for width in (3, *(12,) * (layers - 1)):
        parts += [nn.Conv2d(width, 12, 3, padding=1, bias=not norm)]
        parts += [nn.BatchNorm2d(12)] * norm + [nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 6))


@pytest.mark.parametrize("resamples", [0, 4])
@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("norm", [True, False])
def test_pixels_before_a_batch_norm_are_no_fault(norm: bool, layers: int, resamples: int) -> None:
    model = net(norm, layers)
    x, y = 255 * torch.rand(32, 3, 12, 12), torch.randint(6, (32,))
    causes = {
        one.cause
        for one in diagnose(model, functional.cross_entropy, x, y, resamples=resamples).findings
    }
    assert causes == (set() if norm else {"input-scale"})
