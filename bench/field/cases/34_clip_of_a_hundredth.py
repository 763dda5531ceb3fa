"""senpai PR#978, detr#198: every batch is clipped to a small share of its gradient.

https://github.com/wandb/senpai/pull/978
https://github.com/facebookresearch/detr/issues/198
"""

import torch
from _data import digits, mlp, wrong
from torch import nn

GOAL = 0.1


def run(monitor_factory, fixed=False):
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor, losses = monitor_factory(model), []
    for _ in range(300):
        index = torch.randint(0, 512, (32,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0 if fixed else 0.002)
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def error(model):
    x, y = digits()
    return wrong(model(x), y)
