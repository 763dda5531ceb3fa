"""The rules that learn, inside torch optimizers, beside their authors' code and torch.optim."""

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch.optim as ours  # noqa: E402
from vegrad import clipping  # noqa: E402

from tests import reference_rules as published  # noqa: E402

SHAPES = [(4, 3), (4,), (2, 4), (5,)]


def weights() -> list[Any]:
    random = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))
        for shape in SHAPES
    ]


def gradients(step: int, there: list[int], params: list[Any]) -> None:
    """Give gradients of about 1, at times much larger, to the parameters at these places."""
    rng = np.random.default_rng(step)
    for place, param in enumerate(params):
        size = rng.lognormal(0, 0.4) * (rng.pareto(1) + 2 if rng.random() < 0.05 else 1)
        grad = torch.from_numpy(size * rng.standard_normal(SHAPES[place]))
        param.grad = grad if place in there else None


class Beside:
    """Two optimizers with the same gradients: ours with a rule, torch.optim's after the formula."""

    def __init__(self, rule: clipping.Rule, theirs: Any, count: int = len(SHAPES)) -> None:
        self.mine, self.plain = weights(), weights()
        self.rule, self.theirs = rule, theirs
        self.optimizer = ours.AdamW(self.mine[:count], 1e-3, clip=rule)
        self.other = torch.optim.AdamW(self.plain[:count], 1e-3)

    def step(self, step: int, there: list[int]) -> bool:
        gradients(step, there, self.mine)
        gradients(step, there, self.plain)
        exact = [self.plain[place].grad.numpy() for place in there]
        more = {"places": there} if isinstance(self.theirs, published.AdaGC) else {}
        clipped, _ = self.theirs(exact, ["float64"] * len(exact), **more)(exact)
        for place, grad in zip(there, clipped, strict=True):
            self.plain[place].grad = torch.from_numpy(grad)
        self.optimizer.step()
        self.other.step()
        return self.optimizer.clipped.clipped

    def assert_same(self) -> None:
        for one, two in zip(self.mine, self.plain, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (clipping.ZClip(warmup=10, max_grad_norm=3.0), published.ZClip(0.97, 2.5, 10, 3.0)),
        (clipping.ZClip(max_grad_norm=None), published.ZClip(max_grad_norm=None)),
        (clipping.AutoClip(40), published.AutoClip(40)),
        (clipping.AdaGC(start=20, max_norm=2.0), published.AdaGC(start=20, max_norm=2.0)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_a_long_series(rule: Any, theirs: Any) -> None:
    both = Beside(copy.deepcopy(rule), copy.deepcopy(theirs))
    clipped = sum(both.step(step, [0, 1, 2, 3]) for step in range(300))
    assert clipped > 5
    both.assert_same()


def test_adagc_where_a_parameter_has_no_gradient_at_times() -> None:
    both = Beside(clipping.AdaGC(start=20), published.AdaGC(start=20))
    for step in range(200):
        both.step(
            step, [0, 1, 3] if step % 7 == 3 else [0, 2, 3] if step % 11 == 5 else [0, 1, 2, 3]
        )
    both.assert_same()
    assert both.rule.averages.keys() == set("0123")


def test_adagc_and_parameters_that_are_added() -> None:
    both = Beside(clipping.AdaGC(start=5), published.AdaGC(start=5), 2)
    for step in range(50):
        if step == 20:
            both.optimizer.add_param_group({"params": both.mine[2:], "lr": 0.01})
            both.other.add_param_group({"params": both.plain[2:], "lr": 0.01})
        both.step(step, [0, 1] if step < 20 else [0, 1, 2, 3])
    both.assert_same()
    assert len(both.rule.averages) == 4


def test_a_state_with_more_buffers_than_there_are() -> None:
    """A state of AdaGC is taken by an optimizer whose parameters have not all been seen yet."""
    both = Beside(clipping.AdaGC(start=5), published.AdaGC(start=5))
    for step in range(20):
        both.step(step, [0, 1, 2, 3])
    state = copy.deepcopy(both.optimizer.state_dict())
    fresh = ours.AdamW(weights(), clip=clipping.AdaGC())
    fresh.load_state_dict(state)
    assert fresh.clip.averages == both.rule.averages
