"""nni#4521, pytorch#14467: layers are exchanged after the optimizer has taken the parameters.

https://github.com/microsoft/nni/issues/4521
https://github.com/pytorch/pytorch/issues/14467
"""

import torch
from _data import digits, mlp, wrong
from torch import nn

GOAL = 0.1


def run(monitor_factory, fixed=False):
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(mlp(64, 64, 8), nn.ReLU(), nn.Linear(8, 100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model[2] = nn.Linear(8, 10)  # ten classes, not a hundred
    model[0][2] = nn.Linear(64, 8)  # pruned, then rebuilt
    if fixed:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor, losses = monitor_factory(model), []
    for _ in range(400):
        index = torch.randint(0, 512, (32,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def error(model):
    x, y = digits()
    return wrong(model(x), y)
