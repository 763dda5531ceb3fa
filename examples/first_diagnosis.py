"""The first diagnosis of a PyTorch model: what is wrong, what to do, and whether it helped.

One forward and backward pass of one batch is enough; nothing is trained, and the model stays as it
was. Here it is twelve layers for handwritten digits, one of which somebody has drawn far too small.

    pip install "vegrad[cli,torch]" && python first_diagnosis.py
"""

from itertools import pairwise

import torch
import vegrad.torch
from torch import nn
from vegrad import datasets

DEPTH, WIDTH = 12, 64


def make_model() -> nn.Sequential:
    """Return a chain of Linear and ReLU, drawn as He et al. advise, but for one layer."""
    torch.manual_seed(0)
    sizes = [64, *[WIDTH] * (DEPTH - 1), 10]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    nn.init.normal_(layers[10].weight, std=1e-4)
    return nn.Sequential(*layers[:-1])


digits = datasets.load("digits")
x = torch.tensor(digits.x[:256], dtype=torch.float32)
target = torch.tensor(digits.y[:256])
model = make_model()

found = vegrad.torch.diagnose(model, nn.functional.cross_entropy, x, target)
print(found)  # the layers as a table, the verdict, and what to do

# The same as data, for a program: kinds, places, evidence, causes.
for finding in found.findings:
    places = ", ".join(site.name for site in finding.sites)
    print(f"\n{finding.kind} ({finding.cause}) at {places}: {dict(finding.evidence)}")

changed = found.apply(model)  # does what the first finding advises, in place
print("\nchanged in place:", changed)
print(vegrad.torch.diagnose(model, nn.functional.cross_entropy, x, target).summary)
