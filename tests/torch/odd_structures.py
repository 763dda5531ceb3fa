"""Small models that are no chain of layers: how they run is odd, not what they compute.

Each function makes a task at a healthy initialization, with one matrix in its midst that a fault
may be planted in. `odd_architectures.py` has more, of other kinds; `test_anything.py` uses both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402
from torch.func import functional_call, jacrev, vmap  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

ROWS, WIDTH, CLASSES = 64, 16, 4


@dataclass
class Task:
    """A model, its loss and data, and the matrix that a factor makes it sick in."""

    model: Any
    loss: Callable[[Any, Any], Any]
    x: Any
    target: Any
    weight: str = ""
    """Name of that parameter."""
    factor: float = 1e-3
    names: tuple[str, ...] = ()
    """Sites that name this parameter as well, beside itself and its module."""

    def named(self) -> set[str]:
        """Return names of sites that mean the parameter."""
        return {self.weight, self.weight.rpartition(".")[0], *self.names}


TASKS: dict[str, Callable[[], Task]] = {}


def task(make: Callable[[], Task]) -> Callable[[], Task]:
    """Register a task by its function's name, made from a fixed seed."""

    def made() -> Task:
        torch.manual_seed(0)
        return make()

    TASKS[make.__name__] = made
    return made


def draw(*shape: int, seed: int = 1) -> Any:
    """Return normal numbers that depend on nothing but the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(*shape: int) -> tuple[Any, Any]:
    """Return inputs, and labels that a linear map of the sum over their middle axes gives."""
    x = draw(ROWS, *shape)
    flat = x.flatten(1)
    return x, (flat @ draw(flat.shape[1], CLASSES, seed=2)).argmax(1)


def mlp(*sizes: int, activation: Any = nn.Tanh) -> Any:
    """Return Linear layers with activations between them, at PyTorch's initialization."""
    layers: list[Any] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


# Gradients inside forward or the loss ----------------------------------------------------------


def slope(u: Any, x: Any) -> Any:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


class Field(nn.Module):
    """u(x), with the x that it was computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 24, 24, 24, 24, 1)

    def forward(self, x: Any) -> Any:
        x = x.detach().requires_grad_()
        return self.net(x), x


class Residual(Field):
    """The residual of u_x = u_y, by a gradient taken in forward, and u."""

    def forward(self, x: Any) -> Any:
        u, x = super().forward(x)
        d = slope(u, x)
        return torch.cat([d[:, :1] - d[:, 1:], u], 1)


class Forces(Field):
    """Minus the gradient of an energy."""

    def forward(self, x: Any) -> Any:
        return -slope(*super().forward(x))


@task
def equation_in_the_loss() -> Task:
    def loss(output: Any, target: Any) -> Any:
        u, x = output
        d = slope(u, x)
        return (d[:, 0] - d[:, 1]).square().mean() + F.mse_loss(u, target)

    x = draw(ROWS, 2)
    return Task(Field(), loss, x, torch.sin(x.sum(1, keepdim=True)), "net.4.weight")


@task
def equation_in_forward() -> Task:
    x = draw(ROWS, 2)
    wanted = torch.cat([torch.zeros(ROWS, 1), torch.sin(x.sum(1, keepdim=True))], 1)
    return Task(Residual(), F.mse_loss, x, wanted, "net.4.weight")


@task
def forces() -> Task:
    x = draw(ROWS, 2)
    return Task(Forces(), F.mse_loss, x, -x, "net.4.weight")


class Critic(Field):
    """Score true and made samples, and points between them."""

    def forward(self, true: Any, made: Any) -> Any:
        between, points = super().forward((true + made) / 2)
        return self.net(true), self.net(made), between, points


@task
def gradient_penalty() -> Task:
    def loss(output: Any, target: Any) -> Any:
        true, made, between, points = output
        lengths = slope(between, points).norm(dim=1)
        return made.mean() - true.mean() + 10 * (lengths - 1).square().mean()

    x = (draw(ROWS, 2), draw(ROWS, 2, seed=2) + 3)
    return Task(Critic(), loss, x, None, "net.4.weight")


@task
def step_in_the_loss() -> Task:
    """Weights that one step of gradient descent makes good (Finn et al. 2017)."""
    model = mlp(2, 24, 24, 24, 1)
    x, query = draw(ROWS, 2), draw(ROWS, 2, seed=2)

    def loss(output: Any, target: Any) -> Any:
        weights = dict(model.named_parameters())
        inner = F.mse_loss(output, target)
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {n: w - 0.1 * d for (n, w), d in zip(weights.items(), slopes, strict=True)}
        return F.mse_loss(functional_call(model, moved, query), query.sum(1, keepdim=True).sin())

    return Task(model, loss, x, x.sum(1, keepdim=True).sin(), "4.weight", 1e3)


# torch.func ------------------------------------------------------------------------------------


class Inner(nn.Module):
    """A network that is run by a function of its weights."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.net = mlp(*sizes)

    def run(self, x: Any) -> Any:
        return functional_call(self.net, dict(self.net.named_parameters()), (x,))


