"""keras#2586, #1061: the likelihood of a mixture underflows to 0, and its log is -inf.

https://github.com/keras-team/keras/issues/2586
https://github.com/keras-team/keras/issues/1061
"""

import math

import torch
from _data import adam, mlp

GOAL = 4.0
STEPS = 300
PARTS = 5


def density(stable):
    def loss(output, y):
        weight, mean, size = output.chunk(3, 1)
        size = size.exp()
        exponent = -0.5 * ((y - mean) / size).square() - size.log() - 0.5 * math.log(2 * math.pi)
        if stable:
            return -(weight.log_softmax(1) + exponent).logsumexp(1).mean()
        return -(weight.softmax(1) * exponent.exp()).sum(1).log().mean()

    return loss


def make(stable):
    torch.manual_seed(0)
    y = torch.rand(512, 1) * 20 - 10
    x = 0.7 * y + 7 * torch.sin(0.75 * y) + 0.2 * torch.randn(512, 1)
    return mlp(1, 64, 3 * PARTS), density(stable), x / 5, 4 * y, adam(3e-3)


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    _, loss_fn, x, y, _ = fixed()
    loss = loss_fn(model(x), y)
    return loss.item() - 2 if loss.isfinite() else 99.0
