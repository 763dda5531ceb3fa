"""Batches drawn again: put together from the rows of the first pass, or run."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import vegrad.torch
from torch import nn
from vegrad.torch.reading import passes, resample

LOSS = nn.functional.cross_entropy


def convolutions() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 16), nn.Tanh(), nn.Linear(16, 5)),
    )
    sizes = 4 * torch.rand(20, 1, 1, 1)  # rows that are unlike
    return model, sizes * torch.randn(20, 3, 6, 6), torch.randint(0, 5, (20,))


def gains(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    found = vegrad.torch.diagnose(model, LOSS, x, target).reading
    assert found is not None
    assert found.chain is not None
    return found.chain.batches


def counted(model: nn.Module) -> Callable[[], int]:
    """Count the model's passes."""
    seen = list[int]()
    model.register_forward_hook(lambda *_: seen.append(1))
    return lambda: len(seen)


def test_rows_tell_what_passes_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, target = convolutions()
    count = counted(model)
    found = gains(model, x, target)
    assert count() == 1
    assert found.shape == (4, 3)
    assert found.std(axis=0).min() > 1e-3  # which batches differ by
    task = passes.Task(model, LOSS, x, target)
    monkeypatch.setattr(resample, "_of_rows", lambda run: resample._of_passes(task, run))
    np.testing.assert_allclose(gains(model, x, target), found, atol=1e-5)
    assert count() == 6


def faint(between: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a model that makes the gradient vanish, with a module at which rows may meet."""
    torch.manual_seed(0)
    layers = [part for _ in range(12) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(32, 32), between, *layers, nn.Linear(32, 5))
    return model, torch.randn(20, 32), torch.randint(0, 5, (20,))


MEETINGS = [nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Softmax(0)]


@pytest.mark.parametrize("between", MEETINGS)
def test_where_rows_meet_batches_are_run_if_a_finding_hangs_on_them(between: nn.Module) -> None:
    model, x, target = faint(between)
    count = counted(model)
    diagnosis = vegrad.torch.diagnose(model, LOSS, x, target)
    assert diagnosis.verdict == "vanishing"
    assert count() >= 5


@pytest.mark.parametrize("between", [nn.BatchNorm1d(144), nn.Dropout(0.5)])
def test_where_rows_meet_a_healthy_model_takes_one_pass(between: nn.Module) -> None:
    model, x, target = convolutions()
    assert isinstance(model, nn.Sequential)
    model[5] = between
    count = counted(model)
    assert len(gains(model, x, target)) == 4
    assert count() == 1


def test_of_a_loss_that_is_no_mean_over_rows_too() -> None:
    model, x, target = faint(nn.Identity())
    count = counted(model)

    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return LOSS(output - output.mean(0), labels)

    vegrad.torch.diagnose(model, loss, x, target)
    of_batch = count()
    vegrad.torch.diagnose(model, LOSS, x, target)
    assert (of_batch, count() - of_batch) == (5, 1)


def test_a_deep_chain_keeps_its_scales() -> None:
    """δ that leaves float32 is scaled on its way down, and that of its rows too."""
    torch.manual_seed(0)
    layers = [part for _ in range(30) for part in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3 if parameter.ndim > 1 else 1.0)
    x, target = torch.randn(16, 8), torch.randint(0, 3, (16,))
    diagnosis = vegrad.torch.diagnose(model, LOSS, x, target)
    assert diagnosis.reading is not None
    assert diagnosis.reading.chain is not None
    chain = diagnosis.reading.chain
    assert chain.flow.delta_log2[0] < -200
    np.testing.assert_allclose(chain.batches.mean(axis=0), chain.flow.gain_log2, atol=1.0)
