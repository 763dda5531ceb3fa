"""Small models that are no chain of layers: what they compute is odd.

See `odd_structures.py`, whose table of tasks these are added to.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.torch.odd_structures import CLASSES, ROWS, WIDTH, Task, draw, labelled, mlp, task

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402
from torch.nn.utils.parametrizations import spectral_norm, weight_norm  # noqa: E402

WORDS, STEPS = 12, 8


def sentences() -> Any:
    """Return words of which each but the first is the one before it plus 1 or 2."""
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(1, 3, (ROWS, STEPS), generator=generator)
    return (steps.cumsum(1) + torch.arange(ROWS)[:, None]) % WORDS


# Language --------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention and an MLP, each normalized before and added to the stream."""

    def __init__(self, width: int = WIDTH, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.mlp = mlp(width, 2 * width, width, activation=nn.GELU)
        self.causal = causal

    def forward(self, x: Any, other: Any = None) -> Any:
        h = self.norm1(x)
        seen = h if other is None else other
        q, k, v = self.q(h), self.k(seen), self.v(seen)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        return x + self.mlp(self.norm2(x))


class Language(nn.Module):
    """A causal language model; `tied` if its head is its embedding."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(STEPS, WIDTH)
        self.blocks = nn.ModuleList([Block(causal=True) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            nn.init.normal_(self.words.weight, std=0.1)
            nn.init.normal_(self.places.weight, std=0.1)
            self.head.weight = self.words.weight

    def forward(self, words: Any) -> Any:
        x = self.words(words) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_word(logits: Any, words: Any) -> Any:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())


@task
def causal_language_model() -> Task:
    x = sentences()
    return Task(Language(), next_word, x, x, "blocks.1.mlp.2.weight", 1e3)


@task
def tied_embedding() -> Task:
    x = sentences()
    return Task(Language(tied=True), next_word, x, x, "blocks.1.mlp.2.weight", 1e3)


@dataclass
class Answer:
    loss: Any
    logits: Any


class OwnLoss(Language):
    """Return the loss with the logits, as many libraries' models do."""

    def forward(self, words: Any) -> Any:
        logits = super().forward(words)
        return Answer(next_word(logits, words), logits)


@task
def loss_in_the_output() -> Task:
    model, x = OwnLoss(), sentences()
    return Task(model, lambda answer, _: answer.loss, x, None, "blocks.1.mlp.2.weight", 1e3)


class Translator(nn.Module):
    """An encoder, and a decoder that attends to what it gives; the inputs have names."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(draw(STEPS, WIDTH, seed=5))
        self.encoder = nn.ModuleList([Block() for _ in range(2)])
        self.decoder, self.across = Block(causal=True), Block()
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, source: Any, wanted: Any) -> Any:
        x, y = (self.words(words) + self.places for words in (source, wanted))
        for block in self.encoder:
            x = block(x)
        return self.head(self.across(self.decoder(y), x))


@task
def encoder_decoder_of_named_inputs() -> Task:
    def loss(logits: Any, words: Any) -> Any:
        return F.cross_entropy(logits.flatten(0, 1), words.flatten())

    x = sentences()
    inputs = {"source": x, "wanted": x.roll(1, 1)}
    return Task(Translator(), loss, inputs, x, "encoder.1.mlp.2.weight", 1e3)


@task
def transformer_encoder() -> Task:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(4 * WIDTH, CLASSES),
    )
    x, y = labelled(4, WIDTH)
    return Task(model, F.cross_entropy, x, y, "0.layers.1.linear2.weight", 1e3)


# Recurrence ------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """A GRU's cell in a loop of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(WIDTH, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        h = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm = nn.Linear(WIDTH, 16), nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(self.stem(x))[0][:, -1])


@task
def gru_by_hand() -> Task:
    return Task(ByHand(), F.cross_entropy, *labelled(5, WIDTH), "cell.weight_hh", 1e3)


@task
def lstm() -> Task:
    return Task(Lstm(), F.cross_entropy, *labelled(5, WIDTH), "lstm.weight_hh_l0", 1e3)


class FixedPoint(nn.Module):
    """One layer, six times, until little changes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(WIDTH, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.enter(x)
        z = torch.zeros_like(x)
        for _ in range(6):
            z = torch.tanh(self.again(z) + x)
        return self.out(z)


@task
def fixed_point() -> Task:
    return Task(FixedPoint(), F.cross_entropy, *labelled(WIDTH), "again.weight", 1e4)


# Several towers --------------------------------------------------------------------------------


class Towers(nn.Module):
    """Similarities of each picture to each text."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(WIDTH, 32, 32, 16), mlp(WIDTH, 32, 32, 16)
        self.temperature = nn.Parameter(torch.tensor(0.5).log())

    def forward(self, pictures: Any, texts: Any) -> Any:
        left, right = F.normalize(self.left(pictures)), F.normalize(self.right(texts))
        return left @ right.T / self.temperature.exp()


@task
def contrastive() -> Task:
    def loss(scores: Any, _: Any) -> Any:
        places = torch.arange(len(scores))
        return F.cross_entropy(scores, places) + F.cross_entropy(scores.T, places)

    x = draw(ROWS, WIDTH)
    return Task(Towers(), loss, (x, x @ draw(WIDTH, WIDTH, seed=2) / 4), None, "left.2.weight")


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp(WIDTH, 24, 24, 24, 8)

    def forward(self, one: Any, other: Any) -> Any:
        return (self.tower(one) - self.tower(other)).square().sum(1)


@task
def siamese() -> Task:
    x = draw(ROWS, WIDTH)
    alike = (torch.arange(ROWS) % 2).float()
    other = x + (1 - alike[:, None]) * draw(ROWS, WIDTH, seed=2) + 0.1
    return Task(Siamese(), F.mse_loss, (x, other), 1 - alike, "tower.4.weight")


class Experts(nn.Module):
    """Ten experts; each row goes to the two that score highest, so that some get none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(WIDTH, 16), nn.Linear(16, 10)
        self.experts = nn.ModuleList([mlp(16, 32, 16, activation=nn.ReLU) for _ in range(10)])
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.stem(x).relu()
        scores, chosen = self.gate(x).topk(2)
        shares, y = scores.softmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            y = y.index_add(0, rows, shares[rows, place, None] * expert(x[rows]))
        return self.out(y)


@task
def experts() -> Task:
    return Task(Experts(), F.cross_entropy, *labelled(WIDTH), "experts.1.2.weight", 1e3)


# Generative models -----------------------------------------------------------------------------


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(WIDTH, 24, 24, 8), mlp(4, 24, 24, WIDTH)

    def forward(self, x: Any) -> Any:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


@task
def variational_autoencoder() -> Task:
    def loss(output: Any, x: Any) -> Any:
        made, mean, log_variance = output
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).mean() / 2
        return F.mse_loss(made, x) + 0.1 * divergence

    x = draw(ROWS, 2) @ draw(2, WIDTH, seed=2)
    return Task(Variational(), loss, x, x, "decoder.2.weight")


@task
def generator_with_a_frozen_judge() -> Task:
    judge = mlp(WIDTH, 24, 24, 1, activation=nn.LeakyReLU).requires_grad_(False)

    def loss(made: Any, _: Any) -> Any:
        scores = judge(made)
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    return Task(mlp(8, 24, 24, 24, WIDTH), loss, draw(ROWS, 8), None, "4.weight")


class UNet(nn.Module):
    """Down and up again, with what was on the way down beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self.conv(i, o) for i, o in ((1, 8), (8, 12))])
        self.middle = self.conv(12, 16)
        self.up = nn.ModuleList([self.conv(16 + 12, 12), self.conv(12 + 8, 8)])
        self.out = nn.Conv2d(8, 1, 1)

    @staticmethod
    def conv(channels: int, out: int) -> Any:
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU())

    def forward(self, x: Any) -> Any:
        kept = []
        for conv in self.down:
            x = conv(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for conv in self.up:
            x = conv(torch.cat([F.interpolate(x, scale_factor=2), kept.pop()], 1))
        return self.out(x)


@task
def u_net() -> Task:
    x = draw(ROWS, 1, 8, 8)
    return Task(UNet(), F.mse_loss, x, F.avg_pool2d(x, 3, 1, 1) * 3, "middle.0.weight", 1e3)


# Weights that are made, frozen, or closed by design -------------------------------------------


@task
def weights_of_weight_norm() -> Task:
    model = mlp(WIDTH, 16, 16, 16, CLASSES)
    for place in (0, 2, 4):
        weight_norm(model[place])
    weight = "2.parametrizations.weight.original0"
    return Task(model, F.cross_entropy, *labelled(WIDTH), weight, names=("2", "2.weight"))


@task
def weights_of_spectral_norm() -> Task:
    model = mlp(WIDTH, 16, 16, 16, CLASSES, activation=nn.LeakyReLU)
    for place in (0, 4):
        spectral_norm(model[place])
    return Task(model, F.cross_entropy, *labelled(WIDTH), "2.weight")


@task
def lazy_layers_after_a_first_run() -> Task:
    model = nn.Sequential(
        nn.LazyLinear(24), nn.Tanh(), nn.LazyLinear(24), nn.Tanh(), nn.LazyLinear(CLASSES)
    )
    x, y = labelled(WIDTH)
    model(x)
    return Task(model, F.cross_entropy, x, y, "2.weight")


class FrozenBackbone(nn.Module):
    """A frozen backbone with batch normalization in eval, and a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        )
        self.backbone.requires_grad_(False).eval()
        self.head = mlp(8 * 4, 24, 24, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x).relu().flatten(1))


@task
def frozen_backbone() -> Task:
    return Task(FrozenBackbone(), F.cross_entropy, *labelled(2, 6, 6), "head.2.weight")


class Residuals(nn.Module):
    """x + f(x), where f ends as `last` says."""

    def __init__(self, last: str, depth: int = 4) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(WIDTH, 16), last
        self.one = nn.ModuleList([nn.Linear(16, 16) for _ in range(depth)])
        self.two = nn.ModuleList([nn.Linear(16, 16) for _ in range(depth)])
        kind = nn.LayerNorm if last == "scale" else nn.BatchNorm1d
        self.norm = nn.ModuleList([kind(16) for _ in range(depth)])
        self.scale = nn.ParameterList([torch.full((16,), 1e-5) for _ in range(depth)])
        self.out = nn.Linear(16, CLASSES)
        for norm in self.norm if last == "zero" else ():
            nn.init.zeros_(norm.weight)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for one, two, norm, scale in zip(self.one, self.two, self.norm, self.scale, strict=True):
            if self.last == "scale":
                x = x + scale * two(F.gelu(one(norm(x))))
            else:
                x = x + norm(two(F.gelu(one(x))))
        return self.out(x)


@task
def batch_normalization_in_eval() -> Task:
    return Task(Residuals("one").eval(), F.cross_entropy, *labelled(WIDTH), "two.1.weight", 1e3)


@task
def layer_scale() -> Task:
    model = Residuals("scale")
    return Task(model, F.cross_entropy, *labelled(WIDTH), "one.1.weight", 1e3)


@task
def branches_closed_by_batch_normalization() -> Task:
    return Task(Residuals("zero"), F.cross_entropy, *labelled(WIDTH), "stem.weight", 1e3)


class LowRank(nn.Module):
    """A frozen layer, and beside it a product of two matrices, one of which begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16).requires_grad_(False)
        self.A = nn.Parameter(draw(4, 16) / 4)
        self.B = nn.Parameter(torch.zeros(16, 4))

    def forward(self, x: Any) -> Any:
        return self.layer(x) + x @ self.A.T @ self.B.T


@task
def adapters_of_low_rank() -> Task:
    layers = [module for _ in range(4) for module in (LowRank(), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(16, CLASSES))
    return Task(model, F.cross_entropy, *labelled(WIDTH), "4.layer.weight", 1e3)
