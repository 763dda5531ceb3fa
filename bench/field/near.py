"""Trainings that look like a fault and are none: what a doctor must be silent about.

    python bench/field/near.py [REGEX]     what vegrad says of each; silence is right
    python bench/field/near.py --truth     no vegrad: each one learns

Each function trains something that is done every day and that a hasty rule would call sick: a
detach that is meant, gradients that are summed up on purpose, losses below 0, clips that always
bite, a softmax inside, a rate that begins at 0. It gives the monitor, the error that is left and,
where a step can be described so, the case for `diagnose`.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent / "cases"))

from _data import diabetes, digits, mlp, unexplained, wrong

F = nn.functional
Watch = Callable[[nn.Module], Any]
Result = tuple[Any, float, tuple[Any, ...] | None]
ENOUGH = 0.6  # the error that each stays below: share of wrong ones, or of variance unexplained


def batches(n: int, steps: int, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(n, generator=generator)[:size] for _ in range(steps)]


def simple(watch: Watch, model: nn.Module, loss_fn: Any, x: Any, y: Tensor, optimizer: Any) -> Any:
    """Train in the usual way for 150 steps."""
    monitor = watch(model)
    for index in batches(len(y), 150):
        optimizer.zero_grad()
        loss_fn(model(x[index]), y[index]).backward()
        optimizer.step()
    return monitor


def accumulation(watch: Watch) -> Result:
    """Sum up the gradients of four batches, then step: zero_grad is called every fourth time."""
    x, y = digits()
    model = mlp(64, 64, 10)
    optimizer, monitor = torch.optim.Adam(model.parameters(), lr=3e-3), watch(model)
    for step, index in enumerate(batches(512, 400)):
        (F.cross_entropy(model(x[index]), y[index]) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return monitor, wrong(model(x), y), None


def frozen_body(watch: Watch) -> Result:
    """Fine-tune a head on a body that is frozen by requires_grad."""
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(model[2].parameters(), lr=1e-2)
    monitor = simple(watch, model, F.cross_entropy, x, y, optimizer)
    return monitor, wrong(model(x), y), (model, F.cross_entropy, x, y)


def warm_up(watch: Watch) -> Result:
    """Warm up from a rate of 0."""
    x, y = digits()
    model = mlp(64, 64, 10)
    optimizer, monitor = torch.optim.Adam(model.parameters(), lr=5e-3), watch(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 100))
    for index in batches(512, 200):
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        schedule.step()
    return monitor, wrong(model(x), y), None


def clip_always(watch: Watch) -> Result:
    """Clip to 1 what is 2 to 10 all the time, as for transformers."""
    x, y = digits()
    model = mlp(64, 64, 10)
    optimizer, monitor = torch.optim.Adam(model.parameters(), lr=3e-3), watch(model)
    for index in batches(512, 150):
        optimizer.zero_grad()
        (5 * F.cross_entropy(model(x[index]), y[index])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return monitor, wrong(model(x), y), None


def gaussian_likelihood(watch: Watch) -> Result:
    """Fit a density: its negative log-likelihood falls below 0, as it may."""
    x, y = diabetes()
    y = (x @ torch.linspace(-1, 1, 10)) / 2 + 0.02 * torch.randn(len(x))
    model = mlp(10, 32, 2)

    def loss_fn(out: Tensor, target: Tensor) -> Tensor:
        return F.gaussian_nll_loss(out[:, 0], target, F.softplus(out[:, 1]) + 1e-4)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = simple(watch, model, loss_fn, x, y, optimizer)
    return monitor, unexplained(model(x)[:, 0], y), (model, loss_fn, x, y)


def straight_through(watch: Watch) -> Result:
    """Round with a straight-through gradient: x + (round(x) - x).detach()."""
    x, y = digits()

    class Round(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (x.round() - x).detach()

    model = nn.Sequential(nn.Linear(64, 64), Round(), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = simple(watch, model, F.cross_entropy, x, y, optimizer)
    return monitor, wrong(model(x), y), (model, F.cross_entropy, x, y)


class Views(nn.Module):
    """An encoder with a predictor on it; SimSiam holds the other view's gradient back."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.predict = mlp(64, 64, 32), mlp(32, 32, 32)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([self.predict(self.encode(a)), self.encode(b).detach()], 1)


def stop_gradient(watch: Watch) -> Result:
    """Learn by SimSiam for a while: half of the graph is detached, as it must be."""
    x, _ = digits()
    model = Views()
    optimizer, monitor = torch.optim.SGD(model.parameters(), lr=0.02), watch(model)
    for index in batches(512, 60, 128):
        a, b = (x[index] * (torch.rand(128, 64) > 0.2) for _ in range(2))
        optimizer.zero_grad()
        (-F.cosine_similarity(*model(a, b).unbind(1)).mean()).backward()
        optimizer.step()
    code = model.encode(x)
    return monitor, 0.5 if (code - code.mean(0)).norm() > 1 else 1.0, None


