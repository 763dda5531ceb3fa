"""openillumi.com: a sigmoid net learns circles, and nothing of heart rates around 100.

https://openillumi.com/en/en-pytorch-performance-fix-standardization
"""

import torch
from torch import nn

GOAL = 0.1
STEPS = 2000


def make(scaled):
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    y = (x.norm(dim=1) > 1.2).float()[:, None]
    x = torch.tensor([110.0, 950.0]) + torch.tensor([15.0, 90.0]) * x
    if scaled:
        x = (x - x.mean(0)) / x.std(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Sigmoid(), nn.Linear(16, 1), nn.Sigmoid())
    return model, nn.BCELoss(), x, y, lambda p: torch.optim.Adam(p, lr=1e-2)


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    return min(
        ((model(x) > 0.5) != (y > 0.5)).float().mean().item() for _, _, x, y, _ in (sick(), fixed())
    )
