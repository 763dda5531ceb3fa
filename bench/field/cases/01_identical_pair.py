"""keras#9097, siamese-triplet#18: sqrt(sum((a - b)²)) of a Siamese pair that is twice the same.

https://github.com/keras-team/keras/issues/9097
https://github.com/adambielski/siamese-triplet/issues/18
"""

import torch
from _data import digits, mlp
from torch import nn

GOAL = 0.35
STEPS = 300


class Siamese(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.embed, self.eps = mlp(64, 64, 16), eps

    def forward(self, a, b):
        return ((self.embed(a) - self.embed(b)).square().sum(1) + self.eps).sqrt()


def contrastive(distance, different):
    near, far = distance.square(), (1 - distance).clamp(min=0).square()
    return torch.where(different > 0, far, near).mean()


def make(eps):
    torch.manual_seed(0)
    x, y = digits()
    order = torch.randperm(512)
    order[::40] = torch.arange(512)[::40]  # the sampler draws a picture with itself
    different = (y != y[order]).float()
    return Siamese(eps), contrastive, (x, x[order]), different


def sick():
    return make(0.0)


def fixed():
    return make(1e-6)


def error(model):
    _, _, pair, different = fixed()
    distance = model(*pair)
    same, other = distance[different == 0].mean(), distance[different == 1].mean()
    return (same / other).item() if same < other else 1.0
