"""A watch on a training loop, with an alarm that ends it before it wastes the night.

`Monitor` hooks into the model and its optimizer; the loop stays as it is. It tells of what is wrong
in the loop, the optimizer, the loss and the data, and where the first NaN came from. Here the
learning rate is far too high at first.

    pip install "vegrad[cli,torch]" && python monitor_a_loop.py
"""

import torch
from torch import nn
from vegrad import Finding, datasets
from vegrad.torch import Monitor

digits = datasets.load("digits")
x, target = torch.tensor(digits.x, dtype=torch.float32), torch.tensor(digits.y)


def train(rate: float, epochs: int = 5) -> Monitor:
    """Train a small network, until the first alarm."""
    alarms: list[Finding] = []

    def alarm(finding: Finding) -> None:
        """Tell what the monitor has found, once for each cause; it could as well send a mail."""
        alarms.append(finding)
        print(f"ALARM at step {monitor.steps}: {finding}")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    model.append(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    monitor = Monitor(model, on_finding=alarm)  # also "warn", "raise", "stop" or None
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), target[rows])
            loss.backward()
            optimizer.step()
            if alarms:
                return monitor
        print(f"epoch {epoch + 1}: loss {loss.item():.3g}")
    return monitor


monitor = train(rate=3.0)
print(f"\n{monitor.report()}\n")  # the modules as a table, the verdict, and what to do

monitor = train(rate=0.1)
norms = monitor.history.gradient_norm  # of each step, as an array
print(f"{monitor.steps} steps; the gradient's norm went from {norms[0]:.3g} to {norms[-1]:.3g}")
