"""pytorch#715, #59925: layers kept in a plain Python list are in nobody's parameters().

https://github.com/pytorch/pytorch/issues/715
https://github.com/pytorch/pytorch/issues/59925
"""

import torch
from _data import adam, digits, wrong
from torch import nn

GOAL = 0.2
STEPS = 300


class Net(nn.Module):
    def __init__(self, container):
        super().__init__()
        self.hidden = container([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)])
        self.classifier = nn.Linear(4, 10)

    def forward(self, x):
        for layer in self.hidden:
            x = layer(x).tanh()
        return self.classifier(x)


def make(container):
    torch.manual_seed(0)
    x, y = digits()
    return Net(container), nn.CrossEntropyLoss(), x, y, adam(3e-3)


def sick():
    return make(list)


def fixed():
    return make(nn.ModuleList)


def error(model):
    x, y = digits()
    return wrong(model(x), y)
