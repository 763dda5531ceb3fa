"""From a torch model whose gradients are sick to the smallest change that helps, and its proof."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.diagnosis import not_run
from vegrad.torch import models
from vegrad.torch.diagnosis import check, diagnose, not_finite
from vegrad.torch.editor import FOLLOWING, REMEDIES, SCALE_DATA, Case, Change, looking
from vegrad.torch.fused.sequential import FusedMLP
from vegrad.torch.reading import passes
from vegrad.torch.trainer import EARLY, Data, Trial, accuracy, goal_of
from vegrad.treatment.learnability import about_data
from vegrad.treatment.outcome import Outcome
from vegrad.treatment.remedies import median_alpha
from vegrad.treatment.remedy import AS_IT_IS, Remedy
from vegrad.treatment.search import Search, without_a_trial
from vegrad.treatment.trial import FORWARD, Goal, check_goal, check_lengths

STANDING = -0.99  # median α of steps that are as good as none
FIRST = 64  # rows, from whose loss and outputs the goal follows


@dataclass(frozen=True, kw_only=True)
class ModelCure(Outcome):
    """The outcome for a model; print it.

    `model` is the cured one, before training: the given one if it was changed in place, or if
    nothing was better; else a changed copy. `patch` is code that makes it of the given one (and x
    of x, if the data are to be scaled), and `learning_rate` and `clip` are what to train it with
    (None: as before).
    """

    model: Module
    learning_rate: float | None = None
    clip: float | None = None

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.patch:
            lines += ["", "patch:", *(f"  {line}".rstrip() for line in self.patch.splitlines())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers that are not finite are None."""
        return super().to_dict() | {"learning_rate": self.learning_rate, "clip": self.clip}


@torch.inference_mode(False)
def cure(
    model: Module,
    loss_fn: Any,
    x: Any,
    target: Any,
    *,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    goal: float | None = None,
    steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    budget: float = 1.5,
    in_place: bool = True,
) -> ModelCure:
    """Find the smallest change that makes a model train, and prove it.

    Changes are tried on copies, in the order of `remedies.REMEDIES`, the smallest first: scaled
    data, a layer's factor, recurrent parameters, biases, scaling on the data, new weights, then
    skip connections, normalization and other activations; on top of each the learning rate that the
    gauge of its steps asks for, and a clip. Each is judged by one pass; if that is promising, by a
    training from the same seed on the same rows, which ends as soon as it reaches the goal or is
    seen to learn nothing. The first that reaches the goal is the cure; if none does, the one with
    the lowest loss, if it is lower than the given model's. That is trained for as many steps: the
    proof.

    Args:
        model: any module.
        loss_fn: as for `diagnose`.
        x: inputs, from whose rows batches are drawn; a tuple or mapping of several. If they are not
            as many as the target's, all is one batch.
        target: for all rows.
        optimizer: called with a list of parameters; by default torch.optim.Adam with lr=1e-3.
        goal: an accuracy, at least, for the two cross entropies with labels; else a loss, at most.
            By default 80 % of the way from the best constant output to perfection, for other losses
            half of it (half of the first loss, where that is not known). It is looked at on up to
            256 of the rows.
        steps: of one training.
        batch_size: rows of a step.
        seed: of the order of the rows, of dropout and of new weights.
        budget: the most that may be spent, in trainings of `steps`, the given model's included.
            (Trainings of under some hundred rows cost less than a look at them; they may pass it.)
        in_place: write a cure that is new values of the same parameters into `model`. Other cures
            are a patch, and `.model` is a copy.

    Returns:
        A ModelCure: `.before`, `.after`, `.attempts`, `.model`, `.proof`, `.patch`; print it.
        Gradients, buffers, training flags and random generators of `model` stay as they were.

    Raises:
        TypeError, ValueError: as `diagnose`; steps, batch_size, goal or budget out of range.
    """
    check(model, loss_fn)
    steps, batch_size = check_lengths(steps, batch_size, budget)
    check_goal(goal, "mse")
    seed = as_count("seed", seed)
    unusable = not_run(
        {"model": type(model).__name__}, (not_finite("x", x), not_finite("target", target))
    )
    if unusable is not None:
        why = "no change of the model makes up for values that are not finite"
        unknown = Goal("mse", 0.0, 0.0)
        return ModelCure(model=model, **without_a_trial(unusable, unknown, steps, batch_size, why))
    bare, data = models.unwrapped(model), Data(x, target)
    given = Change(AS_IT_IS, _unfused(bare), _checked(optimizer, bare))
    drawn = np.random.default_rng(seed).permutation(len(data))[:FIRST]
    rows = data.take(drawn)
    with models.untouched(given.network, loss_fn):
        run = passes.forward(given.network, loss_fn, *rows)
    right = accuracy(run.output, rows[1])
    aim = goal_of(run.loss_kind, target, float(run.loss.detach()), right, goal)
    check_goal(goal, aim.kind)
    if not isfinite(aim.wanted):
        before = diagnose(bare, loss_fn, *rows, resamples=0)
        why = before.findings[0].advice if before.findings else f"the loss is {aim.guess}"
        return ModelCure(model=model, **without_a_trial(before, aim, steps, batch_size, why))
    fitted = _is_fitted(run.output, rows[1])
    with models.untouched(given.network, loss_fn):
        search = _Search(given, data, loss_fn, aim, steps, batch_size, seed, budget, model,
                         in_place, fitted=fitted)  # fmt: skip
        search.patient.passed += FORWARD * len(drawn)
        found: ModelCure = search.run()
    return found


