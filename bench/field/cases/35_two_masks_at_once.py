"""transformers PR#17306, Automodel PR#2658: padding on the left and a causal mask mask all keys.

https://github.com/huggingface/transformers/pull/17306
https://github.com/NVIDIA-NeMo/Automodel/pull/2658
"""

import torch
from torch import nn

GOAL = 0.2
STEPS = 300
WORDS, LENGTH, WIDTH = 12, 8, 32


class Attention(nn.Module):
    def __init__(self, infinite):
        super().__init__()
        self.infinite, self.word = infinite, nn.Embedding(WORDS, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, x):
        query, key, value = self.qkv(self.word(x)).chunk(3, 2)
        scores = query @ key.transpose(1, 2) / WIDTH**0.5
        lowest = -torch.inf if self.infinite else torch.finfo(scores.dtype).min
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        padding = (x == 0)[:, None, :].expand(-1, LENGTH, -1)
        scores = scores.masked_fill(later | padding, lowest)
        return self.head(scores.softmax(-1) @ value).transpose(1, 2)


def make(infinite):
    torch.manual_seed(0)
    x = torch.randint(1, WORDS, (256, LENGTH))
    x[:64, :2] = 0  # padded on the left
    y = torch.where(x == 0, -100, x)
    return Attention(infinite), nn.CrossEntropyLoss(), x, y, lambda p: torch.optim.Adam(p, lr=1e-2)


def sick():
    return make(True)


def fixed():
    return make(False)


def error(model):
    _, _, x, y, _ = fixed()
    out = model(x)
    if out.isnan().any():
        return 1.0
    return (out.argmax(1) != y)[y >= 0].float().mean().item()
