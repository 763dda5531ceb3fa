"""SimSiam#50, #39, #6: two views of a picture are pulled together and nothing holds them apart.

https://github.com/PatrickHua/SimSiam/issues/50
https://github.com/PatrickHua/SimSiam/issues/39
"""

import torch
from _data import adam, digits, mlp
from torch import nn

GOAL = 0.5
STEPS = 300
BATCH = 128


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = mlp(64, 64, 32)

    def forward(self, a, b):
        return torch.stack([self.encode(a), self.encode(b)], 1)


def alike(output, target):
    return -nn.functional.cosine_similarity(output[:, 0], output[:, 1]).mean()


def contrast(output, target):
    a, b = nn.functional.normalize(output, dim=2).unbind(1)
    return nn.functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


def make(loss_fn):
    torch.manual_seed(0)
    x, y = digits()
    views = tuple(x * (torch.rand(512, 64) > 0.2) for _ in range(2))
    return Twin(), loss_fn, views, y, adam(3e-3)


def sick():
    return make(alike)


def fixed():
    return make(contrast)


def error(model):
    """How alike two different pictures are to the model (mean cosine)."""
    _, _, (a, _), _, _ = fixed()
    z = nn.functional.normalize(model.encode(a), dim=1)
    return (z @ z.T).mean().item()
