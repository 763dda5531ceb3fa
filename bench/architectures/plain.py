"""Architectures written out in PyTorch, so that there is something to examine without libraries.

The last two are as they should not be: they do not train as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures import tasks
from architectures.registry import add
from architectures.tasks import CLASSES, Case

WORDS, BLANK = 64, 3


class Skip(nn.Module):
    """x + branch(x); without the x, if `on` is False."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch, self.on = nn.Sequential(*branch), True

    def forward(self, x: Tensor) -> Tensor:
        """Compute a tensor of the shape of x."""
        return x + self.branch(x) if self.on else self.branch(x)


class Attention(nn.Module):
    """Self-attention with several heads, written out."""

    def __init__(self, width: int, heads: int = 4, causal: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.heads, self.causal = nn.Linear(width, width), heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, T, width) from (B, T, width)."""
        q, k, v = (
            one(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        if self.causal:
            later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return self.out((scores.softmax(3) @ v).transpose(1, 2).flatten(2))


class Words(nn.Module):
    """Words with their positions, a body, a norm and a head, for each row or for each position."""

    def __init__(self, body: nn.Module, width: int, outputs: int, length: int, each: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.body, self.norm, self.head = body, nn.LayerNorm(width), nn.Linear(width, outputs)
        self.each = each

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, outputs) or (B, T, outputs) from token numbers (B, T)."""
        x = self.norm(self.body(self.words(x) + self.positions))
        return self.head(x if self.each else x.mean(1))


