"""A softmax over a single output unit is 1, whatever the weights (stats.stackexchange, and more).

https://stats.stackexchange.com/revisions/2bda6552-783b-4fb7-ba2b-a03d2266e69b/view-source
https://geek-tips.imtqy.com/articles/557592/index.html
"""

import torch
from _data import mlp
from torch import nn

GOAL = 0.1
STEPS = 300


def make(output):
    torch.manual_seed(0)
    x = (torch.rand(300, 3) > 0.5).float()
    y = (x.sum(1, keepdim=True) > 1).float()
    model = nn.Sequential(*mlp(3, 10, 1), output)
    return model, nn.BCELoss(), x, y, lambda p: torch.optim.RMSprop(p, lr=1e-2)


def sick():
    return make(nn.Softmax(dim=1))


def fixed():
    return make(nn.Sigmoid())


def error(model):
    _, _, x, y, _ = fixed()
    return ((model(x) > 0.5) != (y > 0.5)).float().mean().item()
