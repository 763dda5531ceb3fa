"""Diagnose PyTorch models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import Module

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.reading import Reading
from vegrad.reports import notebook
from vegrad.reports.text import text
from vegrad.torch import models
from vegrad.torch.monitor.report import Report
from vegrad.torch.reading.losses import Loss, taking_both
from vegrad.torch.reading.reading import read
from vegrad.torch.shards import diagnosed as shards_diagnosed
from vegrad.torch.shards import is_sharded
from vegrad.torch.subject import ModelSubject


@dataclass(frozen=True, repr=False)
class ModelDiagnosis(Diagnosis):
    """A diagnosis of a model whose layers are a chain; layer n is `modules[n]`."""

    modules: tuple[str, ...] = ()

    @property
    def drawn(self) -> bool:
        """True if `expected` is measured with weights drawn anew, where theory has no formulas."""
        return (
            self.reading is not None and self.reading.chain is not None and self.reading.chain.drawn
        )

    def _repr_html_(self) -> str:
        return notebook.diagnosis(self, self.modules)

    def to_text(self, *, all_layers: bool = False) -> str:
        """Return the table of layers with their modules, the verdict, findings and advice."""
        return text(self, all_layers=all_layers, names=self.modules)

    def to_dict(self) -> dict[str, Any]:
        """Return what a `Diagnosis` does, with `modules` and `drawn`."""
        return super().to_dict() | {"modules": list(self.modules), "drawn": self.drawn}


@torch.inference_mode(False)
def diagnose(
    model: Module,
    loss_fn: Loss,
    x: object,
    target: object = None,
    *,
    history: History | None = None,
    resamples: int = 4,
    seed: int = 0,
    ignore: Collection[str] = (),
    memory: int = 0,
) -> Diagnosis:
    """Judge the gradients of a model by one forward and backward pass of a batch.

    The pass is read as a graph: what ran in which order, sizes and δ of each operation, and the
    gradients of the parameters. Where Linear layers or convolutions follow each other (with
    activations, normalization, skip connections and other operations between them), gains are taken
    apart into weights × derivative, as `vegrad.diagnose` does it; in recurrent modules gradients
    are followed through time. A parameter is blamed only if putting it right changes gradients by
    decades, for which the model is run again. It runs in its present mode, and is left as it was:
    parameters, their `.grad`, buffers, training flags and the random generators.

    Args:
        model: any module; if torch.compile or DistributedDataParallel wraps it, the module inside
            is diagnosed.
        loss_fn: called with the model's output and target, or the output alone if it takes no
            more; returns the mean loss, a tensor.
        x: the inputs, with the batch as first dimension; a tuple or mapping of several.
        target: whatever loss_fn takes; None where the model's output is its loss, or holds it.
        history: a `vegrad.History` of the model's training, whose findings are added.
        resamples: further batches, of at most 256 rows drawn from this one with replacement, which
            tell how far the gains depend on the batch. They are put together from the rows of the
            first pass, and run only where rows do not go their own ways through model and loss and
            a finding hangs on them. 0 for one pass only.
        seed: seed of that draw.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.
        memory: how many steps back lies what the task needs, of recurrent modules. If they forget
            it, that is a finding; without it, only where the targets themselves tell of it.

    Theory tells which gains to expect if it knows every module. For other chains (convolutions,
    pooling, BatchNorm, blocks with their normalization before or after the skip connection, ...),
    where there is a finding, eight passes do, with weights drawn anew from the initialization that
    the model's look to have had (`.drawn`; not with resamples=0).

    Of a model whose parameters are sharded over processes (FSDP2, tensor parallelism) all processes
    must call this. The pass is then run as in training, no parameter is gathered but by the model
    itself, and the report is that of a `Monitor` with one step, the same on all of them. Nothing is
    drawn again then, whatever `resamples` is.

    Returns:
        A diagnosis. If the layers are a chain, it has `flow`, and `modules` with the layers' names;
        else it has `rows` with the modules' numbers, and `measurement`, that of the parameters'
        gradients.

    Raises:
        TypeError: for a model that is no module, or a loss_fn that cannot be called; for NumPy
            arrays, which the model or the loss does not take; for an ignore that is no collection
            of strings.
        ValueError: for a loss that is not a single number, or a model without parameters that
            require a gradient; for a name in ignore that no cause has. NaN and inf are no errors,
            but findings.
    """
    check(model, loss_fn)
    count, seed = as_count("resamples", resamples), as_count("seed", seed)
    ignored = as_ignored(ignore)
    if history is not None and not isinstance(history, History):
        raise TypeError(f"history must be a vegrad.History, not {type(history).__name__}")
    model = models.unwrapped(model)
    loss, memory = taking_both(loss_fn, target), as_count("memory", memory)
    if is_sharded(model):
        return shards_diagnosed(
            model, loss, x, target, history=history, memory=memory, ignored=ignored
        )
    reading = read(model, loss, x, target, resamples=count, seed=seed)
    return judged(replace(reading, memory=memory), history, ignored)


def judged(
    reading: Reading, history: History | None = None, ignored: Collection[str] = ()
) -> Diagnosis:
    """Return the diagnosis of a reading, in the form that its modules ask for."""
    if reading.chain is not None:
        names = reading.chain.names
        return ModelDiagnosis.of(reading, history, ModelSubject, modules=names).ignoring(ignored)
    if reading.modules:
        return Report.of_modules(reading, history, ModelSubject).ignoring(ignored)
    return Diagnosis.of(reading, history, ModelSubject).ignoring(ignored)


def check(model: object, loss_fn: object) -> None:
    """Raise TypeError or ValueError if the model and the loss cannot give gradients."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    models.refuse_scripted(model)
    if isinstance(loss_fn, type) and issubclass(loss_fn, torch.nn.Module):
        name = f"nn.{loss_fn.__name__}" if hasattr(torch.nn, loss_fn.__name__) else loss_fn.__name__
        raise TypeError(f"loss_fn is a class: write {name}(), which makes one")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, not {type(loss_fn).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter that requires a gradient")
