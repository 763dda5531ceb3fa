"""RotationContinuity#1, #11: the angle between two rotations is acos(clamp(cos, -1, 1)).

https://github.com/papagina/RotationContinuity/issues/11
"""

import torch
from _data import adam, mlp
from torch import nn

GOAL = 0.2
STEPS = 300


class Direction(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(3, 64, 64, 3)

    def forward(self, x):
        return nn.functional.normalize(x + 0.5 * self.net(x), dim=1)


def geodesic(limit):
    return lambda a, b: torch.acos((a * b).sum(1).clamp(-limit, limit)).mean()


def make(limit):
    torch.manual_seed(0)
    x = nn.functional.normalize(torch.randn(256, 3), dim=1)
    turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    target = nn.functional.normalize(x @ turn.T, dim=1)
    model = Direction()
    with torch.no_grad():  # some of the labels came from this very model
        target[:8] = model(x[:8])
    return model, geodesic(limit), x, target, adam(3e-3)


def sick():
    return make(1.0)


def fixed():
    return make(1 - 1e-6)


def error(model):
    _, loss_fn, x, target, _ = fixed()
    loss = loss_fn(model(x[8:]), target[8:])
    return loss.item() if loss.isfinite() else 9.0
