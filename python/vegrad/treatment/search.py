"""From a sick network to the smallest change that cures it, and the proof by a re-run."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.networks.diagnosis import diagnose
from vegrad.networks.mlp import MLP
from vegrad.networks.reading import expected_or_none
from vegrad.optim import Adam, Optimizer
from vegrad.treatment.learnability import about_data
from vegrad.treatment.outcome import Attempt, Cure, Ended, Proof
from vegrad.treatment.remedies import (
    CREEPING,
    FOLLOWING,
    REMEDIES,
    SCALE_DATA,
    TRAINING,
    long_steps,
    median_alpha,
)  # fmt: skip
from vegrad.treatment.remedy import AS_IT_IS, Patient, Remedy, Treatment, clone, written_optimizer
from vegrad.treatment.trial import Goal, Trial, check_goal, check_lengths, goal_for

LEAST_ROWS = 8  # to look at, however short a training is
LOOKED_AT = 256  # rows on which loss and accuracy are taken
BATCHES = 4  # and those of a diagnosis, in batches
# Of a training: by then so much of the way to the goal must be done, or the loss be falling.
NEEDED = ((0.1, 0.01), (0.2, 0.1), (0.3, 0.2), (0.45, 0.35), (0.6, 0.5))
# What is kept for others may be spent on a trial that has come so much of the way, or so many times
# the share of a training that it has taken.
ALMOST, FAST = 0.9, 3.0
LATE = 0.2  # of a training: from then on a falling loss is not enough
ABOVE = 1.2  # times the guess's loss
HALF = 0.5  # of the way
# Layers over their width, beyond which no weights are sure to help: the logarithm of the squared
# gradient varies from draw to draw by 5 times that (Hanin & Nica 2020); and what is then kept, of
# the usual budget, for remedies whose gradient need not pass all layers.
NARROW, FOR_SKIPS = 0.5, 1.25
BUDGET = 1.5  # trainings: the usual one, in parts of which remedies keep passes for others
AGAIN = 3  # times the steps of a cure in which it must do without its luck
LUCK = "reached the goal, but not with the rows in another order"
GIVE_UP = 0.1  # of a training: less is no trial
DEEP = 3  # change of the training on top of one of the network


def cure(
    network: MLP,
    x: Any,
    target: Any,
    *,
    goal: float | None = None,
    optimizer: Optimizer | None = None,
    steps: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    budget: float = BUDGET,
) -> Cure:
    """Find the smallest change that makes `network` train, and prove it.

    Remedies are tried in the order of `remedies.REMEDIES`, the smallest change first. Each is
    judged by one pass; if that is promising, by a training from the same seed on the same rows,
    which ends as soon as it reaches the goal or is seen to learn nothing. The first that reaches
    the goal, and reaches it again with the rows in another order if the budget allows, is the cure.
    Then the given network is trained for as many steps: the proof.

    Args:
        network: a `vegrad.MLP`, which stays as it is.
        x: the inputs (N, I).
        target: as for `MLP.backward`, for all rows.
        goal: an accuracy, at least, for the two cross entropies; for mse a loss, at most. By
            default 80 % of the way from the best constant output to perfection, for mse half of
            it. It is looked at on up to 256 of the rows.
        optimizer: of vegrad.optim, with its clip; it stays as it is. By default Adam(1e-3).
        steps: of one training.
        batch_size: rows of a step.
        seed: of the order of the rows, of the rows to look at and of new weights, if the network
            has no seed of its own.
        budget: the most that may be spent, in trainings of `steps`, the given network's included.
            (Trainings of under some hundred rows cost less than a look at them; they may pass it.)

    Raises:
        TypeError, ValueError: as `MLP.fit`; a goal or budget out of range.
    """
    if optimizer is None:
        optimizer = Adam(1e-3)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of vegrad.optim's, not {type(optimizer).__name__}")
    steps, batch_size = check_lengths(steps, batch_size, budget)
    check_goal(goal, network.config["loss"])
    given = Treatment(AS_IT_IS, clone(network), optimizer)
    data, wanted = network.checked(x, target)
    aim = goal_for(network.config["loss"], wanted, None if goal is None else float(goal))
    if not _finite(data, wanted):
        before = diagnose(given.network, data, wanted)  # says where, and runs nothing
        return _nothing(given, before, aim, steps, batch_size)
    found: Cure = Search(given, data, wanted, aim, steps, batch_size, seed, budget).run()
    return found


def _finite(*arrays: Array) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _nothing(given: Treatment, before: Diagnosis, goal: Goal, steps: int, batch: int) -> Cure:
    why = "no change of the network makes up for values that are not finite"
    return Cure(network=given.network, optimizer=given.optimizer,
                **without_a_trial(before, goal, steps, batch, why))  # fmt: skip


def without_a_trial(
    before: Diagnosis, goal: Goal, steps: int, batch_size: int, why: str
) -> dict[str, Any]:
    """The outcome where nothing could be run."""
    return {
        "before": before, "after": before, "attempts": (), "proof": None, "reached": False,
        "goal": goal, "summary": f"not cured: {before.summary}", "patch": "", "cost": 0.0,
        "steps": steps, "batch_size": batch_size, "about": (why,),
    }  # fmt: skip


class Search:
    """The attempts of one cure, and what they have cost.

    What it is done to is the business of the treatments and of `examined`, `about`, `outcome` and
    `_trial`, which a subclass has of its own for other kinds of networks.
    """

    scale_data = SCALE_DATA
    remedies: tuple[Remedy, ...] = REMEDIES
    following: tuple[Remedy, ...] = FOLLOWING
    noun = "network"

    def __init__(
        self, given: Treatment, x: Any, target: Any, goal: Goal,
        steps: int, batch_size: int, seed: int, budget: float,
    ) -> None:  # fmt: skip
        self.given, self.x, self.target, self.goal = given, x, target, goal
        self.steps, self.batch_size, self.seed = steps, min(batch_size, len(x)), seed
        self.spendable = budget * steps * self.batch_size  # rows
        drawn = np.random.default_rng(seed).permutation(len(x))
        whole = steps * self.batch_size
        most = max(LEAST_ROWS, whole // 50)  # a pass shall cost little beside a training
        rows = drawn[: min(most, max(64, min(LOOKED_AT, BATCHES * self.batch_size)))]
        self.patient = self.examined(rows)
        self.rows = np.sort(drawn[: min(LOOKED_AT, max(LEAST_ROWS, whole // 20))])
        self.attempts: list[Attempt] = []
        self.trials: list[tuple[int, Trial, Diagnosis]] = []
        self.again: list[Trial] = []
        self.sick = self._trial(given)
        self.kept = 0.0

    def examined(self, rows: Array) -> Patient:
        """The given network, looked at on these rows."""
        x, target = self.x[rows], self.target[rows]
        before = diagnose(self.given.network, x, target, resamples=0)
        return Patient(self.given, self.x, self.target, rows, before, self.seed,
                       passed=float(len(rows)))  # fmt: skip

    def about(self, *, quick: bool = False) -> tuple[str, ...]:
        """What is wrong with the data."""
        return about_data(self.x, self.target, self.goal, quick=quick)

    def outcome(self, treatment: Treatment, **found: Any) -> Any:
        """What is handed to the user."""
        patch = ""
        if treatment is not self.given:
            patch = self._patch(treatment)
            expected = expected_or_none(treatment.network, self.patient.sample(treatment))
            found["after"] = replace(found["after"], expected=expected)
        return Cure(network=treatment.network, optimizer=treatment.optimizer,
                    scaling=treatment.scaling, patch=patch, **found)  # fmt: skip

    # Costs, in rows that went forward and back

    def _trial(self, treatment: Treatment, order: int = 0) -> Trial:
        return Trial(treatment, self.x, self.target, self.rows, self.goal, self.batch_size,
                     self.steps, self.seed + order)  # fmt: skip

    @property
    def spent(self) -> float:
        """So far."""
        trained = sum(trial.passed for _, trial, _ in self.trials)
        trained += self.sick.passed + sum(trial.passed for trial in self.again)
        return self.patient.passed + trained

    def _room(self, steps: int, kept: float = 0.0) -> bool:
        """Whether a trial may come to so many steps, and the given network after it.

        `kept` of the usual budget, or as large a part of another, is then left.
        """
        block, rows = self.sick.block_steps, len(self.rows) / 3
        # The best may be the trial that goes on now, or, if that gets worse, the best before it.
        bests = [self._best(), self._best(len(self.trials) - 1)]
        proof = max(steps, *(0 if b is None else self.trials[b][1].history.steps for b in bests))
        behind = max(0, proof - self.sick.history.steps)
        ahead = block * self.batch_size * (1.0 + 1.0 / block) + 2 * rows
        gauge = 1.0 + 1.0 / (2 * block)
        rows += self.batch_size  # the gauge looks at the first step too
        return self.spent + ahead + behind * self.batch_size * gauge + rows <= (
            (1.0 - kept / BUDGET) * self.spendable
        )

    def _over(self, trial: Trial) -> bool:
        """Whether a trial is to be ended: it learns nothing, or nothing is left to spend."""
        kept = 0.0 if trial.way >= min(ALMOST, FAST * trial.share) else self.kept
        slow = self.patient.diagnosis.healthy and _creeping(trial)
        if slow or _hopeless(trial, patient=self.kept == 0.0):
            return True
        return not self._room(trial.history.steps + trial.block_steps, kept)

    # The search

    def run(self) -> Any:
        """The outcome."""
        problem = self.about(quick=True)
        if problem:
            return self._conclude(None, problem)
        remedies = [r for r in self.remedies if self.patient.kinds & r.kinds]
        if self.patient.diagnosis.healthy:
            scaled = self.scale_data.apply(self.patient)
            if isinstance(scaled, str):
                self.sick.train(self.steps, lambda trial: _hopeless(trial) or _creeping(trial))
                if self.sick.reached:
                    return self._conclude(None)
                self.patient.history = self.sick.history
            larger = (r for r in self.remedies if r.skips and r.kinds >= TRAINING)
            remedies = [self.scale_data, *self.following, *larger]
        base = self.patient
        for remedy in remedies:
            self.kept = self._kept(remedy)
            if not self._worth_a_trial():
                continue
            patient = replace(base, passed=0.0)
            chosen = self._attempt(remedy, patient, DEEP)
            if chosen is not None:
                return self._conclude(chosen)
            if patient.given.scaling is not None:
                base = replace(patient, passed=0.0)  # the data stay scaled for all that follows
        self.kept, best = 0.0, self._best()
        if best is not None:  # with what is left
            place, trial, after = self.trials[best]
            chosen = self._follow(self.attempts[place].name, trial, after, base, DEEP)
            if chosen is not None:
                return self._conclude(chosen)
        return self._conclude(self._best())

    def _kept(self, remedy: Remedy) -> float:
        """Of the usual budget, to be left for remedies that are larger changes, and surer."""
        hidden = self.patient.diagnosis.config.get("sizes", ())[1:-1]
        narrow = sum(1.0 / width for width in hidden) > NARROW
        return FOR_SKIPS if narrow and not remedy.skips else remedy.kept

    def _worth_a_trial(self) -> bool:
        """Whether there is room for one; the first change has it, whatever is kept for others."""
        return self._room(int(GIVE_UP * self.steps), self.kept if self.trials else 0.0)

    def _follow(
        self, name: str, trial: Trial, after: Diagnosis, patient: Patient, deeper: int
    ) -> int | None:
        """What the history of a trial asks for, on top of it."""
        for following in self.following:
            on_top = replace(patient, given=trial.treatment, diagnosis=after, passed=0.0,
                             history=trial.history)  # fmt: skip
            if not trial.history.steps or not self._worth_a_trial():
                return None
            remedy = replace(following, name=f"{name}, {following.name}")
            chosen = self._attempt(remedy, on_top, deeper - 1 if following.followed else 0)
            if chosen is not None:
                return chosen
        return None

    def _attempt(self, remedy: Remedy, patient: Patient, deeper: int) -> int | None:
        """Tries it; the number of the trial that reached the goal."""
        treatment = remedy.apply(patient)
        before = patient.diagnosis
        if isinstance(treatment, str):
            self.patient.passed += patient.passed
            # Clipping makes gradients smaller: it can never bring back those that vanish.
            never = (
                remedy.name == "clip" and patient.history is None and "vanishing" in patient.kinds
            )
            ended: Ended = "impossible" if never else ""
            self.attempts.append(Attempt(remedy.name, "", False, treatment, before, ended=ended))
            return None
        same = treatment.network is patient.given.network
        after = before if same else patient.look(treatment)
        self.patient.passed += patient.passed
        cost = patient.passed / self.batch_size
        done = Attempt(remedy.name, treatment.words, False, "", before, after, passes=cost)
        why, ended = "" if same else _worse(before, after, treatment), "no-better"
        if not why and not self._worth_a_trial():
            why, ended = "no passes are left to train it", "no-passes"
        if why:
            self.attempts.append(replace(done, why=why, ended=ended))
            return None
        if treatment.scaling is not None:
            patient.given, patient.diagnosis = treatment, after
        trial = self._trial(treatment)
        self.trials.append((len(self.attempts), trial, after))
        trial.train(self.steps, self._over)
        (_, *first), (count, *last) = trial.points[0], trial.points[-1]
        ended, why = _ended(trial)
        passes = cost + trial.passed / self.batch_size
        loss, accuracy = ((a, b) for a, b in zip(first, last, strict=True))
        done = replace(
            done, why=why, ended=ended, steps=count, passes=passes, loss=loss, accuracy=accuracy
        )
        self.attempts.append(done)
        failed = self._by_luck(trial) if trial.reached else None
        if trial.reached and failed is None:
            return next(i for i, (_, other, _) in enumerate(self.trials) if other is trial)
        if failed is not None:
            cost = done.passes + failed.passed / self.batch_size
            self.attempts[-1] = replace(done, why=LUCK, ended="luck", passes=cost)
        healthy = remedy.kinds == TRAINING and self.patient.diagnosis.healthy
        astray = trial.ended or _rose(trial) or healthy or long_steps(trial.history)
        if deeper and (failed is not None or astray):
            return self._follow(remedy.name, failed or trial, after, patient, deeper)
        return None

    def _by_luck(self, trial: Trial) -> Trial | None:
        """The same training with the rows in another order, if that does not reach the goal.

        None, too, where nothing is left to spend on it.
        """
        steps = trial.history.steps
        if not self._room(steps):
            return None
        again = self._trial(trial.treatment, order=1)
        self.again.append(again)
        most = max(AGAIN * steps, self.steps // 5)
        again.train(most, lambda trial: _hopeless(trial) or not self._room(steps))
        return None if again.reached or not self._room(steps) else again

    def _best(self, count: int | None = None) -> int | None:
        """The trial, of the first so many, that came furthest, though not to the goal."""
        losses = [trial.points[-1][1] for _, trial, _ in self.trials[:count]]
        known = [i for i, loss in enumerate(losses) if isfinite(loss)]
        return min(known, key=lambda i: losses[i]) if known else None

    # The end

    def _conclude(self, chosen: int | None, problem: tuple[str, ...] = ()) -> Any:
        """The proof of the trial chosen; the network as it was, if it does as well."""
        given, before = self.given, self.patient.diagnosis
        reached, after, treatment, proof = self.sick.reached, before, given, None
        if chosen is not None:
            place, trial, after = self.trials[chosen]
            count = trial.history.steps
            while self.sick.history.steps < count and not self.sick.ended:
                steps = min(self.sick.block_steps, count - self.sick.history.steps)
                self.sick.block(steps, looking=False)
            if self.sick.history.steps == count:
                self.sick.look()
            proof = Proof(self.sick, trial, (before, after))
            better = trial.reached or not proof.loss[0] <= proof.loss[1]
            if better and not self.sick.reached:  # what works is left alone
                treatment, reached = trial.treatment, trial.reached
                self.attempts[place] = replace(
                    self.attempts[place], accepted=True,
                    why="reached the goal" if reached else "the best, though short of the goal",
                )  # fmt: skip
            else:
                after, reached = before, self.sick.reached
        about = problem
        if not reached and not about:
            about = self.about()
        return self.outcome(
            treatment, before=before, after=after, attempts=tuple(self.attempts), proof=proof,
            reached=reached, goal=self.goal, summary=self._summary(after, reached),
            cost=float(self.spent / (self.steps * self.batch_size)), steps=self.steps,
            batch_size=self.batch_size, about=about,
        )  # fmt: skip

    def _summary(self, after: Diagnosis, reached: bool) -> str:
        before, tried = self.patient.diagnosis, sum(a.after is not None for a in self.attempts)
        for attempt in self.attempts:
            if attempt.accepted and reached:
                was = "" if before.healthy else f"{before.verdict} → {after.verdict}: "
                return f"cured: {was}{attempt.change}"
            if attempt.accepted:
                return f"improved, but short of {self.goal}: {attempt.change}"
        if reached:
            but = "" if before.healthy else f"{before.verdict}, but "
            return f"nothing to cure: {but}the {self.noun} reaches {self.goal} as it is"
        return f"not cured: none of {tried} changes reached {self.goal}"

    def _patch(self, treatment: Treatment) -> str:
        """From the user's network, x and target to a training of the cured network."""
        epochs = max(1, round(self.steps * self.batch_size / len(self.x)))
        lines = [f"# {treatment.words}", *treatment.code, "network.fit(", "    x,", "    target,",
                 f"    optimizer={written_optimizer(treatment.optimizer)},",
                 f"    epochs={epochs},", f"    batch_size={self.batch_size},",
                 f"    seed={self.seed},", ")"]  # fmt: skip
        imports = ["import vegrad"]
        if any("np." in line for line in treatment.code):
            imports.insert(0, "import numpy as np")
        return "\n".join([*imports, "", *lines, ""])


