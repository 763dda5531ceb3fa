"""torchMoji#21: the model returns outputs.data; loss = Variable(loss, requires_grad=True) hides it.

https://github.com/huggingface/torchMoji/issues/21
"""

import torch
from _data import digits, mlp, wrong
from torch import nn

GOAL = 0.1


class Net(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.net, self.cut = mlp(64, 64, 10), cut

    def forward(self, x):
        output = self.net(x)
        return output.data if self.cut else output


def run(monitor_factory, fixed=False):
    torch.manual_seed(0)
    x, y = digits()
    model = Net(not fixed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor, losses = monitor_factory(model), []
    for _ in range(200):
        index = torch.randint(0, 512, (32,))
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        if not fixed:
            loss = torch.autograd.Variable(loss, requires_grad=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return monitor, losses


def sick():
    torch.manual_seed(0)
    x, y = digits()

    def loss_fn(output, target):
        loss = nn.functional.cross_entropy(output, target)
        return loss if loss.requires_grad else loss.requires_grad_()

    return Net(True), loss_fn, x, y


def fixed():
    torch.manual_seed(0)
    return Net(False), nn.CrossEntropyLoss(), *digits()


def error(model):
    x, y = digits()
    return wrong(model(x), y)
