"""Truxify PR#11885, rlhf-book#125: the minus is missing: the loss is climbed down without end.

https://github.com/KanishJebaMathewM/Truxify/pull/11885
https://github.com/natolambert/rlhf-book/issues/125
"""

import torch
from _data import adam, digits, mlp, wrong

GOAL = 0.1
STEPS = 200


def likelihood(sign):
    return lambda z, y: sign * z.log_softmax(1).gather(1, y[:, None]).mean()


def make(sign):
    torch.manual_seed(0)
    return mlp(64, 64, 10), likelihood(sign), *digits(), adam(3e-3)


def sick():
    return make(1)


def fixed():
    return make(-1)


def error(model):
    x, y = digits()
    return wrong(model(x), y)
