"""deep-q-rank#4, Deep-Q-Learning-Paper-To-Code#9, ReAgent#189: Q-learning toward its own output.

https://github.com/abhi1345/deep-q-rank/issues/4
https://github.com/philtabor/Deep-Q-Learning-Paper-To-Code/issues/9
https://github.com/facebookresearch/ReAgent/issues/189
"""

import copy

import torch
from _data import mlp
from torch import nn

GOAL = 0.5
STATES = 12


def transitions():
    """A walk on a line: reward 1 at its right end, which ends it."""
    torch.manual_seed(0)
    state, action = torch.randint(0, STATES, (512,)), torch.randint(0, 2, (512,))
    after = (state + 2 * action - 1).clamp(0, STATES - 1)
    done = (after == STATES - 1).float()
    return state, action, after, done


def features(state):
    grid = torch.linspace(0, 1, STATES)[state]
    return torch.stack([grid, grid.square(), torch.ones_like(grid)], 1) * 3


def run(monitor_factory, fixed=False):
    state, action, after, done = transitions()
    model = mlp(3, 64, 64, 2)
    frozen = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 if fixed else 0.05, momentum=0.9)
    monitor, losses = monitor_factory(model), []
    for step in range(600):
        index = torch.randint(0, 512, (32,))
        if fixed and step % 50 == 0:
            frozen.load_state_dict(model.state_dict())
        following = (frozen if fixed else model)(features(after[index])).max(1).values
        target = done[index] + 0.99 * (1 - done[index]) * following
        value = model(features(state[index])).gather(1, action[index, None])[:, 0]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(value, target.detach())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def error(model):
    """Mean distance of the values from the true ones."""
    state = torch.arange(STATES - 1)
    true = 0.99 ** (STATES - 2 - state).float()
    distance = (model(features(state))[:, 1] - true).abs().mean()
    return distance.item() if distance.isfinite() else 99.0
