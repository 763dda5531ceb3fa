"""PyTorch models as a subject: what `vegrad.torch.diagnose` and `cure` ask of them."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch.nn import Module

from vegrad.flow.edits import Edit, Scale, Shift, Zero, parts
from vegrad.flow.reading import Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.torch import models
from vegrad.torch.reading.reading import read
from vegrad.torch.vocabulary import TorchVocabulary


class ModelSubject:
    """A module with its loss."""

    def __init__(self, model: Module, loss_fn: Any = None) -> None:
        if not isinstance(model, Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self.model, self.loss_fn = models.unwrapped(model), loss_fn
        self.vocabulary = TorchVocabulary()

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        """Run the model forward and back on a batch and write down what that tells."""
        return read(self.model, self.loss_fn, x, target, resamples=resamples, seed=seed)

    def copy(self) -> Self:
        """Return a copy, to the bit."""
        return type(self)(copy.deepcopy(self.model), self.loss_fn)

    def apply(self, edit: Edit) -> Code | Refusal:
        """Do an edit to the model, in place."""
        lines: list[str] = ["with torch.no_grad():"]
        changed: list[str] = []
        known = {name for name, _ in self.model.named_parameters()}
        for part in parts(edit):
            match part:
                case Scale(names, factor, rows):
                    does = f"mul_({factor!r})"
                case Zero(names, rows):
                    does = "zero_()"
                case Shift(names, amount):
                    does, rows = f"add_({amount!r})", None
                case _:
                    return Refusal(f"{type(part).__name__} cannot be done in place")
            unknown = [name for name in names if name not in known]
            if unknown:
                return Refusal(f"the model has no parameter {unknown[0]}")
            at = "" if rows is None else f"[{rows[0]}:{rows[1]}]"
            lines += [f'    model.get_parameter("{name}"){at}.{does}' for name in names]
            changed += names
        exec("\n".join(lines), {"torch": torch, "model": self.model})
        return Code(tuple(lines), tuple(changed))

    def write(self, other: Self) -> None:
        """Take over the parameters' values of another model of the same shape."""
        values = dict(other.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])
