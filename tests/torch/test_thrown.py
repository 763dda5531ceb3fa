"""Networks that steps have thrown: the numbers that are told of it, and what brings units back."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.flow.edits import Redraw, Shift  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for width in (10, 32, 32, 32):
        parts += [nn.Linear(width, 32), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Linear(32, 6))
    for one in model:
        if isinstance(one, nn.Linear):
            nn.init.kaiming_normal_(one.weight)
    return model


@pytest.mark.parametrize("thrown", [True, False])
def test_dead_layers_are_shifted_only_if_that_brings_all_of_them_back(thrown: bool) -> None:
    model, x, y = net(), torch.randn(64, 10), torch.randint(6, (64,))
    with torch.no_grad():
        model[2].bias.sub_(50.0)
        if thrown:  # which does not show while nothing comes to it
            model[4].weight.sub_(1.0)
    found = diagnose(model, functional.cross_entropy, x, y)
    assert found.verdict == "dead"
    assert isinstance(found.findings[0].edit, Redraw if thrown else Shift)
    found.apply(model)
    after = diagnose(model, functional.cross_entropy, x, y)
    assert not {"dead", "saturated"}.intersection(one.kind for one in after.findings)


def test_below_zero_is_not_brought_back_by_a_factor() -> None:
    model, x, y = net(), torch.randn(64, 10), torch.randint(6, (64,))
    with torch.no_grad():
        model[4].weight.mul_(3.0).sub_(0.9)
    found = diagnose(model, functional.cross_entropy, x, y)
    edits = [one.edit for one in found.findings if one.kind in ("dead", "saturated")]
    assert edits
    assert all(isinstance(one, Redraw | Shift) for one in edits)


@pytest.mark.parametrize("peak", [425.56, 1.9])
def test_the_highest_loss_is_the_highest_that_there_was(peak: float) -> None:
    model, x = net(), torch.randn(64, 10)
    y, monitor = x[:, :6].argmax(1), Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), 3.0)
    for loss in (1.79, peak, 2.05, *[1.8, 1.84] * 10):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        monitor.step(loss)
        optimizer.param_groups[0]["lr"] = 1e-3
    (told,) = [one for one in monitor.report().findings if one.kind == "overshooting"]
    assert f"was as high as {max(peak, 2.05):.3g} and" in told.message


def test_what_lies_below_dead_units_is_not_called_cut_off() -> None:
    """Layers that momentum has killed pass nothing back; nobody has detached them."""
    torch.manual_seed(0)
    widths = [20, *[64] * 7]
    parts = [part for n in widths[:-1] for part in (nn.Linear(n, 64), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(64, 5))
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    x = torch.randn(512, 20)
    y = (x @ torch.randn(20, 5)).argmax(1)
    monitor = Monitor(model, on_finding=None)
    for _ in range(80):
        rows = torch.randint(0, 512, (32,))
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    causes = [one.cause for one in monitor.report().findings]
    assert "dead-units" in causes
    assert "detached" not in causes
