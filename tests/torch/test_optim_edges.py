"""vegrad.torch's optimizers in rare uses that torch.optim allows."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from vegrad import _core, clipping  # noqa: E402

from tests.torch.test_optim import CASES, Training, assert_equal, make  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_a_weight_decay_that_is_changed_in_place(case: str) -> None:
    """Settings may be tensors, which stay the same objects in a group."""
    results = []
    for module in (ours, torch.optim):
        training = Training(torch.float64)
        decay = torch.tensor(0.01, dtype=torch.float64)
        options = {"weight_decay": decay, "foreach": False}
        optimizer = make(module, case, training.model.parameters(), **options)
        training.run(optimizer, 2)
        decay.mul_(20)
        results.append(training.run(optimizer, 3))
    assert_equal(*results)


def test_betas_that_are_tensors_changed_in_place() -> None:
    results = []
    for module in (ours, torch.optim):
        training = Training(torch.float64)
        first = torch.tensor(0.9, dtype=torch.float64)
        betas = first, torch.tensor(0.99, dtype=torch.float64)
        optimizer = module.AdamW(training.model.parameters(), betas=betas, foreach=False)
        training.run(optimizer, 2)
        first.fill_(0.3)
        results.append(training.run(optimizer, 3))
    assert_equal(*results)


@every_case
@pytest.mark.parametrize("clip", [None, clipping.GlobalNorm(1e9)], ids=["", "clip"])
def test_a_model_of_another_precision(case: str, clip: Any) -> None:
    """The states follow a model that is converted there and back in the middle of training."""
    straight, converted = Training(torch.float64), Training(torch.float64)
    want = straight.run(make(ours, case, straight.model.parameters(), clip=clip), 9)
    optimizer = make(ours, case, converted.model.parameters(), clip=clip)
    for dtype in (torch.float64, torch.float32, torch.float64):
        converted.model.to(dtype)
        converted.x, converted.y = converted.x.to(dtype), converted.y.to(dtype)
        got = converted.run(optimizer, 3)
    assert_equal(got, want, 1e-4)


@every_case
@pytest.mark.parametrize("clip", [None, clipping.GlobalNorm(1e9)], ids=["", "clip"])
def test_parameters_that_share_memory(case: str, clip: Any) -> None:
    """Parameters that share memory are stepped over one after the other, as in PyTorch."""
    results = []
    for module in (ours, torch.optim):
        memory = torch.linspace(-1, 1, 10, dtype=torch.float64)
        params = [nn.Parameter(one) for one in (memory[:6], memory[4:], torch.ones(3).double())]
        params.append(nn.Parameter(torch.ones(3).double()))
        for number, one in enumerate(params[:3]):
            one.grad = torch.full_like(one, number + 0.5)
        params[3].grad = params[3].data  # of its own
        optimizer = make(module, case, params, **({"clip": clip} if module is ours else {}))
        for group in optimizer.param_groups:
            group["foreach"] = False
        for _ in range(3):
            optimizer.step()
        results.append(torch.cat([memory, *(one.detach() for one in params[2:])]))
    assert_equal(*results)


def test_a_parameter_of_another_shape_says_so_and_keeps_its_state() -> None:
    parameter = nn.Parameter(torch.ones(6))
    optimizer = ours.Adam([parameter])
    parameter.grad = torch.ones(6)
    optimizer.step()
    parameter.data, parameter.grad = torch.ones(4), torch.ones(4)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"must have shape \(6,\) and float32 as in the st"):
            optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(4))
    assert optimizer.state[parameter]["exp_avg"].shape == (6,)
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_momentum_less_sgd_steps_over_any_shape() -> None:
    parameter = nn.Parameter(torch.ones(6))
    optimizer = ours.SGD([parameter], 0.5)
    for size in (6, 4, 8):
        parameter.data, parameter.grad = torch.ones(size), torch.ones(size)
        optimizer.step()
        assert torch.equal(parameter.detach(), torch.full((size,), 0.5))


def test_what_pytorch_refuses_leaves_all_as_it_was() -> None:
    table, last = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 1)
    params = [*last.parameters(), *table.parameters()]
    before = [one.detach().clone() for one in params]
    optimizer = ours.Adam(params)
    last(table(torch.tensor([1, 2, 2]))).square().sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert all(map(torch.equal, before, params))


def test_no_groups_are_no_error() -> None:
    optimizer = ours.SGD([nn.Parameter(torch.ones(1))], 0.1)
    optimizer.param_groups.clear()
    optimizer.step()


def test_a_clip_that_calls_the_step_it_is_in() -> None:
    stepper = _core.Optimizer("sgd", momentum=0.9)
    params, grads = [np.ones(3)], [np.ones(3)]
    looked = []

    def limit(norm: float) -> float:
        looked.append(stepper.state())
        with pytest.raises(RuntimeError, match="must not be used by what its own step calls"):
            stepper.load({})
        return norm

    stepper.step(params, grads, 0.1, "global_norm", limit, 2.0, "raise", 0.0)
    assert looked == [{}]
    assert np.allclose(params[0], 0.9)


@pytest.mark.parametrize("kind", [ours.SGD, ours.Adam, ours.AdamW, ours.Lion])
def test_a_mapping_of_states_that_is_kept(kind: Any) -> None:
    """It is as full after a step as before, whatever is asked of it, and so are its copies."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    options = {"momentum": 0.9} if kind is ours.SGD else {}
    optimizer, plain = kind(weights, 0.1, **options), getattr(torch.optim, kind.__name__, kind)
    theirs = plain([torch.nn.Parameter(torch.ones(3)) for _ in range(2)], 0.1, **options)
    kept, (name, *_) = optimizer.state, optimizer._names
    looks: list[Callable[[], object]] = [
        lambda: len(kept),
        lambda: bool(kept),
        lambda: list(kept),
        lambda: list(reversed(kept)),
        lambda: weights[0] in kept,
        lambda: len(kept[weights[1]]),
        lambda: len(kept.get(weights[0], {})),
        lambda: list(kept.keys()),
        lambda: len(kept.values()),
        lambda: len(kept.items()),
        lambda: len(dict(kept)),
        lambda: len({**kept}),
        lambda: len(copy.copy(kept)),
        lambda: len(kept.copy()),
        lambda: len(copy.deepcopy(kept)),
        lambda: len(pickle.loads(pickle.dumps(kept))),
        lambda: len(kept | {}),
        lambda: kept == optimizer.state != {},
        lambda: "tensor" in repr(kept),
    ]
    for look in looks:
        for one in (optimizer, theirs):
            for group in one.param_groups:
                for weight in group["params"]:
                    weight.grad = torch.full((3,), 0.5)
            one.step()
        assert look()
        assert optimizer.state is kept
        for weight, other in zip(weights, theirs.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(kept[weight][name], theirs.state[other][name])


def test_what_is_written_into_a_kept_mapping_counts() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    optimizer = ours.SGD([weight], 1.0, momentum=1.0)
    kept = optimizer.state
    optimizer.step()
    kept[weight]["momentum_buffer"].fill_(2.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -1.0))
    kept.clear()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -1.0))
    assert len(kept) == 1


