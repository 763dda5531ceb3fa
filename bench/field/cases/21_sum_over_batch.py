"""sparse_autoencoder#63: the loss is a sum over the batch, the rate is one for a mean.

https://github.com/ai-safety-foundation/sparse_autoencoder/issues/63
"""

import torch
from _data import digits, mlp, sgd, wrong
from torch import nn

GOAL = 0.1
STEPS = 200
BATCH = 256


def make(reduction):
    torch.manual_seed(0)
    x, y = digits()
    return mlp(64, 64, 64, 10), nn.CrossEntropyLoss(reduction=reduction), x, y, sgd(0.1)


def sick():
    return make("sum")


def fixed():
    return make("mean")


def error(model):
    x, y = digits()
    return wrong(model(x), y)
