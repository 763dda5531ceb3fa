"""Torch optimizers whose clip leaves out steps: nothing of the model or the state changes then."""

import copy
from typing import Any

import pytest
import torch
import vegrad.torch.optim as ours
from vegrad import clipping

from tests.reference_rules import SkipSpike

SETTINGS = (3.0, 20, 8)
KINDS = [ours.SGD, ours.Adam, ours.AdamW, ours.Lion]


class Training:
    """A linear model on random rows, a batch in ten of which is far from all others."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 1)).to(dtype)
        self.random = torch.Generator().manual_seed(1)
        self.batches = 0

    def loss(self) -> torch.Tensor:
        x = torch.randn(8, 4, generator=self.random, dtype=torch.float64)
        self.batches += 1
        scale = 30 if self.batches % 10 == 0 else 1
        y = (scale * x.sum(1, keepdim=True)).to(self.model[0].weight.dtype)
        self.model.zero_grad()
        loss = (self.model(x.to(y.dtype)) - y).square().mean()
        loss.backward()
        return loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["closure", "loss", "norm"])
def test_steps_are_left_out(kind: Any, way: str) -> None:
    mine, plain = Training(), Training()
    optimizer = kind(mine.model.parameters(), 0.01, clip=clipping.SkipSpike(*SETTINGS))
    steps, theirs = kind(plain.model.parameters(), 0.01), SkipSpike(*SETTINGS)
    skips = []
    for _ in range(60):
        if way == "closure":
            assert optimizer.step(mine.loss).item() > 0
        else:
            loss = mine.loss()
            assert optimizer.step(**({"loss": loss} if way == "loss" else {})) is None
        other = plain.loss()
        norm = torch.nn.utils.get_total_norm([p.grad for p in plain.model.parameters()])
        skips.append(theirs.skips(norm.item(), None if way == "norm" else other.item()))
        if not skips[-1]:
            steps.step()
        assert optimizer.clipped.skipped == skips[-1]
    assert 2 < sum(skips) < 10
    for one, two in zip(mine.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=0)


@pytest.mark.parametrize("foreign", [False, True])
def test_nothing_changes_in_a_step_that_is_left_out(foreign: bool) -> None:
    """Also where PyTorch steps some of the parameters, those in half precision."""
    training = Training()
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.float16 if foreign else torch.float32))
    rule = clipping.SkipSpike(*SETTINGS)
    optimizer = ours.AdamW([*training.model.parameters(), half], clip=rule)
    for step in range(40):
        before = copy.deepcopy((training.model.state_dict(), optimizer.state_dict()["state"]))
        versions = [p._version for p in training.model.parameters()]
        half.grad, kept = torch.full_like(half, 0.5), half.detach().clone()
        loss = training.loss()
        optimizer.step(loss=float("nan") if step == 35 else loss)
        if not optimizer.clipped.skipped:
            continue
        after = training.model.state_dict(), optimizer.state_dict()["state"]
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert torch.equal(half, kept)
        assert [p._version for p in training.model.parameters()] == versions
    assert optimizer.clipped is not None
    assert len(rule.losses) == len(rule.norms) == 20


def test_a_state_goes_on() -> None:
    whole, half = Training(), Training()
    runs = []
    for training in (whole, half):
        optimizer = ours.Adam(training.model.parameters(), clip=clipping.SkipSpike(*SETTINGS))
        for step in range(40):
            if training is half and step == 25:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = ours.Adam(training.model.parameters(), clip=clipping.SkipSpike())
                optimizer.load_state_dict(state)
                assert repr(optimizer.clip) == repr(clipping.SkipSpike(*SETTINGS))
            optimizer.step(loss=training.loss())
        runs.append(optimizer.state_dict()["clip"])
    assert runs[0] == runs[1]
    assert torch.equal(whole.model[0].weight, half.model[0].weight)


def test_the_loss_is_let_go() -> None:
    """A loss holds its graph: the optimizer keeps nothing of it."""
    training = Training()
    optimizer = ours.SGD(training.model.parameters(), clip=clipping.SkipSpike())
    optimizer.step(loss=training.loss())
    assert optimizer._loss is None


def test_a_scaler_passes_the_loss_on() -> None:
    training = Training(torch.float32)
    rule = clipping.SkipSpike()
    optimizer = ours.SGD(training.model.parameters(), clip=rule)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss := training.loss())
    scaler.step(optimizer, loss=loss)
    assert rule.losses == [loss.item()]
