"""Training loops of many kinds under a monitor: right ones, of which nothing is said, and wrong."""

import copy
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import clip_grad_norm_, clip_grad_value_  # noqa: E402
from vegrad.clipping import GlobalNorm  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]
STEPS = 45


class Data:
    """A small classification of points, with a network for it."""

    def __init__(self, width: int = 16) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(64, 8)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()
        self.model = nn.Sequential(
            nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
        )

    def loss(self, rows: slice = slice(None)) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(self.x[rows]), self.y[rows])

    def sgd(self, rate: float = 0.05, **options: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), rate, **options)


def plain(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


def emptied_to_zero(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd(momentum=0.9)
    for _ in range(STEPS):
        data.loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return monitor


def emptied_by_data(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        for one in data.model.parameters():
            if one.grad is not None:
                one.grad.data.zero_()
        data.loss().backward()
        optimizer.step()
    return monitor


def accumulated(data: Data) -> Monitor:
    optimizer = torch.optim.AdamW(data.model.parameters(), 1e-3)
    monitor = Monitor(data.model)
    for step in range(4 * STEPS):
        (data.loss(slice(step % 4 * 16, step % 4 * 16 + 16)) / 4).backward()
        if step % 4 == 3:
            clip_grad_norm_(data.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return monitor


def adversaries(data: Data) -> Monitor:
    made = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    judge = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Linear(16, 1))
    both = nn.ModuleDict({"made": made, "judge": judge})
    first = torch.optim.Adam(made.parameters(), 1e-3)
    second = torch.optim.Adam(judge.parameters(), 1e-3)
    monitors = [Monitor(one) for one in (made, judge, both)]
    score = nn.functional.softplus
    for _ in range(STEPS):
        fake = made(torch.randn(64, 4))
        second.zero_grad()
        score(judge(fake.detach())).mean().backward()
        score(-judge(data.x)).mean().backward()
        clip_grad_norm_(judge.parameters(), 1.0)
        second.step()
        first.zero_grad()
        score(-judge(fake)).mean().backward()
        clip_grad_norm_(made.parameters(), 1.0)
        first.step()
    assert all(one.report().healthy for one in monitors[:2])
    return monitors[2]


def partly_frozen(data: Data) -> Monitor:
    data.model[0].requires_grad_(False)
    monitor = Monitor(data.model)
    optimizer = torch.optim.Adam([one for one in data.model.parameters() if one.requires_grad])
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


def averaged(data: Data) -> Monitor:
    teacher = copy.deepcopy(data.model)
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = teacher(data.x).softmax(1)
        nn.functional.cross_entropy(data.model(data.x), (wanted + 1) / 4).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), data.model.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
    return monitor


def closures(data: Data) -> Monitor:
    monitor = Monitor(data.model)
    optimizer = torch.optim.LBFGS(data.model.parameters(), 0.1, max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = data.loss()
        loss.backward()
        return loss

    for _ in range(12):
        optimizer.step(closure)
    return monitor


def scaled(data: Data) -> Monitor:
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**12), data.sgd()
    monitor = Monitor(data.model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(data.loss()).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(data.model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return monitor


def clipped_by_value(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        clip_grad_value_(data.model.parameters(), 0.5)
        optimizer.step()
    return monitor


def ours(data: Data) -> Monitor:
    monitor = Monitor(data.model)
    optimizer = vegrad.torch.AdamW(data.model.parameters(), 1e-3, clip=GlobalNorm(1.0))
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


def warmed_up(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 1000)
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
        schedule.step()
    return monitor


def norm_only(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        clip_grad_norm_(data.model.parameters(), float("inf"))
        data.loss().backward()
        optimizer.step()
    return monitor


def by_hand(data: Data) -> Monitor:
    head = data.model[4]
    monitor, optimizer = Monitor(data.model), torch.optim.SGD(head.parameters(), 0.05)
    for _ in range(STEPS):
        data.model.zero_grad()
        data.loss().backward()
        optimizer.step()
        for one in data.model[:4].parameters():
            one.data -= 0.05 * one.grad
    return monitor


def two_rates(data: Data) -> Monitor:
    monitor = Monitor(data.model)
    first = torch.optim.SGD(data.model[0].parameters(), 0.01)
    rest = torch.optim.Adam(data.model[1:].parameters(), 1e-3)
    for step in range(3 * STEPS):
        rest.zero_grad()
        data.loss().backward()
        rest.step()
        if step % 10 == 9:
            first.step()
            first.zero_grad()
    return monitor


def decayed(data: Data) -> Monitor:
    monitor = Monitor(data.model)
    optimizer = torch.optim.AdamW(data.model.parameters(), 3e-3, weight_decay=0.1)
    for _ in range(4 * STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


HEALTHY = [plain, emptied_to_zero, emptied_by_data, accumulated, adversaries, partly_frozen]
HEALTHY += [averaged, closures, scaled, clipped_by_value, ours, warmed_up, norm_only, by_hand]
HEALTHY += [two_rates, decayed]


@pytest.mark.parametrize("loop", HEALTHY, ids=lambda one: one.__name__)
def test_of_a_right_loop_nothing_is_said(loop: Callable[[Data], Monitor]) -> None:
    report = loop(Data()).report()
    assert report.healthy, str(report)


def never_emptied(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), torch.optim.Adam(data.model.parameters(), 1e-3)
    for _ in range(STEPS):
        data.loss().backward()
        optimizer.step()
    return monitor


def another_is_emptied(data: Data) -> Monitor:
    other = copy.deepcopy(data.model)
    wrong = torch.optim.SGD(other.parameters(), 0.05)
    monitor, optimizer = Monitor(data.model), data.sgd(0.001)
    for _ in range(STEPS):
        wrong.zero_grad()
        data.loss().backward()
        clip_grad_norm_(data.model.parameters(), 5.0)
        optimizer.step()
    return monitor


def stepped_each_time(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for step in range(STEPS):
        if step % 8 == 0:
            optimizer.zero_grad()
        (data.loss() / 8).backward()
        optimizer.step()
    return monitor


def emptied_too_late(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        data.loss().backward()
        optimizer.zero_grad()
        optimizer.step()
    return monitor


def zeroed_too_late(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        data.loss().backward()
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    return monitor


def zeroed_after_none(data: Data) -> Monitor:
    data.x = nn.functional.pad(data.x, (1, 0))  # as the margin of a picture
    data.model[0] = nn.Linear(9, 16)
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    return monitor


def stepped_first(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = data.loss()
        optimizer.step()
        loss.backward()
    return monitor


def clipped_first(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = data.loss() * 50
        clip_grad_norm_(data.model.parameters(), 1.0)
        loss.backward()
        optimizer.step()
    return monitor


def clipped_after(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
        vegrad.torch.clip_grad_norm_(data.model.parameters(), 1.0)
    return monitor


def clipped_scaled(data: Data) -> Monitor:
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**12), data.sgd()
    monitor = Monitor(data.model)
    for _ in range(STEPS):
        scaler.scale(data.loss()).backward()
        vegrad.torch.clip_grad_value_(data.model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return monitor


def clipped_to_nothing(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        clip_grad_norm_(data.model.parameters(), 1e-5)
        optimizer.step()
    return monitor


def later_head(data: Data) -> Monitor:
    optimizer = data.sgd()
    data.model[4] = nn.Linear(16, 3)
    monitor = Monitor(data.model)
    for _ in range(STEPS):
        data.model.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


class Listed(nn.Module):
    """Keeps its layers in a list, where parameters() does not find them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 16), nn.Linear(16, 16)]
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


def listed(data: Data) -> Monitor:
    data.model = Listed()
    return plain(data)


def decayed_away(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd(0.05, weight_decay=2.0)
    for _ in range(4 * STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


def too_small_for_bfloat16(data: Data) -> Monitor:
    data.model, data.x = data.model.bfloat16(), data.x.bfloat16()
    monitor, optimizer = Monitor(data.model), data.sgd(1e-6)
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.loss().backward()
        optimizer.step()
    return monitor


def below_epsilon(data: Data) -> Monitor:
    monitor, optimizer = Monitor(data.model), torch.optim.Adam(data.model.parameters(), 1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (data.loss() * 1e-10).backward()
        optimizer.step()
    return monitor


SICK = {
    never_emptied: "no-zero-grad",
    another_is_emptied: "no-zero-grad",
    stepped_each_time: "no-zero-grad",
    emptied_too_late: "zero-grad-before-step",
    zeroed_too_late: "zero-grad-before-step",
    zeroed_after_none: "zero-grad-before-step",
    stepped_first: "zero-grad-before-step",
    clipped_first: "clip-before-backward",
    clipped_after: "clip-before-backward",
    clipped_scaled: "clip-before-unscale",
    clipped_to_nothing: "clip-too-small",
    later_head: "not-in-optimizer",
    listed: "unregistered",
    decayed_away: "weight-decay",
    too_small_for_bfloat16: "learning-rate-low",
    below_epsilon: "optimizer-eps",
}


@pytest.mark.parametrize("loop", SICK, ids=lambda one: one.__name__)
def test_what_is_wrong_with_a_loop_is_said(loop: Callable[[Data], Monitor]) -> None:
    report = loop(Data()).report()
    assert [one.cause for one in report.findings[:1]] == [SICK[loop]], str(report)
