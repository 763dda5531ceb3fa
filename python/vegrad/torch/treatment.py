"""The cure of PyTorch models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import Array, as_count
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.edits import is_in_place
from vegrad.flow.lags import MOST_ROWS, Lags
from vegrad.flow.recurrence import IN_TIME
from vegrad.flow.subject import Refusal
from vegrad.torch import models, settings
from vegrad.torch.answers import Answers, Lenient, answers, goal_of
from vegrad.torch.diagnosis import check, diagnose, judged
from vegrad.torch.fused.sequential import FusedMLP
from vegrad.torch.loss_kinds import is_fitted, is_looked_at, is_of_differences, is_sum
from vegrad.torch.reading import cells, passes
from vegrad.torch.reading.data import not_finite
from vegrad.torch.reading.losses import Loss, taking_both
from vegrad.torch.rows import are_independent
from vegrad.torch.subject import MakeOptimizer, ModelSubject
from vegrad.torch.trainer import EARLY, ModelData, ModelTrainer
from vegrad.treatment.beyond import beyond_cure
from vegrad.treatment.budget import BUDGET
from vegrad.treatment.goal import Goal, Plan, check_goal, check_lengths
from vegrad.treatment.learnability import attainable
from vegrad.treatment.outcome import Outcome
from vegrad.treatment.progress import Listener, listener
from vegrad.treatment.search import THOROUGH, Search
from vegrad.treatment.trial import FORWARD

IMPORTS = {  # by what calls for them
    r"(?<![.\w])torch\.": "import torch",
    r"(?<![.\w])nn\.": "from torch import nn",
    r"(?<![.\w])vegrad\.theory\.": "import vegrad",
    r"(?<![.\w])vegrad\.torch\.": "import vegrad.torch",
}
FIRST = 64  # rows, from whose loss and outputs the goal follows
LOOKING = 4 / 3  # of a forward and backward pass: a diagnosis goes through the weights once more


@dataclass(frozen=True, kw_only=True, repr=False)
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
        """Return plain JSON types; numbers that are not finite are None."""
        return super().to_dict() | {"learning_rate": self.learning_rate, "clip": self.clip}


@dataclass
class CurableModel(ModelSubject):
    """A model with its loss, the data and the optimizer that it is trained with."""

    noun = "model"
    early = len(EARLY)
    lags: Lags | None = None
    """Data of more rows than a diagnosis has, which tell of the steps that targets depend on."""
    memory: int = 0

    def prepared(self) -> Self:
        """Return a copy to search with: of plain layers, and with an optimizer that was checked."""
        return replace(
            self, model=_unfused(self.model), optimizer=_checked(self.optimizer, self.model)
        )

    def diagnosed(self, x: Any, target: Any, *, theory: bool) -> Diagnosis:
        """Diagnose it on a batch, without resampling."""
        reading = self.read(x, target, resamples=0, seed=0)
        if reading.lags is not None and self.lags is not None:
            reading = replace(reading, lags=replace(self.lags, entering=reading.lags.entering))
        return judged(replace(reading, memory=self.memory))

    def thoroughly(self, x: Any, target: Any) -> tuple[Diagnosis, float]:
        """Diagnose it beside draws of new weights too; return what that costs, in rows.

        Where the optimizer's settings are far from usual, some steps with it are watched first.
        """
        assert self.optimizer is not None
        model = models.copied(self.model)
        optimizer = self.optimizer([one for one in model.parameters() if one.requires_grad])
        if settings.are_suspect(optimizer):
            size = passes.row_count(x, target) or 1
            watched = settings.watched(
                model, self.loss_fn, optimizer, self.data, batch_size=size, seed=self.seed
            )
            if watched is not None and beyond_cure(watched) is not None:
                return watched, float(settings.STEPS * size)
        found = diagnose(self.model, self.loss_fn, x, target, memory=self.memory)
        rows = passes.row_count(x, target) if self.data.rows else 1
        return found, float(THOROUGH * max(rows, 1))

    def looking(self, rows: int) -> float:
        """Return what a diagnosis costs, in rows that go forward and back."""
        return LOOKING * rows + (IN_TIME if self.is_recurrent else 0)

    @property
    def is_recurrent(self) -> bool:
        """True if there are modules that go through time."""
        kinds = nn.RNNBase | nn.RNNCellBase
        return any(isinstance(one, kinds) for one in self.model.modules())

    def trainer(
        self, history: History, *, batch_size: int, gauge_every: int, seed: int
    ) -> ModelTrainer:
        """Begin a training of a copy, with the optimizer as it began."""
        assert self.optimizer is not None
        model = models.copied(self.model)
        optimizer = self.optimizer([one for one in model.parameters() if one.requires_grad])
        for group in optimizer.param_groups if self.rate is not None else []:
            group["lr"] = self.rate
        return ModelTrainer(
            model, self.loss_fn, optimizer, self.clip, self.data, history, gauge_every, seed
        )

    def patch(self, words: str, lines: Sequence[str], *, steps: int, batch_size: int) -> str:
        """Write the code that does the same to the user's model."""
        found = [f"# {words}", *lines]
        if self.rate is not None:
            if any("set_submodule" in line or "Residual(" in line for line in lines):
                found.append("# optimizer: made of the parameters that the model has now")
            found += ["for group in optimizer.param_groups:", f'    group["lr"] = {self.rate!r}']
        if self.clip is not None:
            call = f"vegrad.torch.clip_grad_norm_(model.parameters(), {self.clip!r})"
            found += ["# before each step:", call]
        code = "\n".join(found) + "\n"
        needed = [line for name, line in IMPORTS.items() if re.search(name, code)]
        return "\n".join([*needed, "", code] if needed else [code])