class RowByRow(Inner):
    def forward(self, x: Any) -> Any:
        return vmap(self.run)(x)


class Jacobians(Inner):
    def forward(self, x: Any) -> Any:
        return vmap(jacrev(self.run))(x).flatten(1)


class Halved(Inner):
    def forward(self, x: Any) -> Any:
        weights = {name: 0.5 * one for name, one in self.net.named_parameters()}
        return self.run(x) + functional_call(self.net, weights, (x,))


@task
def vmap_in_forward() -> Task:
    model = RowByRow(WIDTH, 16, 16, 16, CLASSES)
    return Task(model, F.cross_entropy, *labelled(WIDTH), "net.4.weight")


@task
def jacobian_in_forward() -> Task:
    x = draw(ROWS, 2)
    return Task(Jacobians(2, 16, 16, 16, 2), F.mse_loss, x, x.repeat(1, 2), "net.2.weight")


@task
def functional_call_in_forward() -> Task:
    model = Halved(WIDTH, 16, 16, 16, CLASSES)
    return Task(model, F.cross_entropy, *labelled(WIDTH), "net.4.weight")


# Other numbers, and passes that are run again ---------------------------------------------------


class Spectral(nn.Module):
    """Multiply the lowest frequencies by complex matrices (Li et al. 2021)."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)
        self.beside = nn.Conv1d(width, width, 1)

    def forward(self, x: Any) -> Any:
        modes, spectrum = self.weight.shape[2], torch.fft.rfft(x)
        made = torch.einsum("bim,iom->bom", spectrum[..., :modes], self.weight)
        return torch.fft.irfft(made, x.shape[-1]) + self.beside(x)


class FourierOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv1d(1, 12, 1)
        self.layers = nn.ModuleList([Spectral(12, 8) for _ in range(4)])
        self.out = nn.Conv1d(12, 1, 1)

    def forward(self, x: Any) -> Any:
        x = self.lift(x)
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.out(x)


@task
def fourier_operator() -> Task:
    x = draw(ROWS, 1, 32)
    return Task(FourierOperator(), F.mse_loss, x, x.cumsum(2) / 4, "layers.1.weight", 1e3)


class InHalf(nn.Module):
    """Convolutions in bfloat16, by autocast inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(i, 12, 3, padding=1) for i in (2, 12, 12, 12)])
        self.out = nn.Linear(12 * 36, CLASSES)

    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            for conv in self.convs:
                x = conv(x).relu()
            x = self.out(x.flatten(1))
        return x.float()


@task
def autocast_in_forward() -> Task:
    return Task(InHalf(), F.cross_entropy, *labelled(2, 6, 6), "convs.2.weight", 1e3)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.reentrant = nn.Linear(WIDTH, 16), reentrant
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Tanh(), nn.Linear(16, 16)) for _ in range(4))
        )
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.out(x)


