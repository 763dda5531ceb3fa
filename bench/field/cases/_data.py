"""Data of the field cases, and how well a model has learned them."""

from itertools import pairwise

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn


def digits(n=512):
    data = load_digits()
    x = torch.tensor(data.data[:n], dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target[:n])


def diabetes():
    """Standardized columns (442, 10) and the disease's progression (442,) in its own unit."""
    data = load_diabetes()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(data.target, dtype=torch.float32)


def mlp(*sizes, activation=nn.ReLU):
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def adam(rate=1e-3):
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def sgd(rate=0.1, **settings):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **settings)


def wrong(output, target):
    """Share of rows whose largest output is not the target's."""
    return 1.0 if output.isnan().any() else (output.argmax(1) != target).float().mean().item()


def unexplained(output, target):
    """Mean square error beside the target's variance: 1 is what a constant reaches."""
    share = (output.reshape(-1) - target.reshape(-1)).square().mean() / target.var()
    return share.item() if share.isfinite() else float("inf")
