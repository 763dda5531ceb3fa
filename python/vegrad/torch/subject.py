"""PyTorch models as a subject: what `vegrad.torch.diagnose` and `cure` ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import Array
from vegrad.flow.edits import Clip, Edit, LearningRate, ScaleData, ScaleTarget, Truncate
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
        models.refuse_scripted(self.model)
        self.model = models.unwrapped(self.model)

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        """Run the model forward and back on a batch and write down what that tells."""
        found = read(self.model, self.loss_fn, x, target, resamples=resamples, seed=seed)
        self.chain = found.chain
        return found

    def copy(self) -> Self:
        """Return a copy, to the bit, with the same data, loss and optimizer."""
        return replace(self, model=models.copied(self.model))

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit to the model, in place if its shape allows it."""
        match edit:
            case ScaleData():
                return self._scale_data()
            case ScaleTarget():
                return self._scale_target()
            case LearningRate(rate):
                self.rate = rate
                return Code()
            case Clip(limit):
                self.clip = limit
                return Code()
            case Truncate():
                return Refusal("how far back a step goes stands in the training's own code")
        editor = ModelEditor(self.model, self.chain, self.data, rows, self.seed)
        return editor.apply(edit)

    def write(self, other: Self) -> None:
        """Take over the values of parameters and buffers of another model of the same shape."""
        values = {**dict(other.model.named_parameters()), **dict(other.model.named_buffers())}
        own = (*self.model.named_parameters(), *self.model.named_buffers())
        with torch.no_grad():
            for name, tensor in own:
                tensor.copy_(values[name])

    def _scale_data(self) -> Code | Refusal:
        """Scale columns, or channels, by what they are in float64."""
        found = self.data.numbers
        if found is None:
            return Refusal("the inputs are not rows of numbers")
        x, key, (table, axes) = self.data.x, self.data.key, found
        name = "x" if key is None else "part"
        at = "x" if key is None else f"x[{key!r}]"
        script = Script(torch=torch, **{name: table.detach().double()})
        lines: tuple[str, ...] = (
            f"mean = {name}.mean({axes}, keepdim=True)",
            f"std = {name}.std({axes}, correction=0, keepdim=True)",
            f"varies = {name}.amax({axes}, keepdim=True) > {name}.amin({axes}, keepdim=True)",
            "scale = torch.where(varies, std, 1.0)",
        )
        script.run(*lines)
        mean, scale = (cast(Tensor, script.names[one]).to(table.dtype) for one in ("mean", "scale"))
        scaled = (table - mean) / scale
        if key is None:
            lines = (*lines, "x = x.sub(mean).div(scale)")
        elif isinstance(x, Mapping):
            lines = (f"part = {at}", *lines, f"x = {{**x, {key!r}: (part - mean) / scale}}")
            scaled = {**x, key: scaled}
        else:
            whole = f"x = (*x[:{key}], (part - mean) / scale, *x[{key + 1}:])"
            lines = (f"part = {at}", *lines, whole)
            scaled = (*x[:key], scaled, *x[key + 1 :])
        self.data = self.data.with_x(scaled)
        columns = "columns" if table.ndim == 2 else "channels"
        return Code(lines, words=f"scale the {columns} of {at} to mean 0 and standard deviation 1")

    def _scale_target(self) -> Code | Refusal:
        """Scale columns by what they are in float64."""
        spread, target = self.data.target_spread(), self.data.target
        if isinstance(spread, Refusal):
            return spread
        script = Script(torch=torch, target=target.detach().double())
        script.run(
            "target_shift = target.mean(0, keepdim=True)",
            "target_scale = (target - target_shift).square().mean().sqrt()",
        )
        names = ("target_shift", "target_scale")
        shift, scale = (cast(Tensor, script.names[one]).to(target.dtype) for one in names)
        self.data = self.data.with_units((target - shift) / scale, shift, scale)
        lines = ("target_shift, target_scale = target_shift.to(target), target_scale.to(target)",
                 "target = (target - target_shift) / target_scale",
                 "# in the old units: model(x) * target_scale + target_shift")  # fmt: skip
        double = tuple(line.replace("target.mean", "target.double().mean") for line in script.lines)
        return Code((*double, *lines), words="scale the target to mean 0 and standard deviation 1")
