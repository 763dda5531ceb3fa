"""synthcity#331, WorldModels#9: exp() of a log-variance that nothing bounds overflows.

https://github.com/vanderschaarlab/synthcity/issues/331
https://github.com/AppliedDataSciencePartners/WorldModels/issues/9
"""

import torch
from _data import adam, diabetes, mlp
from torch import nn

GOAL = 1.3
STEPS = 400


class VAE(nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.encode, self.decode, self.limit = mlp(10, 64, 16), mlp(8, 64, 10), limit

    def forward(self, x):
        mean, logvar = self.encode(x).chunk(2, 1)
        if self.limit:
            mean, logvar = mean.clamp(-10, 10), self.limit * torch.tanh(logvar / self.limit)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        kl = 0.5 * (logvar.exp() + mean.square() - 1 - logvar).sum(1, keepdim=True)
        return torch.cat([self.decode(z), kl], 1)


def elbo(output, x):
    return ((output[:, :10] - x).square().sum(1) + output[:, 10]).mean()


def make(scale, limit=None):
    torch.manual_seed(0)
    x = diabetes()[0] * scale
    return VAE(limit), elbo, x, x, adam(1e-3)


def sick():
    return make(1000.0)  # columns in their raw unit


def fixed():
    return make(1.0, 5.0)


def error(model):
    x = diabetes()[0]
    if model.limit is None:
        x = x * 1000
    loss = elbo(model(x), x) / x.square().sum(1).mean()
    return loss.item() if loss.isfinite() else 99.0
