"""The optimizers of vegrad.torch, compared with torch.optim's."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad  # noqa: E402
import vegrad.torch as ours  # noqa: E402
from vegrad import clipping  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.05}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": ("Adam", {"lr": 3e-3, "weight_decay": 0.01, "betas": (0.8, 0.99)}),
    "adamw": ("AdamW", {"lr": 3e-3, "eps": 1e-6}),
    "amsgrad": ("AdamW", {"lr": 3e-3, "amsgrad": True}),
    "maximize": ("Adam", {"lr": 1e-4, "maximize": True}),
}
every_case = pytest.mark.parametrize("case", CASES)


def make(module: Any, case: str, params: Any, **options: Any) -> Any:
    name, arguments = CASES[case]
    return getattr(module, name)(params, **(arguments | options))


class Training:
    """A small network and its data, the same for every instance."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        layers = torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 5)
        self.model = torch.nn.Sequential(*layers).to(dtype)
        self.x, self.y = (torch.randn(64, n, dtype=torch.float64).to(dtype) for n in (13, 5))

    def groups(self) -> list[dict[str, Any]]:
        first, last = self.model[0].parameters(), self.model[2].parameters()
        return [{"params": first}, {"params": last, "lr": 0.002, "weight_decay": 0.02}]

    def run(self, optimizer: Any, steps: int, max_norm: float | None = None) -> Any:
        for _ in range(steps):
            optimizer.zero_grad()
            (self.model(self.x) - self.y).square().mean().backward()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach()


def assert_equal(got: Any, want: Any, rtol: float | None = None) -> None:
    rtol = rtol or (1e-13 if got.dtype == torch.float64 else 1e-6)
    difference = (got.double() - want.double()).norm() / want.double().norm()
    assert difference < rtol