@torch.inference_mode(False)
def cure(
    model: Module,
    loss_fn: Loss,
    x: Any,
    target: Any = None,
    *,
    optimizer: MakeOptimizer | None = None,
    goal: float | None = None,
    steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    budget: float = BUDGET,
    in_place: bool = True,
    rows: bool | None = None,
    progress: bool | Listener = False,
    memory: int = 0,
) -> ModelCure:
    """Find the smallest change that makes a model train, and prove it.

    Changes are tried on copies, in the order of `remedies.REMEDIES`, the smallest first: scaled
    data, what the diagnosis says, biases, scaling on the data, new weights, then skip connections,
    normalization and other activations; on top of each the learning rate that the gauge of its
    steps asks for, and a clip. Each is judged by one pass; if that is promising, by a training from
    the same seed on the same rows, which ends as soon as it reaches the goal or is seen to learn
    nothing. The first that reaches the goal is the cure; if none does, the one with the lowest
    loss, if it is lower than the given model's, which is trained as long: the proof.

    Args:
        model: any module.
        loss_fn: as for `diagnose`.
        x: inputs; a tuple or mapping of several. If they have not as many rows as the target, all
            is one batch; likewise if they depend on each other, see `rows`.
        target: for all rows.
        optimizer: called with a list of parameters; by default torch.optim.Adam with lr=1e-3.
        goal: an accuracy, at least, for the two cross entropies with labels (those that PyTorch's
            functions are called with); else a loss, at most.
            By default 80 % of the way from the best constant output to perfection, for other losses
            half of it (half of the first loss, where that is not known). It is looked at on up to
            256 of the rows; a loss that is a sum over rows counts by row.
        steps: of one training.
        batch_size: rows of a step.
        seed: of the order of the rows, of dropout and of new weights.
        budget: the most that may be spent, in trainings of `steps`, the given model's included.
            (Trainings of under some hundred rows cost less than a look at them; they may pass it.)
        in_place: write a cure that is new values of the same parameters into `model`. Other cures
            are a patch, and `.model` is a copy.
        rows: True if rows may be taken by themselves; False if all are one batch, as the nodes of
            a graph are; None to find it out, by a run of some rows with and without others.
        progress: True for a line on standard error; or a function, which is called with a
            `vegrad.treatment.progress.Look` at every look at a training.
        memory: how many steps back lies what the task needs, of recurrent modules.

    Returns:
        A ModelCure: `.before`, `.after`, `.attempts`, `.model`, `.proof`, `.patch`; print it.
        Gradients, buffers, training flags and random generators of `model` stay as they were.

    Raises:
        TypeError, ValueError: as `diagnose`; steps, batch_size, goal or budget out of range;
            rows=True for inputs and a target without rows in common.
    """
    check(model, loss_fn)
    loss_fn, tell = taking_both(loss_fn, target), listener(progress)
    steps, batch_size = check_lengths(steps, batch_size, budget)
    check_goal(goal, "mse")
    unknown = Goal("mse", nan if goal is None else goal, nan)  # before the model has run
    plan = Plan(unknown, steps, batch_size, as_count("seed", seed), budget)
    if not_finite("data", "x", x) or not_finite("target", "target", target):
        before = diagnose(model, loss_fn, x, target)  # says where, and runs nothing
        why = "no change of the model makes up for values that are not finite"
        return ModelCure.without_a_trial(before, plan, why, model=model)
    _check_rows(rows, x, target)
    data = ModelData(x, target, rows=rows is not False)
    given = CurableModel(
        model, Lenient(loss_fn), data, optimizer, plan.seed, memory=as_count("memory", memory)
    ).prepared()
    spent = 0.0
    if rows is None and len(data) > 1:
        count = len(data)
        data.rows, spent = are_independent(given.model, data.take, count)
        spent /= 1 if data.rows else count  # where all is one batch, that counts as a row
    return _searched(model, given, plan, goal, FORWARD * spent, tell, in_place=in_place)


def _check_rows(rows: object, x: object, target: object) -> None:
    if rows is not None and not isinstance(rows, bool):
        raise TypeError(f"rows must be True, False or None, not {rows!r:.60}")
    if rows and not passes.row_count(x, target):
        raise ValueError("rows=True needs inputs and a target of the same number of rows")


