"""Rows of a monitor's steps that nobody looks at, and what ends them."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def net(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [one for _ in range(3) for one in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Training:
    """A small training with a monitor, step by step."""

    def __init__(
        self, model: Any = None, width: int = 16, make: Any = torch.optim.SGD, **options: Any
    ) -> None:
        self.model = model or net(width)
        self.optimizer = make(self.model.parameters(), lr=0.01)
        self.monitor = Monitor(self.model, **{"on_finding": None, **options})
        self.random = torch.Generator().manual_seed(1)
        self.limit: float | None = None
        self.passes = 1

    def loss(self) -> torch.Tensor:
        x = torch.randn(8, self.model[0].in_features, generator=self.random)
        return self.model(x).square().mean()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        for _ in range(self.passes):
            self.loss().backward()
        if self.limit is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.limit)

    def step(self, count: int = 1) -> Any:
        for _ in range(count):
            self.backward()
            self.optimizer.step()
        return self.monitor

    def until_quiet(self) -> Any:
        """Go on until a row is in progress."""
        for _ in range(200):
            self.step()
            if self.monitor._quiet.count:
                return self.monitor
        raise AssertionError("there is no row")


def pair(change: Callable[[Training], None], steps: int = 120, **options: Any) -> tuple[Any, Any]:
    """Return monitors of the same training that look at every step, and at few."""
    found = []
    for every in (1, None):
        training = Training(every=every, **options)
        change(training)
        found.append(training.step(steps))
    return found[0], found[1]


def test_a_row_is_taken_in_when_somebody_asks() -> None:
    monitor = Training().until_quiet()
    steps, waiting = monitor.steps, monitor._quiet.count
    assert waiting > 0
    assert len(monitor.history) == steps == monitor.steps
    assert monitor._quiet.count == 0
    assert monitor.history.step.tolist() == list(range(steps))


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("limit", [None, 1e-3])
def test_losses_and_norms_are_those_of_every_step(passes: int, limit: float | None) -> None:
    def change(training: Training) -> None:
        training.passes, training.limit = passes, limit

    closely, sparse = pair(change)
    for name in ("step", "loss", "gradient_norm", "gradient_norms"):
        both = (getattr(one.history, name) for one in (closely, sparse))
        np.testing.assert_allclose(*both, rtol=1e-3 if name == "gradient_norm" else 1e-6)
    for name in ("gradient_norm", "clipped_norm"):
        np.testing.assert_allclose(
            *(getattr(one.run, name) for one in (closely, sparse)), rtol=1e-3
        )
    assert all(not one.kept for one in sparse.loop.steps.facts()[0])


@pytest.mark.parametrize(("asked", "parts"), [(4, 4), (512, 9)])
def test_a_clip_has_read_what_is_read_in_part(asked: int, parts: int) -> None:
    """A gradient has as many parts as are long enough."""

    def change(training: Training) -> None:
        training.monitor.schedule.part, training.limit = asked, 1e6
        training.monitor.schedule._decide = lambda: None

    closely, sparse = pair(change, 60, width=400)
    part = sparse.history.gradient_norms / closely.history.gradient_norms
    assert (np.abs(part - 1) > 1e-6).any()  # of each one there is an estimate
    np.testing.assert_allclose(part, 1, rtol=0.2)
    both = (one.history.gradient_norm for one in (closely, sparse))
    np.testing.assert_allclose(*both, rtol=1e-5)
    assert f"one part in {parts} of each large gradient" in " ".join(str(sparse.report()).split())


def test_a_clip_of_some_parameters_says_nothing_of_all() -> None:
    training = Training()
    for _ in range(80):
        training.backward()
        nn.utils.clip_grad_norm_(training.model[0].parameters(), 1e6)
        expected = float(nn.utils.get_total_norm([p.grad for p in training.model.parameters()]))
        training.optimizer.step()
    assert training.monitor.history.gradient_norm[-1] == pytest.approx(expected, rel=1e-5)


def test_a_loss_and_a_batch_can_be_given_in_a_row() -> None:
    training = Training()
    monitor = training.until_quiet()
    step = monitor.steps
    training.step()
    monitor.step(loss=7.0, batch="seven")
    training.backward()
    monitor.step(batch="eight")
    training.optimizer.step()
    assert monitor.steps == step + 2
    assert monitor.history.loss[step] == 7.0
    recent = {one.step: one.batch for one in monitor._spikes._recent}
    assert (recent[step], recent[step + 1]) == ("seven", "eight")


def test_what_is_not_finite_wakes_python_in_that_step() -> None:
    training = Training()
    monitor = training.until_quiet()
    step = monitor.steps
    training.backward()
    training.model[4].weight.grad[3, 5] = torch.inf
    training.optimizer.step()
    assert (monitor.nonfinite.step, monitor.nonfinite.phase) == (step, "gradient")
    assert monitor.nonfinite.gradient_of == "4.weight"


def test_an_error_within_a_backward_pass_ends_no_row() -> None:
    training = Training()
    monitor = training.until_quiet()
    step = monitor.steps
    loss = training.loss()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    training.step(40)
    assert monitor.steps == step + 40
    assert np.isfinite(monitor.history.loss).all()


def test_another_models_training_is_none_of_ours() -> None:
    one, two = Training(), Training(width=8)
    for _ in range(100):
        one.backward()
        two.backward()
        two.optimizer.step()
        one.optimizer.step()
    for training in (one, two):
        assert training.monitor.steps == 100
        assert [step.backwards for step in training.monitor.loop.steps.facts()[0]][-1] == 1


def test_another_models_step_between_two_of_ours_ends_no_row() -> None:
    training, other = Training(), Training(width=8)
    monitor = training.until_quiet()
    assert monitor._quiet.on
    other.step()
    assert monitor._quiet.on
    training.model(torch.ones(2, 16))
    other.step()
    assert monitor._quiet.on


@pytest.mark.parametrize("missing", [70, 71])  # no step at which there is a look
def test_a_single_step_on_what_was_left_is_noted_in_a_row_too(missing: int) -> None:
    def change(training: Training) -> None:
        emptied, count = training.optimizer.zero_grad, iter(range(1000))
        training.optimizer.zero_grad = lambda: emptied() if next(count) != missing else None

    for monitor in pair(change):
        steps = monitor.loop.steps.facts()[0]
        assert sum(one.kept + sum(one.passed) for one in steps) == 1
        assert all(one.backwards == 1 for one in steps)


def test_a_second_optimizer_takes_part_in_the_step() -> None:
    training = Training(make=lambda p, lr: torch.optim.SGD(list(p)[:4], lr=lr))
    monitor = training.until_quiet()
    step = monitor.steps
    other = torch.optim.SGD(list(training.model.parameters())[4:], lr=0.01)
    for _ in range(30):
        training.step()
        other.step()
    assert monitor.steps == step + 30
    assert len(monitor.loop.steps.facts()) == 2


def test_gradients_that_were_left_wake_python() -> None:
    training = Training()
    monitor = training.until_quiet()
    step = monitor.steps
    training.optimizer.zero_grad = lambda: None
    training.step(40)
    passed = [one for one in monitor.loop.steps.facts()[0] if one.step >= step]
    assert all(one.kept for one in passed)
    assert [one.cause for one in monitor.findings] == ["no-zero-grad"]


def test_a_row_keeps_nothing_alive() -> None:
    training = Training()
    monitor = training.until_quiet()
    training.loss()
    gone = [weakref.ref(monitor), weakref.ref(training.model)]
    del monitor, training
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_removal_within_a_row_leaves_the_records() -> None:
    training = Training()
    monitor = training.until_quiet()
    steps = monitor.steps
    monitor.remove()
    training.step(3)
    assert len(monitor.history) == monitor.steps == steps
    assert not any(one._forward_pre_hooks for one in training.model.modules())


@pytest.mark.parametrize("value", [0, 5])
def test_an_argument_with_a_graph_is_kept_without_it(value: int) -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: torch.Tensor, *scale: torch.Tensor) -> torch.Tensor:  # type: ignore
            return super().forward(x) * sum(scale, 1)

    training = Training(Scaled(*net()))
    monitor = training.until_quiet()
    graph = torch.ones((), requires_grad=True) * value
    training.model(torch.randn(8, 16), graph)
    (_, kept), _ = monitor._quiet.call
    assert kept.grad_fn is None
    assert float(kept.detach()) == value