def _checked(optimizer: Any, model: Module) -> Callable[[Any], torch.optim.Optimizer]:
    """What makes the optimizer. TypeError if it makes none that steps by itself."""
    if optimizer is None:
        return lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
    wanted = "optimizer must make a torch optimizer of a list of parameters"
    if not callable(optimizer):
        raise TypeError(f"{wanted}, as torch.optim.SGD does, not be a {type(optimizer).__name__}")
    made = optimizer([one for one in model.parameters() if one.requires_grad])
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"{wanted}, not a {type(made).__name__}")
    if isinstance(made, torch.optim.LBFGS):
        raise TypeError(f"{wanted} that steps without a closure, not LBFGS")
    return optimizer


def _is_fitted(output: Any, target: Any) -> bool:
    """Whether it looks as if outputs shall become targets, a number or a class each."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    return not target.is_floating_point() or output.numel() == target.numel()


def _unfused(model: Module) -> Module:
    """A copy with plain layers: fused ones would not see what is put in their place."""
    try:
        plain = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        why = str(error).partition(". ")[0]
        message = (
            f"model must be one that copy.deepcopy copies, as changes are tried on copies: {why}"
        )
        raise TypeError(message) from error
    for name, one in list(plain.named_modules()):
        if isinstance(one, FusedMLP):
            layers = nn.Sequential(*one).train(one.training)
            if not name:
                return layers
            plain.set_submodule(name, layers)
    return plain


class _Search(Search):
    """The search, for a model."""

    scale_data, remedies, following = SCALE_DATA, REMEDIES, FOLLOWING
    noun = "model"

    def __init__(
        self, given: Change, data: Data, loss_fn: Any, goal: Goal, steps: int, batch_size: int,
        seed: int, budget: float, model: Module, in_place: bool, *, fitted: bool,
    ) -> None:  # fmt: skip
        self.loss_fn, self.model, self.in_place, self.fitted = loss_fn, model, in_place, fitted
        super().__init__(given, data, data.target, goal, steps, batch_size, seed, budget)
        self.spendable -= 2 * len(EARLY) * self.batch_size  # of the last trial and of the proof

    def examined(self, rows: Any) -> Case:
        """The given model, looked at on these rows."""
        before = diagnose(self.given.network, self.loss_fn, *self.x.take(rows), resamples=0)
        return Case(self.given, self.x, self.target, rows, before, self.seed, loss_fn=self.loss_fn,
                    passed=looking(self.given.network, len(rows)))  # fmt: skip

    def _trial(self, treatment: Any, order: int = 0) -> Trial:
        for _, done, _ in self.trials:  # a model and its optimizer's states are kept for one
            if isinstance(done, Trial):
                done.forget()
        return Trial(treatment, self.x, self.target, self.rows, self.goal, self.batch_size,
                     self.steps, self.seed + order, loss_fn=self.loss_fn)  # fmt: skip

    def _over(self, trial: Any) -> bool:
        """Steps a hundred times too short are seen in the first look."""
        far = self.patient.diagnosis.healthy and median_alpha(trial.history) < STANDING
        return far or super()._over(trial)

    def _kept(self, remedy: Remedy) -> float:
        """Nothing for changes of the architecture where none can be made."""
        model: Any = self.given.network
        if not self.patient.diagnosis.flow:
            return 0.0
        # A convolution's few channels are no narrow layer: chance averages over its positions.
        plain = not any(isinstance(one, nn.modules.conv._ConvNd) for one in model.modules())
        return super()._kept(remedy) if plain else remedy.kept

    def about(self, *, quick: bool = False) -> tuple[str, ...]:
        """What is wrong with the data, if they are rows of numbers and labels or numbers."""
        x, target = self.x.x, self.target
        rows = self.x.by_rows and isinstance(x, Tensor)
        if not rows or not self.fitted or not x.is_floating_point() or target.ndim > 2:
            return ()
        if self.goal.kind == "cross_entropy" and (target.ndim != 1 or bool((target < 0).any())):
            return ()
        if self.goal.kind == "mse" and not target.is_floating_point():
            return ()
        table = x.detach().cpu().flatten(1).double().numpy()
        return about_data(table, target.detach().cpu().numpy(), self.goal, quick=quick)

    def outcome(self, treatment: Any, **found: Any) -> ModelCure:
        """What is handed to the user; values that are written into the model are written here."""
        if treatment is self.given:
            return ModelCure(model=self.model, patch="", **found)
        cured = treatment.network
        if self.in_place and treatment.same_shape:
            cured = self.model
            _write(models.unwrapped(self.model), treatment.network)
        return ModelCure(model=cured, patch=_patch(treatment), learning_rate=treatment.rate,
                         clip=treatment.clip, **found)  # fmt: skip


def _write(model: Module, treated: Module) -> None:
    values = dict(treated.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def _patch(change: Change) -> str:
    """Code that does the same to the user's model."""
    lines = [f"# {change.words}", *change.code]
    if change.rate is not None:
        lines += ["for group in optimizer.param_groups:", f'    group["lr"] = {change.rate!r}']
    if change.clip is not None:
        lines += ["# before each step:",
                  f"vegrad.torch.clip_grad_norm_(model.parameters(), {change.clip!r})"]  # fmt: skip
    return "\n".join(lines) + "\n"