class Model(nn.Module):
    """A model of some parts, whose forward pass is a function of itself and the inputs."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x: Tensor) -> Tensor:
        """Run the function."""
        return self.run(self, *x)


def block(width: int, causal: bool = False) -> nn.Sequential:
    """Make a block of a transformer with its norms first."""
    wide = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    attention = Skip(nn.LayerNorm(width), Attention(width, causal=causal))
    return nn.Sequential(attention, Skip(nn.LayerNorm(width), *wide))


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Make linear layers with an activation between each two."""
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Make a convolution with BatchNorm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def pooled(width: int) -> list[nn.Module]:
    """Make the end of a network that classifies images."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


@add("plain/encoder")
def encoder() -> Case:
    x, y = tasks.words(64, 16, WORDS)
    body = nn.Sequential(*(block(48) for _ in range(5)))
    return Case(Words(body, 48, CLASSES, 16, each=False), tasks.labels, x, y)


@add("plain/decoder")
def decoder() -> Case:
    x = tasks.sentences(64, 17, WORDS)
    body = nn.Sequential(*(block(48, causal=True) for _ in range(5)))
    return Case(Words(body, 48, WORDS, 16, each=True), tasks.labels, x[:, :-1], x[:, 1:])


@add("plain/universal_transformer")
def universal() -> Case:
    one = block(48)
    repeated = Model(lambda self, x: self.one(self.one(self.one(self.one(x)))), one=one)
    x, y = tasks.words(64, 16, WORDS)
    return Case(Words(repeated, 48, CLASSES, 16, each=False), tasks.labels, x, y)


@add("plain/token_mixer")
def mixer() -> Case:
    def mixed(model: Model, x: Tensor) -> Tensor:
        return model.body(x.transpose(1, 2)).transpose(1, 2)

    blocks = []
    for _ in range(4):
        across = Model(mixed, body=mlp(16, 32, 16, act=nn.GELU))
        blocks += [Skip(nn.LayerNorm(48), across)]
        blocks += [Skip(nn.LayerNorm(48), mlp(48, 96, 48, act=nn.GELU))]
    x, y = tasks.words(64, 16, WORDS)
    return Case(Words(nn.Sequential(*blocks), 48, CLASSES, 16, each=False), tasks.labels, x, y)


@add("plain/preactivation_resnet")
def preactivation() -> Case:
    def branch(width: int) -> list[nn.Module]:
        layers = (nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        return [*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]

    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), *(Skip(*branch(16)) for _ in "abc")]
    layers += [nn.Conv2d(16, 32, 3, 2, 1), *(Skip(*branch(32)) for _ in "abc")]
    x, y = tasks.pictures(64, 16)
    model = nn.Sequential(*layers, nn.BatchNorm2d(32), nn.ReLU(), *pooled(32))
    return Case(model, tasks.labels, x, y)


@add("plain/squeeze_excite")
def squeeze() -> Case:
    class Excite(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gate = nn.Sequential(mlp(width, width // 4, width), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate(x.mean((2, 3)))[:, :, None, None]

    layers = [m for i in (3, 24, 24, 24) for m in (*conv(i, 24), Excite(24))]
    x, y = tasks.pictures(64, 16)
    return Case(nn.Sequential(*layers, *pooled(24)), tasks.labels, x, y)


@add("plain/dense_concatenation")
def dense() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        for layer in model.layers:
            x = torch.cat([x, layer(x)], 1)
        return model.head(x)

    layers = nn.ModuleList(nn.Sequential(*conv(3 + 12 * n, 12)) for n in range(8))
    x, y = tasks.pictures(64, 16)
    return Case(Model(run, layers=layers, head=nn.Sequential(*pooled(99))), tasks.labels, x, y)


@add("plain/convolutional_autoencoder")
def autoencoder() -> Case:
    down = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    middle = [nn.Flatten(), nn.Linear(512, 16), nn.Linear(16, 512), nn.Unflatten(1, (32, 4, 4))]
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)]
    x = tasks.pictures(64, 16, 1)[0]
    return Case(nn.Sequential(*down, *middle, nn.ReLU(), *up), tasks.square, x, x)


@add("plain/wavenet")
def wavenet() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        x = model.first(x.transpose(1, 2))
        total = 0
        for n, (gated, out) in enumerate(zip(model.gated, model.out, strict=True)):
            a, b = gated(functional.pad(x, (2**n, 0))).chunk(2, 1)
            z = out(torch.tanh(a) * torch.sigmoid(b))
            x, total = x + z, total + z
        return model.last(torch.relu(total)).transpose(1, 2)

    gated = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=2**n) for n in range(4))
    out = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in range(4))
    parts = {"gated": gated, "out": out, "last": nn.Conv1d(24, 2, 1)}
    x = tasks.waves(64, 33, 2)
    model = Model(run, first=nn.Conv1d(2, 24, 1), **parts)
    return Case(model, tasks.square, x[:, :-1], x[:, 1:])


def reader(kind: type[nn.RNNBase], **options: object) -> Case:
    """Make a recurrent network that tells the class of a sentence some blanks after its end."""

    def run(model: Model, x: Tensor) -> Tensor:
        return model.head(model.memory(model.words(x))[0][:, -1])

    memory = kind(24, 40, batch_first=True, **options)
    head = nn.Linear(40 * (1 + memory.bidirectional), CLASSES)
    x, y = tasks.words(64, 8, WORDS)
    x = functional.pad(x, (0, 8), value=BLANK)
    model = Model(run, words=nn.Embedding(WORDS, 24), memory=memory, head=head)
    return Case(model, tasks.labels, x, y, rate=3e-3)


add("plain/lstm")(lambda: reader(nn.LSTM, num_layers=2))
add("plain/two_way_lstm")(lambda: reader(nn.LSTM, bidirectional=True))
add("plain/gru")(lambda: reader(nn.GRU, num_layers=2))


@add("plain/lstm_with_a_norm")
def normed_lstm() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        h = model.norm(model.second(model.first(model.words(x))[0])[0])
        return model.head(h)

    parts = {"norm": nn.LayerNorm(40), "head": nn.Linear(40, WORDS)}
    parts |= {
        "first": nn.LSTM(24, 40, batch_first=True),
        "second": nn.LSTM(40, 40, batch_first=True),
    }
    x = tasks.sentences(64, 25, WORDS)
    model = Model(run, words=nn.Embedding(WORDS, 24), **parts)
    return Case(model, tasks.labels, x[:, :-1], x[:, 1:], rate=3e-3)


@add("plain/energy_and_forces")
def forces() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        """Compute the energies and, as their negative gradient, the forces, beside each other."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = model.energy(x)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return torch.cat([energy, -slope], 1)

    x = torch.randn(128, 3, generator=tasks.random())
    target = torch.cat([x.square().sum(1, keepdim=True) / 2, -x], 1)
    model = Model(run, energy=mlp(3, 48, 48, 48, 1, act=nn.SiLU))
    return Case(model, tasks.square, x, target, batch=32)


