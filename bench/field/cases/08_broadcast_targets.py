"""pytorch#16045, sktime#10931: outputs (N, 1) and targets (N,) are compared all with all.

https://github.com/pytorch/pytorch/issues/16045
https://github.com/sktime/sktime/issues/10931
"""

import torch
from _data import adam, diabetes, mlp, unexplained
from torch import nn

GOAL = 0.6
STEPS = 400


def make(columns):
    torch.manual_seed(0)
    x, y = diabetes()
    y = (y - y.mean()) / y.std()
    model = mlp(10, 32, 32, 1)
    return model, nn.MSELoss(), x, y[:, None] if columns else y, adam(3e-3)


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    _, _, x, y, _ = fixed()
    return unexplained(model(x), y)
