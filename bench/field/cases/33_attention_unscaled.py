"""tiny-transformers#71: q·k is not divided by √d: each query looks at one key alone.

https://github.com/PAIR-code/tiny-transformers/issues/71
"""

import torch
from torch import nn

GOAL = 0.1
STEPS = 400
WORDS, LENGTH, WIDTH = 16, 12, 128


class Attention(nn.Module):
    """Answers which word stood after the one that is asked for (the last)."""

    def __init__(self, scaled):
        super().__init__()
        self.scale = WIDTH**-0.5 if scaled else 1.0
        self.word, self.place = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)
        if not scaled:
            for layer in (self.query, self.key):
                nn.init.normal_(layer.weight, std=WIDTH**-0.5)

    def forward(self, x):
        h = self.word(x) + self.place(torch.arange(LENGTH))
        scores = self.query(h[:, -1:]) @ self.key(h).transpose(1, 2) * self.scale
        return self.head(self.norm((scores.softmax(-1) @ self.value(h))[:, 0]))


def make(scaled):
    torch.manual_seed(0)
    x = torch.stack([torch.randperm(WORDS)[:LENGTH] for _ in range(2048)])
    x[:, -1] = torch.arange(2048) % 2
    y = x.gather(1, x[:, -1:])[:, 0]  # the word at place 0 or 1
    return (
        Attention(scaled),
        nn.CrossEntropyLoss(),
        x,
        y,
        lambda p: torch.optim.Adam(p, lr=1e-3),
    )


def sick():
    return make(False)


def fixed():
    return make(True)


def error(model):
    _, _, x, y, _ = fixed()
    return (model(x).argmax(1) != y).float().mean().item()