@task
def checkpoint_reentrant() -> Task:
    x, y = labelled(WIDTH)
    return Task(Checkpointed(True), F.cross_entropy, x, y, "blocks.2.1.weight")


@task
def checkpoint_not_reentrant() -> Task:
    x, y = labelled(WIDTH)
    return Task(Checkpointed(False), F.cross_entropy, x, y, "blocks.2.1.weight")


class Remembering(nn.Module):
    """Keep a tensor of the graph of the last pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(i, 16) for i in (WIDTH, 16, 16, 16)])
        self.out = nn.Linear(16, CLASSES)
        self.last_hidden: Any = None

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        self.last_hidden = x
        return self.out(x)


@task
def graph_tensor_kept() -> Task:
    model, (x, y) = Remembering(), labelled(WIDTH)
    model(x)
    return Task(model, F.cross_entropy, x, y, "layers.2.weight")


# Convolutions in a loop --------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Six convolutions in a loop, normalized or not, and a linear layer."""

    def __init__(self, normalized: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(i, 8, 3, padding=1) for i in (2, *[8] * 5)])
        kind = nn.BatchNorm2d if normalized else nn.Identity
        self.norms, self.out = nn.ModuleList([kind(8) for _ in range(6)]), nn.Linear(8, CLASSES)

    def forward(self, x: Any) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return self.out(x.amax((2, 3)))


@task
def convolutions_normalized() -> Task:
    return Task(Convolutions(), F.cross_entropy, *labelled(2, 6, 6), "convs.3.weight")


@task
def convolutions() -> Task:
    return Task(Convolutions(False), F.cross_entropy, *labelled(2, 6, 6), "convs.3.weight")


# Rows that are not independent ------------------------------------------------------------------


def ring() -> Any:
    """Return the adjacency of a ring of all rows with a few chords, normalized by degree."""
    adjacency = torch.eye(ROWS)
    for step in (1, 7):
        adjacency += torch.eye(ROWS).roll(step, 1) + torch.eye(ROWS).roll(-step, 1)
    return adjacency / adjacency.sum(1, keepdim=True)


class GraphConvolutions(nn.Module):
    """Mean over the neighbours, then a linear map; the rows are the nodes of one graph."""

    def __init__(self, depth: int, adjacency: Any = None) -> None:
        super().__init__()
        self.register_buffer("adjacency", ring() if adjacency is None else adjacency)
        sizes = [WIDTH] + [16] * (depth - 1)
        self.layers = nn.ModuleList([nn.Linear(i, 16) for i in sizes])
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = (self.adjacency @ layer(x)).relu()
        return self.out(x)


class Messages(nn.Module):
    """Sum what comes along edges, by index_add."""

    def __init__(self) -> None:
        super().__init__()
        source, target = ring().nonzero().T
        self.register_buffer("source", source)
        self.register_buffer("target", target)
        self.own = nn.ModuleList([nn.Linear(i, 16) for i in (WIDTH, 16, 16)])
        self.sent = nn.ModuleList([nn.Linear(i, 16) for i in (WIDTH, 16, 16)])
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        for own, sent in zip(self.own, self.sent, strict=True):
            coming = sent(x)[self.source] / 5
            x = own(x).index_add(0, self.target, coming).relu()
        return self.out(x)


def nodes() -> tuple[Any, Any]:
    """Return features of nodes, and labels of each one's neighbourhood."""
    x = draw(ROWS, WIDTH)
    return x, (ring() @ x @ draw(WIDTH, CLASSES, seed=2)).argmax(1)


@task
def graph_dense() -> Task:
    return Task(GraphConvolutions(3), F.cross_entropy, *nodes(), "layers.1.weight", 1e3)


@task
def graph_messages() -> Task:
    return Task(Messages(), F.cross_entropy, *nodes(), "sent.1.weight", 1e3)
