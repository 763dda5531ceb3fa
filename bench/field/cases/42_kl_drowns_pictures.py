"""pytorch/examples PR#226, keras PR#3383, WorldModels#12: the KL term drowns the reconstruction.

https://github.com/pytorch/examples/pull/226
https://github.com/keras-team/keras/pull/3383
"""

import torch
from _data import adam, digits, mlp
from torch import nn

GOAL = 0.6
STEPS = 600


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x):
        mean, logvar = self.encode(x).chunk(2, 1)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        kl = 0.5 * (logvar.exp() + mean.square() - 1 - logvar)
        return torch.cat([self.decode(z), kl], 1)


def elbo(per_pixel):
    def loss(output, x):
        picture, kl = output.split([64, 8], 1)
        away = nn.functional.mse_loss(picture, x, reduction="mean" if per_pixel else "sum")
        return away + kl.sum() if per_pixel else (away + kl.sum()) / len(x)

    return loss


def make(per_pixel):
    torch.manual_seed(0)
    x, _ = digits()
    return VAE(), elbo(per_pixel), x, x, adam(2e-3)


def sick():
    return make(True)


def fixed():
    return make(False)


def error(model):
    """Share of the pictures' variance that their codes leave unexplained."""
    x, _ = digits()
    picture = model(x)[:, :64]
    return ((picture - x).square().mean() / (x - x.mean(0)).square().mean()).item()
