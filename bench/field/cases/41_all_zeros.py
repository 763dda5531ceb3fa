"""goro#4: every weight and bias of a deep net begins at 0.

https://github.com/aunum/goro/issues/4
"""

import torch
from _data import adam, digits, mlp, wrong
from torch import nn

GOAL = 0.1
STEPS = 300


def make(zero):
    torch.manual_seed(0)
    model = mlp(64, 64, 32, 10)
    if zero:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return model, nn.CrossEntropyLoss(), *digits(), adam(3e-3)


def sick():
    return make(True)


def fixed():
    return make(False)


def error(model):
    x, y = digits()
    return wrong(model(x), y)
