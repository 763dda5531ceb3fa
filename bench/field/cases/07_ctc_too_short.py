"""crnn.pytorch#235, icefall#135: CTC needs at least as many frames as the label has signs.

https://github.com/meijieru/crnn.pytorch/issues/235
https://github.com/k2-fsa/icefall/issues/135
"""

import torch
from _data import mlp
from torch import nn

GOAL = 0.7
STEPS = 300
FRAMES = 12


class Recognizer(nn.Module):
    """Frames (B, T, 8) to log-probabilities (T / stride, B, 6)."""

    def __init__(self, stride):
        super().__init__()
        self.stride, self.net = stride, mlp(8, 64, 6)

    def forward(self, x):
        return self.net(x[:, :: self.stride]).log_softmax(2).transpose(0, 1)


def ctc(output, target):
    lengths = torch.full((output.shape[1],), output.shape[0])
    return nn.functional.ctc_loss(output, target, lengths, (target > 0).sum(1))


def make(stride):
    torch.manual_seed(0)
    signs = torch.randint(1, 6, (256, FRAMES // 2))
    length = torch.randint(2, 6, (256,))
    target = torch.where(torch.arange(FRAMES // 2) < length[:, None], signs, 0)
    frames = nn.functional.one_hot(target, 8).float().repeat_interleave(2, 1)
    frames[:, 1::2] = nn.functional.one_hot(torch.tensor(7), 8).float()  # a pause after each
    return Recognizer(stride), ctc, frames + 0.1 * torch.randn_like(frames), target


def sick():
    return make(4)  # pools 12 frames to 3


def fixed():
    return make(1)


def error(model):
    _, loss_fn, x, target = sick()
    loss = loss_fn(model(x), target)
    return loss.item() if loss.isfinite() else 99.0
