"""stackoverflow 52800582: y = x⁴ for x in -100 … 100: inputs in the hundreds, targets of 10⁸.

https://stackoverflow.com/questions/52800582
"""

import torch
from _data import adam, unexplained
from torch import nn

GOAL = 0.1
STEPS = 1500


def make(scaled):
    torch.manual_seed(0)
    x = torch.linspace(-100, 100, 256)[:, None]
    y = x**4
    if scaled:
        x, y = x / x.std(), (y - y.mean()) / y.std()
    model = nn.Sequential(
        nn.Linear(1, 50), nn.Sigmoid(), nn.Linear(50, 50), nn.ELU(), nn.Linear(50, 1)
    )
    return model, nn.MSELoss(), x, y, adam(3e-3)


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    return min(unexplained(model(x), y) for _, _, x, y, _ in (sick(), fixed()))
