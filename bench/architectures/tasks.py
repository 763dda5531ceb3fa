"""The tasks of the architectures: small synthetic data, and the losses that go with them.

Everything is drawn from fixed seeds. The classes of a task are balanced, so that a constant output
has a loss that is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 4


@dataclass
class Case:
    """A model with what it is trained on."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    x: Any
    """A tensor, or a tuple or mapping with tensors; their first dimension is the rows."""
    target: Any
    rows: bool = True
    """False if all is one batch, as the nodes of a graph are."""
    batch: int = 16
    rate: float = 1e-3
    """Adam's, for a healthy training."""

    def first(self) -> tuple[Any, Any]:
        """Return the inputs and targets of the first batch."""
        if not self.rows:
            return self.x, self.target
        rows = torch.arange(min(self.batch, len(self.target)))
        return take(self.x, rows), take(self.target, rows)

    def output(self, x: Any) -> Any:
        """Run the model, as its inputs are meant."""
        if isinstance(x, dict):
            return self.model(**x)
        return self.model(*x) if isinstance(x, tuple) else self.model(x)


def take(value: Any, rows: Tensor) -> Any:
    """Return some rows of inputs or targets."""
    if isinstance(value, dict):
        return {name: take(one, rows) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(take(one, rows) for one in value)
    return value[rows] if isinstance(value, Tensor) and value.ndim else value


def of_a_constant(case: Case) -> float:
    """Compute the loss of the best constant output, inf where it is not known."""
    target = case.target
    if not isinstance(target, Tensor):
        return math.inf
    if target.dtype == torch.long:
        shares = torch.bincount(target[target >= 0]).double()
        shares = shares[shares > 0] / shares.sum()
        return float(-(shares * shares.log()).sum())
    return float(target.var(correction=0)) if case.loss is square else math.inf


# Losses --------------------------------------------------------------------------------------


def tensor_of(output: Any) -> Tensor:
    """Return the tensor that counts in what a library's model returns."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "sample"):
        if hasattr(output, name):
            return getattr(output, name)
    return tensor_of(output[0])


def labels(output: Any, target: Tensor) -> Tensor:
    """Compute the cross entropy with a label for each row, or for each position of each row."""
    logits = tensor_of(output)
    return functional.cross_entropy(logits.flatten(0, -2), target.flatten())


def square(output: Any, target: Tensor) -> Tensor:
    """Compute the mean square of the errors."""
    return functional.mse_loss(tensor_of(output).reshape(target.shape), target)


def binary(output: Any, target: Tensor) -> Tensor:
    """Compute the cross entropy of yes or no, from logits."""
    logits = tensor_of(output).reshape(target.shape)
    return functional.binary_cross_entropy_with_logits(logits, target)


def overlap(output: Any, target: Tensor) -> Tensor:
    """Compute the binary cross entropy plus the Dice loss, as in the segmentation of images."""
    logits = tensor_of(output)
    inside = torch.sigmoid(logits)
    dice = (2 * (inside * target).sum() + 1) / (inside.sum() + target.sum() + 1)
    return 1 - dice + functional.binary_cross_entropy_with_logits(logits, target)


def own(output: Any, _: Any) -> Tensor:
    """Return the loss that a model computes itself, of the labels among its inputs."""
    return output.loss


# Data ----------------------------------------------------------------------------------------


def random(seed: int = 0) -> torch.Generator:
    """Make a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def which(count: int) -> Tensor:
    """Return the class of each row, all classes as often."""
    return torch.arange(count) % CLASSES


def pictures(count: int, size: int, channels: int = 3, dims: int = 2) -> tuple[Tensor, Tensor]:
    """Draw noisy stripes, whose directions and widths tell the class."""
    classes, axis = which(count), torch.linspace(-1, 1, size)
    grids = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"))
    waves = torch.randn(CLASSES, channels, dims, generator=random(1)) * 4
    stripes = torch.sin(torch.einsum("kcd,d...->kc...", waves, grids))
    shape = (count, channels, *[size] * dims)
    return stripes[classes] + 0.5 * torch.randn(shape, generator=random()), classes


def words(count: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Draw token numbers from 4 up, most of which come from the part of the row's class."""
    classes, part = which(count), (vocabulary - 4) // CLASSES
    common = torch.randint(4, vocabulary, (count, length), generator=random(1))
    of_class = torch.randint(0, part, (count, length), generator=random(2))
    is_of_class = torch.rand(count, length, generator=random(3)) < 0.7
    return torch.where(is_of_class, 4 + part * classes[:, None] + of_class, common), classes


def sentences(count: int, length: int, vocabulary: int) -> Tensor:
    """Draw token numbers from 4 up, each of which determines the next."""
    after = torch.randperm(vocabulary - 4, generator=random(1))
    tokens = [torch.randint(0, vocabulary - 4, (count,), generator=random(2))]
    while len(tokens) < length:
        tokens.append(after[tokens[-1]])
    return torch.stack(tokens, 1) + 4


def discs(count: int, size: int, channels: int = 1, dims: int = 2) -> tuple[Tensor, Tensor]:
    """Draw noisy discs, and the masks to be found."""
    axis = torch.linspace(-1, 1, size)
    grids = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"))
    centres = torch.rand(count, dims, *[1] * dims, generator=random(1)) - 0.5
    masks = ((grids - centres).square().sum(1, keepdim=True) < 0.3).float()
    noise = torch.randn(count, channels, *[size] * dims, generator=random(2))
    return 2 * masks - 0.7 + 0.5 * noise, masks


def waves(count: int, length: int, channels: int = 1) -> Tensor:
    """Draw sines with periods and phases of their own."""
    periods = 8 + 12 * torch.rand(count, 1, channels, generator=random(1))
    phases = 6.28 * torch.rand(count, 1, channels, generator=random(2))
    return torch.sin(6.28 * torch.arange(length)[None, :, None] / periods + phases)


def sounds(count: int, length: int) -> tuple[Tensor, Tensor]:
    """Draw noisy tones, whose pitch is the class."""
    classes = which(count)
    tones = torch.sin(torch.arange(length) * 0.06 * (1 + classes[:, None]))
    return tones + 0.1 * torch.randn(count, length, generator=random()), classes


def rows(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw a table and the class of each row, which a product of two columns decides."""
    x = torch.randn(count, width, generator=random())
    score = x[:, 0] + x[:, 1] * x[:, 2]
    return x, torch.bucketize(score, torch.quantile(score, torch.tensor([0.25, 0.5, 0.75])))


def network(count: int = 64, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a graph: features and class of each node, edges (2, E) mostly within the classes."""
    classes = which(count)
    chance = torch.where(classes[:, None] == classes, 0.3, 0.02)
    joined = torch.rand(count, count, generator=random(1)).triu(1) < chance.triu(1)
    means = torch.randn(CLASSES, width, generator=random(2))
    x = 0.6 * means[classes] + torch.randn(count, width, generator=random(3))
    return x, (joined | joined.T).nonzero().T.contiguous(), classes
