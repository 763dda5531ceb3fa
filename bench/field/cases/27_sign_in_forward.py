"""SR-TOD#5: torch.sign in the forward pass: its derivative is 0 everywhere, with no error.

https://github.com/Hiyuur/SR-TOD/issues/5
"""

import torch
from _data import adam, digits, wrong
from torch import nn

GOAL = 0.1
STEPS = 400


class Mask(nn.Module):
    def __init__(self, hard):
        super().__init__()
        self.hard = hard

    def forward(self, x):
        return 0.5 * torch.sign(x) + 0.5 if self.hard else torch.sigmoid(4 * x)


def make(hard):
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 12), Mask(hard), nn.Linear(12, 10))
    return model, nn.CrossEntropyLoss(), x, y, adam(1e-2)


def sick():
    return make(True)


def fixed():
    return make(False)


def error(model):
    x, y = digits()
    return wrong(model(x), y)