def _ask_the_loss(given: CurableModel, first: Answers, target: object) -> None:
    """Note what kind of loss it is: a sum, one of differences, of outputs beside targets."""
    data, loss_fn = given.data, given.loss_fn
    with models.untouched(given.model, loss_fn):
        data.summed = len(data) > 1 and is_sum(loss_fn, first, target)
        data.fitted = is_fitted(first.output, target) and is_looked_at(given, first, target)
        data.numeric = data.fitted and is_of_differences(loss_fn, first.output, target)


def _searched(
    model: Module,
    given: CurableModel,
    plan: Plan,
    wanted: float | None,
    spent: float,
    tell: Listener,
    *,
    in_place: bool,
) -> ModelCure:
    """Look at the first rows for the goal, and search for what reaches it."""
    data, loss_fn = given.data, given.loss_fn
    every = np.random.default_rng(plan.seed).permutation(len(data))
    drawn = every[:FIRST]
    x, target = data.take(drawn)
    first = _first_answers(given, x, target)
    if first is None:
        before = diagnose(models.unwrapped(model), loss_fn, x, target)  # says why, or raises
        return ModelCure.without_a_trial(before, plan, _said(before), model=model)
    _ask_the_loss(given, first, target)
    goal = goal_of(_of_row(first, data, drawn), target, data.target, wanted)
    check_goal(wanted, goal.kind)
    spent += FORWARD * len(drawn)
    if wanted is None and (first.kind == "" or not isfinite(goal.wanted)):
        # Half of a loss that is far too large is no goal.
        before = given.diagnosed(x, target, theory=True)
        goal = _mended_goal(given, before, drawn, goal)
        spent += given.looking(len(drawn)) + FORWARD * len(drawn)
        if not isfinite(goal.wanted):
            return ModelCure.without_a_trial(before, plan, _said(before), model=model)
    table = data.table(goal.kind) if wanted is None else None
    if table is not None:
        goal = attainable(*table, goal)
    del first  # memory
    plan = replace(plan, goal=goal, whole=given.is_recurrent)
    with models.untouched(given.model, loss_fn):
        if given.is_recurrent and len(data) > 1:
            some = every[:MOST_ROWS]
            given.lags = cells.lags_of_rows(given.model, *data.take(some))
            spent += FORWARD * len(some)
        search = Search(given, plan, given.thoroughly, tell=tell)
        search.budget.passed += spent
        outcome, treatment = search.run()
    treated = treatment.subject
    assert isinstance(treated, CurableModel)
    cured = treated.model
    if not outcome.patch:
        cured = model
    elif in_place and treatment.keeps_shape:
        cured = model
        ModelSubject(model).write(treated)
    return ModelCure(**vars(outcome), model=cured, learning_rate=treated.rate, clip=treated.clip)


def _first_answers(given: CurableModel, x: object, target: object) -> Answers | None:
    """Return what the model answers to these rows, None if its loss cannot be trained on.

    Raises:
        Exception: what the model or the loss raises, if no finding says what is wrong with them.
    """
    model, loss_fn = given.model, given.loss_fn
    try:
        with models.untouched(model, loss_fn):
            first = answers(model, loss_fn, x, target)
    except Exception:
        # It is the user's mistake, unless a diagnosis knows better; then that raises the same.
        if diagnose(models.unwrapped(model), loss_fn, x, target).healthy:
            raise
        return None
    loss = first.loss
    usable = isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad
    return first if usable else None


def _of_row(found: Answers, data: ModelData, rows: Array) -> Answers:
    """Return the same answers with the loss of a row, where the loss is a sum over rows."""
    return replace(found, loss=found.loss / len(rows)) if data.summed else found


def _mended_goal(given: CurableModel, before: Diagnosis, drawn: Array, goal: Goal) -> Goal:
    """Return the goal that follows from the loss after the first edit that lowers it, if one does.

    Where a loss is not known, the first is all that a goal can rest on; a sick network's may be
    huge, or NaN.
    """
    for finding in before.findings:
        if finding.edit is None or not is_in_place(finding.edit):
            continue
        mended = given.copy()
        if isinstance(mended.apply(finding.edit), Refusal):
            continue
        x, target = given.data.take(drawn)
        with models.untouched(mended.model, given.loss_fn):
            again = answers(mended.model, given.loss_fn, x, target)
        other = goal_of(_of_row(again, given.data, drawn), target, given.data.target, None)
        if isfinite(other.wanted) and not goal.wanted <= other.wanted:
            return other
        return goal
    return goal


def _said(before: Diagnosis) -> str:
    """Return the first finding, as what is left to say where no change is tried."""
    if before.healthy:
        return "the loss is not finite, or no number that depends on the parameters"
    return f"{before.findings[0].message}: {before.findings[0].advice}"


def _checked(optimizer: MakeOptimizer | None, model: Module) -> MakeOptimizer:
    """Return what makes the optimizer; raise TypeError if it makes none that steps by itself."""
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


def _unfused(model: Module) -> Module:
    """Return a copy with plain layers: fused ones would not see what is put in their place."""
    try:
        plain = models.copied(model)
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
