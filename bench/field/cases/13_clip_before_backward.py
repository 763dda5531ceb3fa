"""FAMO#4: the gradients are clipped before backward() has made them.

https://github.com/Cranial-XIX/FAMO/issues/4
"""

import torch
from _data import digits, mlp, wrong
from torch import nn

GOAL = 0.1


def run(monitor_factory, fixed=False):
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    monitor, losses = monitor_factory(model), []
    for _ in range(200):
        index = torch.randint(0, 512, (16,))
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        if not fixed:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        loss.backward()
        if fixed:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def error(model):
    x, y = digits()
    return wrong(model(x), y)
