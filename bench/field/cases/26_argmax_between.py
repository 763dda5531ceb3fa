"""pytorch#1339, Deep_Hierarchical_Classification#6: an argmax between two nets.

https://github.com/pytorch/pytorch/issues/1339
https://github.com/Ugenteraan/Deep_Hierarchical_Classification/issues/6
"""

import torch
from _data import adam, digits, mlp, wrong
from torch import nn

GOAL = 0.2
STEPS = 400


class TwoStage(nn.Module):
    """A first net chooses one of 24 words, a second one reads the word."""

    def __init__(self, hard):
        super().__init__()
        self.choose, self.read, self.hard = mlp(64, 64, 24), mlp(24, 64, 10), hard

    def forward(self, x):
        scores = self.choose(x)
        if self.hard:
            word = nn.functional.one_hot(scores.argmax(1), 24).float()
        else:
            word = scores.softmax(1)
        return self.read(word)


def make(hard):
    torch.manual_seed(0)
    x, y = digits()
    return TwoStage(hard), nn.CrossEntropyLoss(), x, y, adam(5e-3)


def sick():
    return make(True)


def fixed():
    return make(False)


def error(model):
    x, y = digits()
    return wrong(model(x), y)
