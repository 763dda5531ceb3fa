"""PyTorch models as a subject: what `vegrad.torch.diagnose` and `cure` ask of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import Array
from vegrad.flow.edits import Clip, Edit, LearningRate, ScaleData
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.torch import models
from vegrad.torch.editor import ModelEditor
from vegrad.torch.reading.reading import read
from vegrad.torch.trainer import ModelData
from vegrad.torch.vocabulary import TorchVocabulary
from vegrad.treatment.script import Script

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


NO_DATA = ModelData(None, None)


@dataclass
class ModelSubject:
    """A module with its loss; for a cure with the data and the optimizer that it is trained with.

    What wraps it (torch.compile, DistributedDataParallel) is taken off.
    """

    model: Module
    loss_fn: Any = None
    data: ModelData = NO_DATA
    optimizer: MakeOptimizer | None = None
    """Makes one of a list of parameters."""
    seed: int = 0
    """The seed of new weights."""
    rate: float | None = None
    """The learning rate to train it with, if it is another than the optimizer's."""
    clip: float | None = None
    """The limit of a clip of the gradients' joint norm, if there is to be one."""
    chain: Chain | None = None
    """The chain of the last reading, if the model's layers are one."""

    vocabulary = TorchVocabulary()

    def __post_init__(self) -> None:
        """Take off what wraps the model; raise TypeError if it is no module."""
        if not isinstance(self.model, Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(self.model).__name__}")
        self.model = models.unwrapped(self.model)

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        """Run the model forward and back on a batch and write down what that tells."""
        found = read(self.model, self.loss_fn, x, target, resamples=resamples, seed=seed)
        self.chain = found.chain
        return found

    def copy(self) -> Self:
        """Return a copy, to the bit, with the same data, loss and optimizer."""
        return replace(self, model=copy.deepcopy(self.model))

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit to the model, in place if its shape allows it."""
        match edit:
            case ScaleData():
                return self._scale_data()
            case LearningRate(rate):
                self.rate = rate
                return Code()
            case Clip(limit):
                self.clip = limit
                return Code()
        editor = ModelEditor(self.model, self.chain, self.data, rows, self.seed)
        return editor.apply(edit)

    def write(self, other: Self) -> None:
        """Take over the parameters' values of another model of the same shape."""
        values = dict(other.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])

    def _scale_data(self) -> Code | Refusal:
        """Scale columns, or channels, by what they are in float64."""
        axes = self.data.axes
        if axes is None:
            return Refusal("the inputs are not rows of numbers")
        x = self.data.x
        script = Script(torch=torch, x=x.detach().double())
        script.run(
            f"mean, std = x.mean({axes}, keepdim=True), x.std({axes}, correction=0, keepdim=True)",
            f"varies = x.amax({axes}, keepdim=True) > x.amin({axes}, keepdim=True)",
            "scale = torch.where(varies, std, 1.0)",
            "x = (x - mean) / scale",
        )
        mean, scale = (cast(Tensor, script.names[name]).to(x.dtype) for name in ("mean", "scale"))
        self.data = ModelData((x - mean) / scale, self.data.target, fitted=self.data.fitted)
        columns = "columns" if x.ndim == 2 else "channels"
        words = f"scale the {columns} of x to mean 0 and standard deviation 1"
        return Code(script.lines, words=words)
