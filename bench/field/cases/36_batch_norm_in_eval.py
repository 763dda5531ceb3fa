"""pytorch#4741: a BatchNorm in eval mode whose running statistics are not the data's.

https://github.com/pytorch/pytorch/issues/4741
"""

import torch
from _data import digits, wrong
from torch import nn

GOAL = 0.1
STEPS = 200


def make(mode):
    torch.manual_seed(0)
    x, y = digits()
    x = 40 * x + 300  # as the camera gives it
    model = nn.Sequential(
        nn.BatchNorm1d(64), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return model.train(mode), nn.CrossEntropyLoss(), x, y, lambda p: torch.optim.Adam(p, lr=1e-3)


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    _, _, x, y, _ = fixed()
    return wrong(model(x), y)
