"""daisyRec PR#15, focal-loss-pytorch PR#5: a Sigmoid before BCEWithLogitsLoss.

https://github.com/yudi-mars/daisyRec/pull/15
https://github.com/itakurah/focal-loss-pytorch/pull/5
"""

import torch
from _data import digits, mlp, sgd
from torch import nn

GOAL = 0.06
STEPS = 400


def make(*output):
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(*mlp(64, 32, 1), *output, nn.Flatten(0))
    return model, nn.BCEWithLogitsLoss(), x, (y == 8).float(), sgd(0.1)


def sick():
    return make(nn.Sigmoid())


def fixed():
    return make()


def error(model):
    """Share of wrong ones by the loss's own rule: a logit above 0 says yes."""
    x, y = digits()
    return ((model(x) > 0) != (y == 8)).float().mean().item()
