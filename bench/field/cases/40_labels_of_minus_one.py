"""CausalDiscoveryToolbox#12: labels of -1 and 1 go into a binary cross-entropy.

https://github.com/FenTechSolutions/CausalDiscoveryToolbox/issues/12
"""

import torch
from _data import adam, digits, mlp
from torch import nn

GOAL = 0.1
STEPS = 300


def make(low):
    torch.manual_seed(0)
    x, y = digits()
    target = torch.where(y >= 5, 1.0, float(low))
    model = nn.Sequential(*mlp(64, 32, 1), nn.Flatten(0))
    return model, nn.BCEWithLogitsLoss(), x, target, adam(3e-3)


def sick():
    return make(-1)


def fixed():
    return make(0)


def error(model):
    """Distance from what the labels ask for: a probability above 1/2 for the upper five."""
    x, y = digits()
    outputs = model(x)
    away = ((outputs > 0) != (y >= 5)).float().mean()
    return max(away.item(), 1.0 if outputs.abs().median() > 60 else 0.0)
