"""How honest the spreads are that vegrad.torch.diagnose gives where theory has no formulas.

    python bench/torch_spreads.py               30 fresh networks each of nine kinds
    python bench/torch_spreads.py --networks 5  fewer

Each network has weights, data, depth and width of its own; what is expected comes from eight
drawings of other weights. How many of the gains lie within one and two stated spreads, and the mean
and standard deviation of what they lie off, in spreads. Right would be 95 % within two and a mean
of 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import vegrad.torch
from torch import Tensor, nn
from zoo_table import markdown

ROWS, CLASSES = 32, 10


class Skip(nn.Module):
    """x + branch(x), with something before the branch and after the sum."""

    def __init__(self, branch: list[nn.Module], after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.after = nn.Sequential(*branch), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        return self.after(x + self.branch(x))


def conv(inputs: int, outputs: int, stride: int = 1, he: bool = True) -> nn.Module:
    """3×3, with He's weights and no biases, or with PyTorch's."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not he)
    if he:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def images(layers: list[nn.Module], width: int) -> nn.Module:
    """From three channels to the classes."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    return nn.Sequential(conv(3, width), nn.ReLU(), *layers, *head)


def plain(depth: int, width: int) -> nn.Module:
    """Convolutions with ReLU."""
    return images([m for _ in range(depth) for m in (conv(width, width), nn.ReLU())], width)


def pooled(depth: int, width: int) -> nn.Module:
    """PyTorch's weights, and a pooling."""
    layers = [m for _ in range(depth) for m in (conv(width, width, he=False), nn.ReLU())]
    layers.insert(depth // 2 * 2, nn.MaxPool2d(2))
    return images(layers, width)


def batch_norm(depth: int, width: int) -> nn.Module:
    """Convolutions with BatchNorm."""
    layers = [m for _ in range(depth)
              for m in (conv(width, width), nn.BatchNorm2d(width), nn.ReLU())]  # fmt: skip
    return images(layers, width)


def group_norm(depth: int, width: int) -> nn.Module:
    """Convolutions with GroupNorm and SiLU, one with a stride."""
    layers = [m for n in range(depth) for m in (
        conv(width, width, 2 if n == depth // 2 else 1), nn.GroupNorm(4, width), nn.SiLU())
    ]  # fmt: skip
    return images(layers, width)


def residual(depth: int, width: int) -> nn.Module:
    """Convolutions with skip connections and no normalization."""
    return images([Skip([nn.ReLU(), conv(width, width)]) for _ in range(depth)], width)


def resnet(depth: int, width: int) -> nn.Module:
    """A ResNet's blocks, with BatchNorm."""
    blocks = [
        Skip([conv(width, width), nn.BatchNorm2d(width), nn.ReLU(),
              conv(width, width), nn.BatchNorm2d(width)], nn.ReLU()) for _ in range(depth // 2)
    ]  # fmt: skip
    return images(blocks, width)


def rows(layers: list[nn.Module], width: int) -> nn.Module:
    """Linear layers."""
    return nn.Sequential(nn.Linear(20, width), *layers, nn.Linear(width, CLASSES))


def linear_batch_norm(depth: int, width: int) -> nn.Module:
    """Linear layers with BatchNorm."""
    layers = [m for _ in range(depth)
              for m in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())]  # fmt: skip
    return rows(layers, width)


def norm_before(depth: int, width: int) -> nn.Module:
    """Blocks that begin with a LayerNorm."""
    return rows([
        Skip([nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
              nn.Linear(2 * width, width)]) for _ in range(depth // 2)
    ], width)  # fmt: skip


def norm_after(depth: int, width: int) -> nn.Module:
    """Blocks with a LayerNorm of the sum."""
    return rows([
        Skip([nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)],
             nn.LayerNorm(width)) for _ in range(depth // 2)
    ], width)  # fmt: skip


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "convolutions": plain, "with pooling": pooled, "with BatchNorm": batch_norm,
    "with GroupNorm": group_norm, "with skip connections": residual, "ResNet's blocks": resnet,
    "linear, BatchNorm": linear_batch_norm, "LayerNorm before": norm_before,
    "LayerNorm after": norm_after,
}  # fmt: skip


def deviations(kind: str, seed: int) -> np.ndarray:
    """Of every gain of a fresh network, in spreads."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=30, help="of each kind (30)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    head = ("kind", "networks", "gains", "within 1", "within 2", "mean", "std")
    found: dict[str, list[np.ndarray]] = {}
    lines = []
    for kind in [*KINDS, "all"]:
        if kind in KINDS:
            found[kind] = [deviations(kind, seed) for seed in range(options.networks)]
        several = found[kind] if kind in KINDS else [one for some in found.values() for one in some]
        apart = np.concatenate(several)
        within = [f"{100 * np.mean(np.abs(apart) <= limit):.1f} %" for limit in (1, 2)]
        lines.append((kind, str(len(several)), str(len(apart)), *within,
                      f"{np.mean(apart):+.2f}", f"{np.std(apart):.2f}"))  # fmt: skip
        print(*lines[-1], file=sys.stderr, flush=True)
    print(markdown(head, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
