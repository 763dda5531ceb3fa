"""pytorch#6765: (mean of xᵖ)^(1/p) pooling where all of a channel's inputs are 0.

https://github.com/pytorch/pytorch/issues/6765
"""

import torch
from _data import digits, wrong
from torch import nn

GOAL = 0.25
STEPS = 300


class GeneralizedMean(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return (x.square() + self.eps).pow(1.5).mean((2, 3)).pow(1 / 3)


def make(eps):
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 48, 5, padding=2, bias=False),
        GeneralizedMean(eps),
        nn.Linear(48, 10),
    )
    x[77] = 0  # a picture of nothing
    return model, nn.CrossEntropyLoss(), x, y, lambda p: torch.optim.Adam(p, lr=5e-3)


def sick():
    return make(0.0)


def fixed():
    return make(1e-6)


def error(model):
    _, _, x, y, _ = fixed()
    return wrong(model(x), y)
