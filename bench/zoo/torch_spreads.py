"""Check the spreads that vegrad.torch.diagnose states where theory has no formulas.

    python bench/zoo/torch_spreads.py               30 fresh networks of each of nine kinds
    python bench/zoo/torch_spreads.py --networks 5  fewer

Each network has weights, data, depth and width of its own; the expected flow comes from eight
drawings of other weights. The table has the share of the gains within one and within two stated
spreads, and the mean and standard deviation of their deviations in spreads. Good spreads would give
95 % within two and a mean of 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import vegrad.torch
from torch import Tensor, nn

from zoo.table import SPREADS, markdown, spread_row

ROWS, CLASSES = 32, 10


class Skip(nn.Module):
    """x + branch(x), with something before the branch and after the sum."""

    def __init__(self, branch: list[nn.Module], after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.after = nn.Sequential(*branch), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute a tensor of the shape of x."""
        return self.after(x + self.branch(x))


def conv(inputs: int, outputs: int, stride: int = 1, he: bool = True) -> nn.Module:
    """Make a 3×3 convolution with He's weights and no biases, or with PyTorch's defaults."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not he)
    if he:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def images(layers: list[nn.Module], width: int) -> nn.Module:
    """Put the layers between a convolution of three channels and a head for the classes."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    return nn.Sequential(conv(3, width), nn.ReLU(), *layers, *head)


def plain(depth: int, width: int) -> nn.Module:
    """Convolutions with ReLU."""
    return images([m for _ in range(depth) for m in (conv(width, width), nn.ReLU())], width)


def pooled(depth: int, width: int) -> nn.Module:
    """Convolutions with PyTorch's weights, and a pooling."""
    layers = [m for _ in range(depth) for m in (conv(width, width, he=False), nn.ReLU())]
    layers.insert(depth // 2 * 2, nn.MaxPool2d(2))
    return images(layers, width)


def batch_norm(depth: int, width: int) -> nn.Module:
    """Convolutions with BatchNorm."""
    layers = [
        m for _ in range(depth) for m in (conv(width, width), nn.BatchNorm2d(width), nn.ReLU())
    ]
    return images(layers, width)


def group_norm(depth: int, width: int) -> nn.Module:
    """Convolutions with GroupNorm and SiLU, one with a stride."""
    layers: list[nn.Module] = []
    for n in range(depth):
        stride = 2 if n == depth // 2 else 1
        layers += [conv(width, width, stride), nn.GroupNorm(4, width), nn.SiLU()]
    return images(layers, width)


def residual(depth: int, width: int) -> nn.Module:
    """Convolutions with skip connections and no normalization."""
    return images([Skip([nn.ReLU(), conv(width, width)]) for _ in range(depth)], width)


def resnet(depth: int, width: int) -> nn.Module:
    """A ResNet's blocks, with BatchNorm."""
    blocks = []
    for _ in range(depth // 2):
        first = [conv(width, width), nn.BatchNorm2d(width), nn.ReLU()]
        blocks.append(Skip([*first, conv(width, width), nn.BatchNorm2d(width)], nn.ReLU()))
    return images(blocks, width)


def rows(layers: list[nn.Module], width: int) -> nn.Module:
    """Put the layers between two linear ones."""
    return nn.Sequential(nn.Linear(20, width), *layers, nn.Linear(width, CLASSES))


def linear_batch_norm(depth: int, width: int) -> nn.Module:
    """Linear layers with BatchNorm."""
    layers = [
        m for _ in range(depth) for m in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
    ]
    return rows(layers, width)


def feedforward(width: int) -> list[nn.Module]:
    """Make a branch that is twice as wide inside."""
    return [nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)]


def norm_before(depth: int, width: int) -> nn.Module:
    """Blocks that begin with a LayerNorm."""
    blocks = [Skip([nn.LayerNorm(width), *feedforward(width)]) for _ in range(depth // 2)]
    return rows(blocks, width)


def norm_after(depth: int, width: int) -> nn.Module:
    """Blocks with a LayerNorm of the sum."""
    blocks = [Skip(feedforward(width), nn.LayerNorm(width)) for _ in range(depth // 2)]
    return rows(blocks, width)


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "convolutions": plain,
    "with pooling": pooled,
    "with BatchNorm": batch_norm,
    "with GroupNorm": group_norm,
    "with skip connections": residual,
    "ResNet's blocks": resnet,
    "linear, BatchNorm": linear_batch_norm,
    "LayerNorm before": norm_before,
    "LayerNorm after": norm_after,
}


def deviations(kind: str, seed: int) -> np.ndarray:
    """Compute how far every gain of a fresh network lies from its expectation, in spreads."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = KINDS[kind](int(random.integers(4, 13)), int(random.choice([16, 32, 64])))
    x = torch.randn(ROWS, 20) if isinstance(model[0], nn.Linear) else torch.randn(ROWS, 3, 12, 12)
    found = vegrad.torch.diagnose(
        model, nn.CrossEntropyLoss(), x, torch.randint(0, CLASSES, (ROWS,)), resamples=1, seed=seed
    )
    assert found.drawn
    return np.asarray(found.expected.deviations(found.flow))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=30, help="of each kind (30)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, list[np.ndarray]] = {}
    rows = []
    for kind in KINDS:
        found[kind] = [deviations(kind, seed) for seed in range(options.networks)]
        rows.append(spread_row(kind, found[kind]))
        print(*rows[-1], file=sys.stderr, flush=True)
    rows.append(spread_row("all", [one for several in found.values() for one in several]))
    print(markdown(("kind", *SPREADS), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