def assert_same_state(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got["param_groups"] == want["param_groups"]
    assert got["state"].keys() == want["state"].keys()
    for place, kept in want["state"].items():
        assert got["state"][place].keys() == kept.keys()
        for name, value in kept.items():
            other = got["state"][place][name]
            assert (other.dtype, other.shape) == (value.dtype, value.shape)
            assert other.stride() == value.stride()
            torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grouped", [False, True])
def test_200_steps_end_where_torchs_end(case: str, dtype: torch.dtype, grouped: bool) -> None:
    a, b = Training(dtype), Training(dtype)
    got = make(ours, case, a.groups() if grouped else a.model.parameters())
    want = make(torch.optim, case, b.groups() if grouped else b.model.parameters())
    assert_equal(a.run(got, 200), b.run(want, 200))
    assert_same_state(got.state_dict(), want.state_dict())


@every_case
@pytest.mark.parametrize("there", [True, False])
def test_states_go_both_ways(case: str, there: bool) -> None:
    """Take 20 steps with one optimizer and 20 with the other, through a file."""
    a, b = Training(torch.float64), Training(torch.float64)
    modules = (torch.optim, ours) if there else (ours, torch.optim)
    first = make(modules[0], case, a.groups())
    a.run(first, 20)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make(modules[1], case, a.groups())
    second.load_state_dict(torch.load(file, weights_only=True))
    straight = make(torch.optim, case, b.groups())
    assert_equal(a.run(second, 20), b.run(straight, 40))
    assert_same_state(second.state_dict(), straight.state_dict())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("max_norm", [0.05, 1e9])
def test_the_clip_is_joint_over_all_groups(grouped: bool, max_norm: float) -> None:
    a, b = Training(torch.float64), Training(torch.float64)
    rule = clipping.GlobalNorm(max_norm)
    got = ours.AdamW(a.groups() if grouped else a.model.parameters(), clip=rule)
    want = torch.optim.AdamW(b.groups() if grouped else b.model.parameters())
    # PyTorch's divisor is larger by 1e-6.
    assert_equal(a.run(got, 50), b.run(want, 50, max_norm), 1e-5)
    norm = torch.nn.utils.get_total_norm(one.grad for one in a.model.parameters())
    torch.testing.assert_close(got.clipped.norm, float(norm))  # gradients are not written
    assert got.clipped.clipped == (max_norm < 1)


@pytest.mark.parametrize(
    "rule",
    [
        clipping.Value(1e-3),
        clipping.Norm(0.01),
        clipping.GlobalNorm(0.1, ord=1),
        clipping.BlockRMS(1e-3),
        clipping.Adaptive(),
        clipping.AutoClip(),
        clipping.ZClip(warmup=3),
        clipping.AdaGC(start=3),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_every_rule_over_groups(rule: clipping.Rule) -> None:
    """The step ends as if the rule was applied to the gradients before it."""
    a, b = Training(torch.float64), Training(torch.float64)
    other = copy.deepcopy(rule)
    got, want = ours.AdamW(a.groups(), clip=rule), torch.optim.AdamW(b.groups())
    for _ in range(10):
        a.run(got, 1)
        want.zero_grad()
        (b.model(b.x) - b.y).square().mean().backward()
        params = list(b.model.parameters())
        other.apply_([one.grad for one in params], [one.detach() for one in params])
        want.step()
    vectors = map(torch.nn.utils.parameters_to_vector, (a.model.parameters(), params))
    assert_equal(*(v.detach() for v in vectors), rtol=1e-12)
    for key, value in rule.state_dict().items():
        assert other.state_dict()[key] == pytest.approx(value)


def test_a_gradient_that_is_not_finite_stops_all_groups() -> None:
    for policy in ("raise", "skip"):
        a = Training()
        got = ours.AdamW(a.groups(), clip=clipping.GlobalNorm(1.0, nonfinite=policy))
        before = a.run(got, 3).clone()
        state = copy.deepcopy(got.state_dict())
        a.model[2].bias.grad[1] = torch.nan
        if policy == "raise":
            with pytest.raises(vegrad.NonFiniteGradientError, match=r"grads\[3\]"):
                got.step()
        else:
            got.step()
            assert got.clipped.skipped
        after = torch.nn.utils.parameters_to_vector(a.model.parameters())
        assert torch.equal(before, after)
        assert_same_state(got.state_dict(), state)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 5, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
    # turns betas or the momentum too
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("case", ["momentum", "adamw", "amsgrad"])
def test_schedulers(scheduler: str, case: str) -> None:
    results = []
    for module in (ours, torch.optim):
        training = Training(torch.float64)
        optimizer = make(module, case, training.groups())
        schedule = SCHEDULERS[scheduler](optimizer)
        for _ in range(30):
            result = training.run(optimizer, 1)
            schedule.step()
        results.append(result)
    assert_equal(*results)


def test_settings_that_change_between_steps() -> None:
    """Momentum and amsgrad begin and end in the middle of a training."""
    for case, name, values in (
        ("sgd", "momentum", (0, 0.9, 0.5, 0)),
        ("adamw", "weight_decay", (0.0, 0.3, 0.01)),
        ("adam", "betas", ((0.9, 0.99), (0.5, 0.9))),
        ("momentum", "maximize", (False, True)),
    ):
        results = []
        for module in (ours, torch.optim):
            training = Training(torch.float64)
            optimizer = make(module, case, training.groups())
            for value in values:
                optimizer.param_groups[0][name] = value
                result = training.run(optimizer, 3)
            results.append(result)
        assert_equal(*results)


def test_what_is_done_to_a_state_is_taken_in() -> None:
    results = []
    for module in (ours, torch.optim):
        training = Training(torch.float64)
        params = list(training.model.parameters())
        optimizer = module.AdamW(params)
        training.run(optimizer, 5)
        optimizer.state[params[0]]["exp_avg"].mul_(3)
        optimizer.state[params[1]]["step"].fill_(100)
        optimizer.state[params[1]]["mine"] = "kept"
        del optimizer.state[params[2]]
        optimizer.state[params[3]] = {}
        training.run(optimizer, 5)
        assert optimizer.state[params[1]]["mine"] == "kept"
        assert optimizer.state[params[2]]["step"] == 5
        results.append(training.run(optimizer, 5))
    assert_equal(*results)


def test_a_state_dict_is_not_written_by_later_steps() -> None:
    training = Training()
    optimizer = ours.AdamW(training.model.parameters())
    training.run(optimizer, 3)
    state = optimizer.state_dict()
    frozen = copy.deepcopy(state)
    training.run(optimizer, 3)
    assert_same_state(state, frozen)


def test_groups_that_are_added_and_gradients_that_come_and_go() -> None:
    results = []
    for module in (ours, torch.optim):
        training = Training(torch.float64)
        first, last = training.model[0], training.model[2]
        last.requires_grad_(False)
        optimizer = module.Adam(first.parameters(), lr=0.01)
        training.run(optimizer, 5)
        last.requires_grad_(True)
        optimizer.add_param_group({"params": last.parameters(), "lr": 0.1})
        training.run(optimizer, 5)
        first.bias.requires_grad_(False)
        training.run(optimizer, 5)
        first.bias.requires_grad_(True)
        result = training.run(optimizer, 5)
        results.append(result)
        assert [one["step"] for one in optimizer.state_dict()["state"].values()] == [20, 15, 15, 15]
    assert_equal(*results)


def test_closures_and_hooks_and_zero_grad() -> None:
    training, seen = Training(), []
    optimizer = ours.SGD(training.model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> Any:
        assert torch.is_grad_enabled()
        optimizer.zero_grad(set_to_none=False)
        loss = (training.model(training.x) - training.y).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert seen == ["before", "after"] * 3
    optimizer.zero_grad()
    assert all(one.grad is None for one in training.model.parameters())
    optimizer.step()  # nothing to do


def test_autograd_sees_that_weights_changed() -> None:
    training = Training()
    optimizer = ours.SGD(training.model.parameters(), 0.1)
    loss = (training.model(training.x) - training.y).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_and_pickles() -> None:
    training = Training()
    optimizer = ours.AdamW(training.model.parameters(), clip=clipping.AutoClip(50))
    training.run(optimizer, 5)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert_same_state(copied.state_dict(), optimizer.state_dict())
        assert len(copied.clip.norms) == 5
        assert copied.clip.norms == optimizer.clip.norms
        copied.step()
    fresh = ours.AdamW(training.model.parameters(), clip=clipping.AutoClip(50))
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.clip.norms == optimizer.clip.norms
    assert "AdamW" in repr(optimizer)


def test_arguments() -> None:
    params = [torch.nn.Parameter(torch.zeros(3))]
    for fused in (True, False):
        optimizer = ours.AdamW(params, fused=fused, capturable=False, foreach=None)
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.defaults["fused"] is fused
    with pytest.raises(TypeError, match="clip must be a rule"):
        ours.AdamW(params, clip=1.0)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        ours.AdamW(params, lr=-1.0)
    with pytest.raises(ValueError, match="lr and weight_decay"):
        ours.Lion(params, lr=-1.0)
    with pytest.raises(ValueError, match="betas must be"):
        ours.Lion(params, betas=(0.9, 1.0))
    params[0].grad = torch.ones(3)
    rate = torch.tensor(0.5)
    optimizer = ours.SGD(params, rate)
    optimizer.step()
    rate.fill_(0.25)
    optimizer.step()
    assert torch.equal(params[0].detach(), torch.full((3,), -0.75))


def test_lion_is_vegrads_lion() -> None:
    a, b = Training(torch.float64), Training(torch.float64)
    got, want = ours.Lion(a.groups(), 1e-3), vegrad.Lion(1e-3)
    for group in got.param_groups:
        group |= {"lr": 1e-3, "weight_decay": 0.1}
    want = vegrad.Lion(1e-3, weight_decay=0.1)
    for _ in range(20):
        vector = a.run(got, 1)
        b.model.zero_grad()
        (b.model(b.x) - b.y).square().mean().backward()
        want.step(list(b.model.parameters()), [one.grad for one in b.model.parameters()])
    assert_equal(vector, torch.nn.utils.parameters_to_vector(b.model.parameters()).detach())
    # and the code for parameters that are not ours is the same
    c = Training(torch.float64)
    plain = ours.Lion(c.groups(), 1e-3)
    for group in plain.param_groups:
        group |= {"lr": 1e-3, "weight_decay": 0.1, "differentiable": True}
    assert_equal(c.run(plain, 20), vector)
    state = got.state_dict()
    assert state["state"][0].keys() == {"exp_avg"}
    plain.load_state_dict(state)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step() -> None:
    a, b = Training(), Training()
    optimizer = ours.AdamW(a.model.parameters())
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert_equal(a.run(optimizer, 5), b.run(torch.optim.AdamW(b.model.parameters()), 5))


def test_grad_scaler() -> None:
    training = Training()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = ours.AdamW(training.model.parameters(), fused=True)
    before = torch.nn.utils.parameters_to_vector(training.model.parameters()).detach().clone()
    scaler.scale((training.model(training.x) - training.y).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    after = torch.nn.utils.parameters_to_vector(training.model.parameters()).detach()
    assert 0 < (after - before).abs().max() < 2e-3
