"""pytorch#2534, keras-io#910: WGAN-GP takes the norm of a critic's gradient, which may be 0.

https://github.com/pytorch/pytorch/issues/2534
https://github.com/keras-team/keras-io/issues/910
"""

import torch
from _data import digits, mlp

GOAL = 0.9


def run(monitor_factory, fixed=False):
    torch.manual_seed(0)
    real = digits()[0][:256]
    real = real - real.min()
    fake = real[:, torch.randperm(64)] + 0.3
    real[::64] = fake[::64] = 0  # blank frames: no ReLU of the critic answers
    critic = mlp(64, 64, 64, 1)
    with torch.no_grad():
        for parameter in critic.parameters():
            if parameter.ndim == 1:
                parameter.copy_(-parameter.abs())
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    monitor, losses = monitor_factory(critic), []
    for _ in range(100):
        index = torch.randint(0, 256, (64,))
        index[0] = 0
        between = torch.lerp(real[index], fake[index], torch.rand(64, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        size = (slope.square().sum(1) + (1e-12 if fixed else 0)).sqrt()
        loss = critic(fake[index]).mean() - critic(real[index]).mean()
        loss = loss + 10 * (size - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def error(critic):
    """1 - (how much better real ones do), by the spread of the scores."""
    real = digits()[0][:256]
    real = real - real.min()
    torch.manual_seed(0)
    fake = real[:, torch.randperm(64)] + 0.3
    gap = (critic(real).mean() - critic(fake).mean()) / critic(real).std()
    return (1 - gap).item() if gap.isfinite() else 9.0