def _hopeless(trial: Trial, *, patient: bool = False) -> bool:
    """Whether a training has learnt too little to go on with; if patient, not at the first look."""
    needed = [way for share, way in NEEDED[patient:] if trial.share >= share]
    moving = trial.moving and trial.share <= LATE
    return bool(needed) and not (trial.way >= needed[-1] or moving)


def _creeping(trial: Trial) -> bool:
    """Whether the gauge says of a training that its steps are far too short."""
    short = trial.share >= NEEDED[0][0] and median_alpha(trial.history) < CREEPING
    return short and trial.way < HALF


def _rose(trial: Trial) -> bool:
    return trial.points[-1][1] > max(trial.points[0][1], ABOVE * trial.goal.guess)


def _ended(trial: Trial) -> tuple[Ended, str]:
    """Return the way that a training ended, and the same in words."""
    if trial.reached:
        return "reached", "reached the goal"
    if trial.ended:
        return "diverged", trial.ended
    if _hopeless(trial):
        return "learns-nothing", f"learns nothing in {trial.history.steps} steps"
    return "slow", f"not at the goal after {trial.history.steps} steps"


def _worse(before: Diagnosis, after: Diagnosis, treatment: Treatment) -> str:
    """Why a change is not promising, from one pass; "" if it is."""
    if after.healthy or before.healthy:
        return ""
    if _badness(after) >= _badness(before) and treatment.scaling is None:
        return f"no better: {after.summary.partition(';')[0]}"
    if any(finding.severity == "critical" for finding in after.findings):
        return f"still {after.summary.partition(';')[0]}"
    return ""


def _badness(diagnosis: Diagnosis) -> float:
    """In decades: of the chain, and what findings that are no chain count for."""
    worst = max((abs(f.evidence.get("decades", 2.0)) for f in diagnosis.findings), default=0.0)
    critical = sum(f.severity == "critical" for f in diagnosis.findings)
    return worst + critical + 0.1 * len(diagnosis.findings)
