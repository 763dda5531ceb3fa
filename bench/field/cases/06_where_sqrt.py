"""pytorch#187297, #108618: where(x > 0, sqrt(x), x) has the right value and a NaN gradient.

https://github.com/pytorch/pytorch/issues/187297
https://github.com/pytorch/pytorch/issues/108618
"""

import torch
from _data import digits, wrong
from torch import nn

GOAL = 0.2
STEPS = 200


class HalfRoot(nn.Module):
    def __init__(self, safe):
        super().__init__()
        self.safe = safe

    def forward(self, x):
        inside = torch.where(x > 0, x, torch.ones_like(x)) if self.safe else x
        return torch.where(x > 0, torch.sqrt(inside), x)


def make(safe):
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(
        nn.Linear(64, 64), HalfRoot(safe), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return model, nn.CrossEntropyLoss(), x, y


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    _, _, x, y = fixed()
    return wrong(model(x), y)
