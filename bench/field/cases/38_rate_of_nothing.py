"""Single-DGOD#21: "reducing the learning rate to 1e-5, but then it won't converge".

https://github.com/AmingWu/Single-DGOD/issues/21
"""

import torch
from _data import digits, mlp, sgd, wrong
from torch import nn

GOAL = 0.1
STEPS = 300


def make(rate):
    torch.manual_seed(0)
    return mlp(64, 64, 64, 10), nn.CrossEntropyLoss(), *digits(), sgd(rate)


def sick():
    return make(1e-5)


def fixed():
    return make(0.2)


def error(model):
    x, y = digits()
    return wrong(model(x), y)
