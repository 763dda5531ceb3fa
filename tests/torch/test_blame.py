"""Find the weights of a normalization that are at fault, though a later normalization hides it."""

from typing import Any

import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOSS = nn.CrossEntropyLoss()
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randn(8, 3, 24, 24, generator=RANDOM)
LABELS = torch.randint(0, 10, (8,), generator=RANDOM)


class BasicBlock(nn.Module):
    """A ResNet's block as torchvision writes it."""

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def made(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet()


def times(model: nn.Module, name: str, factor: float) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return model


def diagnosed(model: nn.Module, **options: Any) -> vegrad.Diagnosis:
    return ours.diagnose(model, LOSS, IMAGES, LABELS, **{"resamples": 1, **options})


@pytest.mark.parametrize("resamples", [0, 1])
@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1e4])
@pytest.mark.parametrize(
    "name", ["layer1.0.bn1.weight", "layer2.0.bn1.weight", "layer3.1.bn1.weight"]
)
def test_the_norms_weight_is_named_and_not_the_norm_that_hides_it(
    name: str, factor: float, resamples: int
) -> None:
    """The batch norm above hides the size of activations, up to its ε, but divides δ by it."""
    model = times(made(), name, factor)
    found = diagnosed(model, resamples=resamples)
    assert len(found.findings) == 1
    finding = found.findings[0]
    assert finding.sites[0].name == name
    assert finding.evidence["factor"] == pytest.approx(1 / factor)
    assert finding.advice.startswith(f"multiply {name} by {1 / factor:.3g}")
    # A factor of 0.01 may show only through the ε of the batch norm above.
    if factor != 1e-2:
        assert finding.kind == ("vanishing" if factor > 1 else "exploding")
    assert diagnosed(times(model, name, 1 / factor), resamples=resamples).healthy


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("bn1.weight", 1e4),
        ("bn1.weight", 1e-4),
        ("layer2.0.downsample.1.weight", 1e4),
        ("layer2.1.bn2.weight", 1e-3),
        ("layer2.1.bn2.weight", 1e-4),
        ("layer2.1.bn2.weight", 1e4),
    ],
)
def test_norms_outside_the_branches_are_named_too(name: str, factor: float) -> None:
    """The norm stands before all blocks, on a skip connection, or at the end of a branch."""
    found = diagnosed(times(made(), name, factor))
    assert [one.sites[0].name for one in found.findings] == [name]
    assert found.findings[0].evidence["factor"] == pytest.approx(1 / factor, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_fresh_models_are_healthy(seed: int) -> None:
    found = diagnosed(made(seed))
    assert found.healthy, found.summary


def test_a_norms_weight_is_named_in_a_plain_chain() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(8 if n else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        for n in range(8)
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    model = nn.Sequential(*layers, *head)
    assert diagnosed(model).healthy
    found = diagnosed(times(model, "3.1.weight", 1e-4))
    assert [one.sites[0].name for one in found.findings] == ["3.1.weight"]
    assert found.findings[0].kind == "exploding"


def test_blocks_whose_last_norm_begins_near_zero_are_healthy() -> None:
    """All branches begin at 0, as with torchvision's zero_init_residual, or nearly."""
    for value in (0.0, 1e-3):
        model = made()
        for name, one in model.named_parameters():
            if name.endswith("bn2.weight"):
                nn.init.constant_(one, value)
        found = diagnosed(model)
        assert found.healthy, found.summary
