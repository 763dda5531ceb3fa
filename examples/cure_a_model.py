"""The cure of a PyTorch model that does not train: the smallest change that works, with a proof.

Changes are tried on copies, the smallest first; each is judged by one pass and, if that looks
promising, by a short training. What comes out is a patch: code for your own program.

    pip install "vegrad[cli,torch]" && python cure_a_model.py
"""

import torch
import vegrad.torch
from torch import nn
from vegrad import datasets


def make_model(depth: int = 10, width: int = 64) -> nn.Sequential:
    """Return a deep sigmoid network, whose first layers no gradient reaches."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(64, width), nn.Sigmoid()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def accuracy(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> float:
    """Return the share of rows that a model gets right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == target).float().mean())


def train(model: nn.Module, x: torch.Tensor, target: torch.Tensor, rate: float) -> None:
    """Take a hundred steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for rows in torch.randperm(len(x))[: 100 * 16].split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), target[rows]).backward()
        optimizer.step()


digits = datasets.load("digits")
x, target = torch.tensor(digits.x, dtype=torch.float32), torch.tensor(digits.y)

found = vegrad.torch.cure(make_model(), nn.functional.cross_entropy, x, target)
print(found)  # what was wrong, what was tried, the proof, and the change as code

rate = found.learning_rate or 1e-3
for name, model in (("as it was", make_model()), ("cured", found.model)):
    train(model, x, target, rate)
    print(f"{name:<10} {100 * accuracy(model, x, target):.0f} % right after 100 steps")
