"""A normalization's weights are to blame, and another normalization takes back what they do."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOSS = nn.CrossEntropyLoss()
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randn(8, 3, 24, 24, generator=RANDOM)
LABELS = torch.randint(0, 10, (8,), generator=RANDOM)


class BasicBlock(nn.Module):
    """As torchvision has it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2, self.downsample = nn.BatchNorm2d(outputs), None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
        self.layer3 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1))
        self.fc = nn.Linear(32, 10)
        for one in self.modules():
            if isinstance(one, nn.Conv2d):
                nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def made(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return ResNet()


def times(model: Any, name: str, factor: float) -> Any:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return model


def diagnosed(model: Any, **options: Any) -> Any:
    return ours.diagnose(model, LOSS, IMAGES, LABELS, **{"resamples": 1, **options})


@pytest.mark.parametrize("resamples", [0, 1])
@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1e4])
@pytest.mark.parametrize(
    "name", ["layer1.0.bn1.weight", "layer2.0.bn1.weight", "layer3.1.bn1.weight"]
)
def test_the_weights_are_named_and_not_what_undoes_them(
    name: str, factor: float, resamples: int
) -> None:
    """The batch norm above hides the size of the activations, up to its ε."""
    model = times(made(), name, factor)
    found = diagnosed(model, resamples=resamples)
    assert len(found.findings) == 1
    finding = found.findings[0]
    assert finding.sites[0].name == name
    assert finding.evidence["factor"] == pytest.approx(1 / factor)
    assert finding.advice.startswith(f"multiply {name} by {1 / factor:.3g}: it is ")
    if factor != 1e-2:  # else perhaps by what the ε above it makes of it only
        assert finding.kind == ("exploding" if factor > 1 else "vanishing")
        assert found.modules[finding.layers[0]] == name.replace("bn1.weight", "conv1")
    assert diagnosed(times(model, name, 1 / factor), resamples=resamples).healthy


@pytest.mark.parametrize(("name", "factor"), [
    ("bn1.weight", 1e4), ("bn1.weight", 1e-4), ("layer2.0.downsample.1.weight", 1e4),
    ("layer2.1.bn2.weight", 1e-3), ("layer2.1.bn2.weight", 1e-4), ("layer2.1.bn2.weight", 1e4),
])  # fmt: skip
def test_elsewhere_too(name: str, factor: float) -> None:
    """Before all blocks, round one, at the end of one: what drowns and what hardly is open."""
    found = diagnosed(times(made(), name, factor))
    assert [one.sites[0].name for one in found.findings] == [name]
    assert found.findings[0].evidence["factor"] == pytest.approx(1 / factor, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_fresh_ones_are_healthy(seed: int) -> None:
    found = diagnosed(made(seed))
    assert found.healthy, found.summary


def test_without_skip_connections() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8 if n else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
              for n in range(8)]  # fmt: skip
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    model = nn.Sequential(*layers, *head)
    assert diagnosed(model).healthy
    found = diagnosed(times(model, "3.1.weight", 1e-4))
    assert [one.sites[0].name for one in found.findings] == ["3.1.weight"]
    assert found.findings[0].kind == "vanishing"


def test_blocks_that_begin_closed_are_healthy() -> None:
    """All of them, as with zero_init_residual, or nearly."""
    for value in (0.0, 1e-3):
        model = made()
        for name, one in model.named_parameters():
            if name.endswith("bn2.weight"):
                nn.init.constant_(one, value)
        found = diagnosed(model)
        assert found.healthy, found.summary