def test_what_a_kept_mapping_gave_is_as_of_then() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = ours.SGD([weight], 1.0, momentum=1.0)
    optimizer.step()
    before = optimizer.state[weight]["momentum_buffer"]
    optimizer.step()
    assert before.tolist() == [1.0] * 3
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [2.0] * 3


def test_copies_and_pickles_have_the_last_clip() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 4.0)
    optimizer = ours.Adam([weight], clip=clipping.GlobalNorm(1.0))
    assert copy.deepcopy(optimizer).clipped is None
    optimizer.step()
    for one in (copy.copy(optimizer), copy.deepcopy(optimizer)):
        assert repr(one.clipped) == repr(optimizer.clipped)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.clipped.norms.tolist() == optimizer.clipped.norms.tolist()
    assert again.clipped.clipped
    assert again.norms() is None or len(again.norms()) == 1


def test_hooks_and_the_profiler_hear_of_steps() -> None:
    """They do so also if they begin to listen after steps that nobody listened to."""
    params = [torch.nn.Parameter(torch.ones(2))]
    params[0].grad = torch.ones(2)
    optimizer = ours.SGD(params, 0.5)
    optimizer.step()
    heard: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: heard.append("before")),
        optimizer.register_step_post_hook(lambda *_: heard.append("after")),
        register_optimizer_step_post_hook(lambda *_: heard.append("any")),
    ]
    optimizer.step()
    assert heard == ["before", "after", "any"]
    for handle in handles:
        handle.remove()
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#SGD.step" in [event.key for event in profile.key_averages()]
    assert params[0].tolist() == [-0.5, -0.5]
    assert len(heard) == 3