def contrastive(watch: Watch) -> Result:
    """Compare all with all: the loss's softmax runs over the batch, both ways."""
    x, _ = digits()
    model, target = mlp(64, 64, 16), torch.arange(512)
    optimizer, monitor = torch.optim.Adam(model.parameters(), lr=3e-3), watch(model)
    hit = 0.0
    for index in batches(512, 150, 64):
        a, b = (F.normalize(model(x[index] * (torch.rand(64, 64) > 0.2)), dim=1) for _ in range(2))
        logits, own = a @ b.T / 0.1, target[:64]
        optimizer.zero_grad()
        (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)).backward()
        optimizer.step()
        hit = (logits.argmax(1) == own).float().mean().item()
    return monitor, 1 - hit, None


def softmax_then_log(watch: Watch) -> Result:
    """Take the logarithm of a softmax for NLLLoss: one softmax, in two calls."""
    x, y = digits()
    model = nn.Sequential(*mlp(64, 64, 10), nn.Softmax(dim=1))

    def loss_fn(p: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss((p + 1e-8).log(), target)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = simple(watch, model, loss_fn, x, y, optimizer)
    return monitor, wrong(model(x), y), (model, loss_fn, x, y)


class Experts(nn.Module):
    """A softmax inside: which of four experts is heard."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList([mlp(64, 16, 10) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        heard = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.gate(x).softmax(1)[:, :, None] * heard).sum(1)


def experts(watch: Watch) -> Result:
    """Mix experts by a softmax gate, under a cross-entropy."""
    x, y = digits()
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = simple(watch, model, F.cross_entropy, x, y, optimizer)
    return monitor, wrong(model(x), y), (model, F.cross_entropy, x, y)


def counts(watch: Watch) -> Result:
    """Predict counts, which are never negative, by a softplus output."""
    x, _ = diabetes()
    torch.manual_seed(1)
    y = torch.poisson((x[:, 2:3] + 0.5 * x[:, 8:9]).exp().clamp(max=20))
    model = nn.Sequential(*mlp(10, 32, 1), nn.Softplus())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = simple(watch, model, nn.MSELoss(), x, y, optimizer)
    return monitor, unexplained(model(x), y), (model, nn.MSELoss(), x, y)


def pixels(watch: Watch) -> Result:
    """Rebuild pictures of 0 to 1 by a sigmoid output."""
    x, _ = digits()
    x = (x - x.min()) / (x.max() - x.min())
    model = nn.Sequential(*mlp(64, 32, 64), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = simple(watch, model, nn.MSELoss(), x, x, optimizer)
    return monitor, unexplained(model(x), x), (model, nn.MSELoss(), x, x)


def quantiles(watch: Watch) -> Result:
    """Predict three quantiles of one target: (N, 3) meets (N, 1) on purpose."""
    x, y = diabetes()
    y = ((y - y.mean()) / y.std())[:, None]
    levels = torch.tensor([0.1, 0.5, 0.9])
    model = mlp(10, 32, 3)

    def pinball(out: Tensor, target: Tensor) -> Tensor:
        return torch.maximum(levels * (target - out), (levels - 1) * (target - out)).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = simple(watch, model, pinball, x, y, optimizer)
    return monitor, unexplained(model(x)[:, 1], y), (model, pinball, x, y)


def target_network(watch: Watch) -> Result:
    """Learn values toward a copy that lags behind."""
    torch.manual_seed(0)
    state = torch.rand(512, 1)
    after, reward = (state + 0.1).clamp(max=1), (state > 0.9).float()
    model = mlp(1, 32, 1)
    lagging = copy.deepcopy(model)
    optimizer, monitor = torch.optim.Adam(model.parameters(), lr=1e-2), watch(model)
    for step, index in enumerate(batches(512, 300)):
        if step % 20 == 0:
            lagging.load_state_dict(model.state_dict())
        with torch.no_grad():
            target = reward[index] + 0.5 * lagging(after[index]) * (1 - reward[index])
        optimizer.zero_grad()
        F.mse_loss(model(state[index]), target).backward()
        optimizer.step()
    return monitor, 1 - (model(state)[reward > 0].mean() > 0.7).float().item(), None


def two_optimizers(watch: Watch) -> Result:
    """Step the body and the head by two optimizers with two rates."""
    x, y = digits()
    model = mlp(64, 64, 10)
    monitor = watch(model)
    body, head = model[0].parameters(), model[2].parameters()
    pair = [torch.optim.Adam(body, lr=1e-3), torch.optim.SGD(head, lr=0.05)]
    for index in batches(512, 200):
        for optimizer in pair:
            optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        for optimizer in pair:
            optimizer.step()
    return monitor, wrong(model(x), y), None


def sum_with_its_rate(watch: Watch) -> Result:
    """Sum over the batch, with a rate that was chosen for a sum."""
    x, y = digits()
    model, loss_fn = mlp(64, 64, 10), nn.CrossEntropyLoss(reduction="sum")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / 32)
    monitor = simple(watch, model, loss_fn, x, y, optimizer)
    return monitor, wrong(model(x), y), (model, loss_fn, x, y)


def masked_labels(watch: Watch) -> Result:
    """Leave most labels out, by ignore_index."""
    x, y = digits()
    known = y.clone()
    known[torch.arange(512) % 4 > 0] = -100
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = simple(watch, model, nn.CrossEntropyLoss(), x, known, optimizer)
    return monitor, wrong(model(x), y), (model, nn.CrossEntropyLoss(), x, known)


def missing_targets(watch: Watch) -> Result:
    """Select the targets that are there before the loss: no NaN reaches it."""
    x, y = diabetes()
    y = ((y - y.mean()) / y.std())[:, None]
    gaps = y.clone()
    gaps[::5] = torch.nan
    model = mlp(10, 32, 1)

    def loss_fn(out: Tensor, target: Tensor) -> Tensor:
        there = ~target.isnan()
        return F.mse_loss(out[there], target[there])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = simple(watch, model, loss_fn, x, gaps, optimizer)
    return monitor, unexplained(model(x), y), (model, loss_fn, x, gaps)


def zero_head(watch: Watch) -> Result:
    """Begin with a head of zeros, as residual branches and heads often do."""
    x, y = digits()
    model = mlp(64, 64, 10)
    nn.init.zeros_(model[2].weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = simple(watch, model, F.cross_entropy, x, y, optimizer)
    return monitor, wrong(model(x), y), (model, F.cross_entropy, x, y)


def adversaries(watch: Watch) -> Result:
    """Train a GAN's two nets in turn, the loss of each rising when the other learns."""
    torch.manual_seed(0)
    both = nn.ModuleDict({"maker": mlp(4, 32, 2), "critic": mlp(2, 32, 1)})
    monitor = watch(both)
    steps = {k: torch.optim.Adam(net.parameters(), 1e-3, (0.5, 0.999)) for k, net in both.items()}
    yes, no = torch.ones(64, 1), torch.zeros(64, 1)
    for _ in range(300):
        real = torch.randn(64, 2) * 0.5 + 2
        made = both["maker"](torch.randn(64, 4))
        judge = F.binary_cross_entropy_with_logits
        steps["critic"].zero_grad()
        (judge(both["critic"](real), yes) + judge(both["critic"](made.detach()), no)).backward()
        steps["critic"].step()
        steps["maker"].zero_grad()
        judge(both["critic"](made), yes).backward()
        steps["maker"].step()
    away = (both["maker"](torch.randn(512, 4)).mean(0) - 2).abs().max().item()
    return monitor, away / 2, None


TRAININGS: list[Callable[[Watch], Result]] = [
    accumulation, frozen_body, warm_up, clip_always, gaussian_likelihood, straight_through,
    stop_gradient, contrastive, softmax_then_log, experts, counts, pixels, quantiles,
    target_network, two_optimizers, sum_with_its_rate, masked_labels, missing_targets, zero_head,
    adversaries,
]  # fmt: skip


def first(diagnosis: Any) -> str:
    if not diagnosis.findings:
        return "healthy"
    finding = diagnosis.findings[0]
    return f"{finding.kind}/{getattr(finding, 'cause', None)}: {finding.message}"[:200]


def examine(training: Callable[[Watch], Result]) -> tuple[bool, str]:
    """Say whether vegrad is silent about a training, and what it says."""
    import vegrad.torch as vt

    try:
        torch.manual_seed(0)
        monitor, _, trained = training(vt.Monitor)
        said = {"monitor": first(monitor.report())}
        if trained is not None:
            torch.manual_seed(0)
            said["diagnose, trained"] = first(vt.diagnose(*trained))
            model = trained[0]
            for module in model.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            said["diagnose, fresh"] = first(vt.diagnose(*trained))
    except Exception as error:  # a crash is a result
        return False, f"CRASH {type(error).__name__}: {error}"[:200]
    return set(said.values()) == {"healthy"}, "; ".join(f"{k}: {v}" for k, v in said.items())


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    chosen = [one for one in TRAININGS if re.search(wanted, one.__name__)]
    loud = 0
    for training in chosen:
        if "--truth" in sys.argv:
            torch.manual_seed(0)
            left = training(lambda model: None)[1]
            quiet, words = left < ENOUGH, f"error {left:.3f}"
        else:
            quiet, words = examine(training)
        loud += not quiet
        print(f"{'' if quiet else 'NOT SO '}{training.__name__}: {words}", flush=True)
    print(f"{loud} of {len(chosen)} not as they should be")
    return 1 if loud else 0


if __name__ == "__main__":
    sys.exit(main())
