"""patrickloeber/pytorchTutorial#19 asks it: zero_grad() between backward() and step().

https://github.com/patrickloeber/pytorchTutorial/issues/19
"""

import torch
from _data import digits, mlp, wrong
from torch import nn

GOAL = 0.1


def run(monitor_factory, fixed=False):
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor, losses = monitor_factory(model), []
    for _ in range(200):
        index = torch.randint(0, 512, (32,))
        if fixed:
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        loss.backward()
        if not fixed:
            optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def error(model):
    x, y = digits()
    return wrong(model(x), y)
