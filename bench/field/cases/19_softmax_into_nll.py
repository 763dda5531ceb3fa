"""Text-Classification-Models-Pytorch#9, ACGAN-PyTorch PR#4: softmax, not its log, into NLLLoss.

https://github.com/AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/9
https://github.com/clvrai/ACGAN-PyTorch/pull/4
"""

import torch
from _data import digits, mlp, sgd, wrong
from torch import nn

GOAL = 0.08
STEPS = 300


def make(output):
    torch.manual_seed(0)
    x, y = digits()
    return nn.Sequential(*mlp(64, 64, 10), output), nn.NLLLoss(), x, y, sgd(0.1)


def sick():
    return make(nn.Softmax(dim=1))


def fixed():
    return make(nn.LogSoftmax(dim=1))


def error(model):
    x, y = digits()
    return wrong(model(x), y)
