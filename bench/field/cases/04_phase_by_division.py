"""tensorflow#6095, e3nn#112: an angle as atan(y / x), where both are 0.

https://github.com/tensorflow/tensorflow/issues/6095
https://github.com/e3nn/e3nn/issues/112
"""

import torch
from _data import digits, wrong
from torch import nn

GOAL = 0.2
STEPS = 200


class Phases(nn.Module):
    """Angle and size of complex features; what is silent in a picture has no angle."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps
        self.pair = nn.Linear(64, 64, bias=False)
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        real, imaginary = self.pair(x).chunk(2, 1)
        angle = torch.atan(imaginary / (real + self.eps))
        return self.head(torch.cat([angle, real], 1))


def make(eps):
    torch.manual_seed(0)
    x, y = digits()
    x[40] = 0  # an empty frame
    return Phases(eps), nn.CrossEntropyLoss(), x, y


def sick():
    return make(0.0)


def fixed():
    return make(1e-6)


def error(model):
    _, _, x, y = fixed()
    return wrong(model(x), y)