@add("plain/experts")
def experts() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        h = model.first(x)
        shares = model.router(h).softmax(1)
        each = torch.stack([expert(h) for expert in model.experts], 2)
        return model.head(functional.relu(h + (each * shares[:, None]).sum(2)))

    parts = {"router": nn.Linear(32, 4), "head": nn.Linear(32, CLASSES), "first": mlp(8, 32)}
    x, y = tasks.rows(128, 8)
    model = Model(run, experts=nn.ModuleList(mlp(32, 64, 32) for _ in range(4)), **parts)
    return Case(model, tasks.labels, x, y, batch=32, rate=3e-3)


@add("plain/coupling_flow")
def flow() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        """Compute the log likelihood of each row."""
        total = torch.zeros(len(x))
        for part in model.parts:
            a, b = x.chunk(2, 1)
            scale, shift = part(a).chunk(2, 1)
            x = torch.cat([b * torch.tanh(scale).exp() + shift, a], 1)
            total = total + torch.tanh(scale).sum(1)
        return total - x.square().sum(1) / 2 - 2 * 1.8379

    z = torch.randn(256, 4, generator=tasks.random())
    x = torch.stack([3 * z[:, 0], z[:, 0] ** 2 + z[:, 1], z[:, 2] + 2, z[:, 2] + 0.3 * z[:, 3]], 1)
    parts = nn.ModuleList(mlp(2, 32, 32, 4, act=nn.Tanh) for _ in range(6))
    return Case(Model(run, parts=parts), lambda out, _: -out.mean(), x, x, batch=64)


@add("plain/set_pooling")
def pooling() -> Case:
    def run(model: Model, x: Tensor) -> Tensor:
        return model.of_all(model.of_one(x).amax(1))

    x = torch.randn(128, 12, 3, generator=tasks.random())
    y = torch.bucketize(x.square().sum(2).amax(1), torch.tensor([6.0, 8.0, 10.5]))
    model = Model(run, of_one=mlp(3, 48, 48, 48), of_all=mlp(48, 48, CLASSES))
    return Case(model, tasks.labels, x, y, batch=32, rate=3e-3)


@add("plain/sine_field")
def field() -> Case:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * x)

    layers: list[nn.Module] = []
    for n, inputs in enumerate((2, 48, 48, 48)):
        layer = nn.Linear(inputs, 48)
        bound = 1 / inputs if n == 0 else (6 / inputs) ** 0.5 / 30
        nn.init.uniform_(layer.weight, -bound, bound)
        layers += [layer, Sine()]
    axis = torch.linspace(-1, 1, 24)
    x = torch.cartesian_prod(axis, axis)
    y = torch.sin(8 * x[:, :1]) * torch.cos(5 * x[:, 1:])
    return Case(nn.Sequential(*layers, nn.Linear(48, 1)), tasks.square, x, y, batch=144, rate=3e-4)


@add("plain/deep_sigmoids")
def sigmoids() -> Case:
    x, y = tasks.rows(128, 8)
    return Case(mlp(8, *[48] * 16, CLASSES, act=nn.Sigmoid), tasks.labels, x, y, batch=32)


@add("plain/deep_convolutions")
def convolutions() -> Case:
    layers = [m for _ in range(30) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    x, y = tasks.pictures(64, 8)
    return Case(nn.Sequential(nn.Conv2d(3, 16, 1), *layers, *pooled(16)), tasks.labels, x, y)
