"""Monitor of modules that hold parameters of their own and modules with weights."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


class Sigmoids(nn.Module):
    """A deep network, at whose front a parameter of the whole may stand."""

    def __init__(self, positions: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(12)])
        self.head = nn.Linear(16, 10)
        self.positions = nn.Parameter(torch.zeros(16)) if positions else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.positions is None else x + self.positions
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


@pytest.mark.parametrize("positions", [False, True])
def test_a_parameter_of_the_whole_hides_no_vanishing_gradient(positions: bool) -> None:
    torch.manual_seed(0)
    model = Sigmoids(positions)
    monitor = Monitor(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, target = torch.randn(32, 16), torch.randint(10, (32,))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    assert monitor.report().findings[0].cause == "activation-derivative"


def test_a_layer_of_pytorch_is_a_link_whatever_it_holds() -> None:
    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 16)
            self.down, self.up = nn.Linear(16, 2), nn.Linear(2, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.up(self.down(x))

    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), Adapted())
    model.extend([attention, nn.Linear(16, 16)])
    monitor = Monitor(model)
    model(torch.randn(4, 5, 16)).square().mean().backward()
    monitor.step()
    inner = dict(zip(monitor.modules, monitor.inner, strict=True))
    assert not any(inner.values())
