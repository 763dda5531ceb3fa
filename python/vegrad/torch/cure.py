"""From a torch model whose gradients are sick to the smallest change that helps, and its proof."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch.nn import Module

from vegrad.cured import Attempt, Outcome, Proof
from vegrad.diagnosis import Diagnosis
from vegrad.torch import chain, probe
from vegrad.torch.diagnosis import diagnose
from vegrad.torch.remedies import REMEDIES, Case, Change, clip, learning_rate
from vegrad.torch.trial import Trial, first_rows, goal_of
from vegrad.trial import Goal

RATES = 3  # learning rates in a row, each from what the one before has shown
BETTER = 0.95  # of the model's first loss: what a change must come to to be one


@dataclass(frozen=True)
class ModelCure(Outcome):
    """What was found, tried and reached; attributes as of `vegrad.Cure`.

    `model` is the cured one, before training: the given one if it was changed in place, or if
    nothing was better; else a changed copy. `patch` is code that makes it of the given one, and
    `learning_rate` and `clip` are what to train it with (None: as before).
    """

    before: Diagnosis
    after: Diagnosis
    attempts: tuple[Attempt, ...]
    model: Module
    proof: Proof | None
    reached: bool
    """Whether the goal was reached."""
    goal: Goal
    summary: str
    patch: str
    cost: float
    """In trainings: forward and backward passes, over `steps`."""
    steps: int
    batch_size: int
    learning_rate: float | None = None
    clip: float | None = None
    about: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.patch:
            lines += ["", "patch:", *("  " + line for line in self.patch.splitlines())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers that are not finite are None."""
        return super().to_dict() | {"learning_rate": self.learning_rate, "clip": self.clip}


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
    in_place: bool = True,
) -> ModelCure:
    """Find the smallest change that makes a model train, and prove it.

    Changes are tried in the order of `remedies.REMEDIES` on copies: a layer's factor, biases,
    scaling on the data, new weights, then normalization and other activations; on top of each the
    learning rate that the gauge of its steps asks for, and a clip. Each is judged by a diagnosis
    and, if that is no worse, by a training from the same seed. The first that reaches the goal is
    the cure; if none does, the one with the lowest loss, if it is lower than the given model's.

    Args:
        model: any module.
        loss_fn: as for `diagnose`.
        x: inputs, from whose rows batches are drawn; if it is no tensor, all is one batch.
        target: for all rows.
        optimizer: called with a list of parameters; by default torch.optim.Adam with lr=1e-3.
        goal: an accuracy, at least, for cross entropy with labels; else a loss, at most. By default
            half of the way from the best constant output to perfection (half of the first loss, for
            losses that are not known).
        steps: of one training.
        batch_size: rows of a step.
        seed: of the order of the rows, of dropout and of new weights.
        in_place: write a cure that is new values of the same parameters into `model`. Other cures
            are a patch, and `.model` is a copy.

    Returns:
        A ModelCure: `.before`, `.after`, `.attempts`, `.model`, `.proof`, `.patch`; print it.
        Gradients, buffers, training flags and random generators of `model` stay as they were.

    Raises:
        TypeError, ValueError: as `diagnose`; steps or batch_size below 1.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, not {steps}, {batch_size}")
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    bare = probe.unwrapped(model)
    rows = first_rows(x, target)
    before = diagnose(bare, loss_fn, *rows)
    if before.flow is None and before.measurement is None:  # the data are not finite
        return ModelCure(before, before, (), model, None, False, Goal("mse", 0.0, 0.0),
                         f"not cured: {before.summary}", "", 0.0, steps, batch_size)  # fmt: skip
    with probe.untouched(bare):
        kind = chain.forward(bare, loss_fn, *rows).loss_kind
    search = _Search(bare, loss_fn, x, target, make, steps, batch_size, seed, before)
    search.goal = goal_of(kind, target, before.loss or 0.0, goal)
    return search.run(model, in_place)


class _Search:
    """The attempts of one cure, and what they have cost."""

    goal: Goal

    def __init__(
        self, model: Module, loss_fn: Any, x: Any, target: Any, make: Any,
        steps: int, batch_size: int, seed: int, before: Diagnosis,
    ) -> None:  # fmt: skip
        self.given, self.loss_fn, self.x, self.target = model, loss_fn, x, target
        self.make, self.steps, self.size, self.seed = make, steps, batch_size, seed
        self.before, self.passes = before, 0
        self.attempts: list[Attempt] = []
        self.tried: list[tuple[int, Change, Module, Diagnosis, Trial]] = []

    def look(self, model: Module) -> Diagnosis:
        """What a pass of the rows to look at says of a model."""
        self.passes += 1
        return diagnose(model, self.loss_fn, *first_rows(self.x, self.target), resamples=0)

    def trial(self, model: Module, change: Change, until: int | None = None) -> Trial:
        """A training of a copy."""
        trial = Trial(
            model, self.loss_fn, (self.x, self.target), self.make, self.goal, steps=self.steps,
            batch_size=self.size, seed=self.seed, rate=change.rate, clip=change.clip,
        )  # fmt: skip
        trial.train(until, stop=until is None)
        self.passes += trial.passes
        return trial

    def run(self, model: Module, in_place: bool) -> ModelCure:
        """The search."""
        sick = self.trial(self.given, Change())
        if sick.reached and self.before.healthy:
            return self.conclude(model, in_place, sick, None)
        case = Case(self.given, self.x, self.seed, self.before, self.look,
                    history=sick.history, rate=sick.rate)  # fmt: skip
        remedies = [*REMEDIES]
        if self.before.healthy:  # then it is the training, or nothing
            chosen = self.follow("", case)
            remedies = [row for row in remedies if row[0] in ("normalize", "activation")]
            if chosen is not None:
                return self.conclude(model, in_place, sick, chosen)
        for name, remedy in remedies:
            chosen = self.attempt(name, remedy, case)
            if chosen is None and self.tried and self.attempts[-1].after is not None:
                place, change, _, after, trial = self.tried[-1]
                if place == len(self.attempts) - 1:
                    on_top = replace(case, done=change, diagnosis=after, history=trial.history,
                                     rate=trial.rate, model=self.given)  # fmt: skip
                    chosen = self.follow(f"{name}, ", on_top)
            if chosen is not None:
                return self.conclude(model, in_place, sick, chosen)
        best = min(range(len(self.tried)), key=self.loss_of, default=None)
        return self.conclude(model, in_place, sick, best)

    def loss_of(self, number: int) -> float:
        """Of a trial, at its end."""
        loss = self.tried[number][4].loss
        return loss if isfinite(loss) else float("inf")

    def follow(self, prefix: str, case: Case) -> int | None:
        """The learning rate, again if that shows more; then a clip on top of the best."""
        chosen = None
        for _ in range(RATES):
            tried = len(self.tried)
            chosen = self.attempt(f"{prefix}learning rate", learning_rate, case)
            if chosen is not None or len(self.tried) == tried:
                break
            _, change, _, _, trial = self.tried[-1]
            again = replace(change, words=case.done.words)  # which the next rate takes the place of
            case = replace(case, done=again, history=trial.history, rate=trial.rate)
        return self.attempt(f"{prefix}clip", clip, case) if chosen is None else chosen

    def attempt(self, name: str, remedy: Any, case: Case) -> int | None:
        """Tries it; the number of the trial that reached the goal."""
        change = remedy(case)
        if isinstance(change, str):
            self.attempts.append(Attempt(name, "", False, change, self.before))
            return None
        treated = change.applied(self.given, self.x)
        after = self.look(treated) if change.code != case.done.code else case.diagnosis
        done = Attempt(name, change.words, False, "", self.before, after)
        if change.code != case.done.code and badness(after) > badness(self.before):
            why = f"worse: {after.summary.partition(';')[0]}"
            self.attempts.append(replace(done, why=why))
            return None
        trial = self.trial(treated, change)
        self.tried.append((len(self.attempts), change, treated, after, trial))
        (_, *first), (count, *last) = trial.points[0], trial.points[-1]
        why = "reached the goal" if trial.reached else f"not at the goal after {count} steps"
        self.attempts.append(
            replace(done, why=why, steps=count, loss=(first[0], last[0]),
                    accuracy=(first[1], last[1]), passes=float(trial.passes))
        )  # fmt: skip
        return len(self.tried) - 1 if trial.reached else None

    def conclude(self, model: Module, in_place: bool, sick: Trial, chosen: int | None) -> ModelCure:
        """The proof of the trial chosen; the model as it was, if it does as well."""
        proof, change, cured, after = None, Change(), model, self.before
        reached = sick.reached
        if chosen is not None:
            place, found, treated, seen, trial = self.tried[chosen]
            count = trial.points[-1][0]
            same = sick if sick.points[-1][0] == count else self.trial(
                self.given, Change(), count)  # fmt: skip
            proof = Proof(same, trial, (self.before, seen))
            better = not same.loss <= trial.loss and trial.loss < BETTER * same.points[0][1]
            if better and (trial.reached or not sick.reached):
                change, after, reached = found, seen, trial.reached
                self.attempts[place] = replace(self.attempts[place], accepted=True)
                cured = treated
                if in_place and change.same_shape:
                    cured = model
                    _write(self.given, treated)
        words = change.words
        if words:
            was = f"{self.before.verdict} → {after.verdict}: " if after is not self.before else ""
            summary = f"cured: {was}{words}" if reached else (
                f"improved, but short of {self.goal}: {words}")  # fmt: skip
        elif reached:
            summary = f"nothing to cure: the model reaches {self.goal} as it is"
        else:
            summary = f"not cured: none of {len(self.tried)} changes did better"
        return ModelCure(
            self.before, after, tuple(self.attempts), cured, proof, reached, self.goal, summary,
            _patch(change), self.passes / self.steps, self.steps, self.size, change.rate,
            change.clip,
        )  # fmt: skip


def badness(diagnosis: Diagnosis) -> float:
    """In decades: of the chain, and what findings that are no chain count for."""
    worst = max((abs(f.evidence.get("decades", 2.0)) for f in diagnosis.findings), default=0.0)
    critical = sum(f.severity == "critical" for f in diagnosis.findings)
    return worst + critical + 0.1 * len(diagnosis.findings)


def _write(model: Module, treated: Module) -> None:
    values = copy.copy(dict(treated.named_parameters()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def _patch(change: Change) -> str:
    """Code that does the same to the user's model."""
    if not change.words:
        return ""
    lines = [f"# {change.words}", *change.code]
    if change.rate is not None:
        lines += ["for group in optimizer.param_groups:", f'    group["lr"] = {change.rate!r}']
    if change.clip is not None:
        lines += ["# before each step:",
                  f"vegrad.torch.clip_grad_norm_(model.parameters(), {change.clip!r})"]  # fmt: skip
    return "\n".join(lines) + "\n"
