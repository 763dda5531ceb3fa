"""The end of a search: the proof of what was chosen, and the outcome in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.edits import SCALES, TRAINING, parts
from vegrad.treatment.budget import Budget, Tried
from vegrad.treatment.by_heart import by_heart
from vegrad.treatment.goal import Goal
from vegrad.treatment.learnability import about_data
from vegrad.treatment.outcome import Attempt, Outcome, Proof
from vegrad.treatment.promise import ABOVE, unreached
from vegrad.treatment.remedy import Treatment
from vegrad.treatment.trial import Trial

LONGER = (
    "more width is no help; begin with gates for the length (chrono) or another cell that carries "
    "its state so far, and give it more steps"
)
UNSEEN = "the goal was reached once; a larger budget tells if the change holds it, or finds another"
LEAST = 0.01  # of a guess's loss, that a change which does not reach the goal must gain


def conclude(
    given: Treatment,
    before: Diagnosis,
    attempts: Sequence[Attempt],
    budget: Budget,
    chosen: Tried | None,
    problem: tuple[str, ...] = (),
) -> tuple[Outcome, Treatment]:
    """Prove what was chosen; what was given stays as it was if it does as well.

    Args:
        given: what is to be cured.
        before: its diagnosis.
        attempts: everything that was tried.
        budget: with the training of what was given, which goes on as far as the proof needs it.
        chosen: the best of what was tried, if anything was trained.
        problem: what is wrong with the data, if that is known.

    Returns:
        The outcome, and the treatment that it recommends.
    """
    sick, plan, attempts, lost = budget.sick, budget.plan, list(attempts), False
    after, treatment, proof, reached = before, given, None, sick.reached
    if chosen is not None:
        trial = chosen.trial
        _catch_up(sick, trial.history.steps)
        proof = Proof(sick, trial, (before, chosen.after))
        gained = proof.loss[0] - proof.loss[1]
        better = trial.reached or not gained <= LEAST * abs(plan.goal.guess)
        # Classes may be right though the loss is worse than a guess's.
        above = proof.loss[0] > ABOVE * plan.goal.guess >= ABOVE * proof.loss[1]
        reached = sick.reached and not (above and trial.reached)
        if better and not reached:  # what works is left alone
            treatment, after = trial.treatment, chosen.after
            lost = plan.whole and attempts[chosen.place].ended == "luck"
            reached = trial.reached and not lost
            why = "reached the goal" if reached else "the best, though short of the goal"
            attempts[chosen.place] = replace(attempts[chosen.place], accepted=True, why=why)
    size, heart = budget.batch_size, None
    if reached:
        steps = sick.history.steps if proof is None else proof.steps
        heart = by_heart(treatment, replace(plan, batch_size=size), steps)
    if heart is not None:
        problem = (*problem, heart[0])
        budget.again.append(heart[1])
        # What has put a gradient right has cured that, whatever there is to learn.
        put_right = after.healthy and not before.healthy
        if chosen is not None and not (treatment is given or put_right):
            at = attempts[chosen.place]
            attempts[chosen.place] = replace(at, ended="by-heart", why=heart[0])
    patch = ""
    if treatment is not given:
        subject, words = treatment.subject, treatment.words
        patch = subject.patch(words, treatment.lines, steps=plan.steps, batch_size=size)
    if not (reached or problem):
        problem = (UNSEEN,) if lost else _lessons(given, plan.goal, before, after)
    outcome = Outcome(
        before=before,
        after=after,
        attempts=tuple(attempts),
        proof=proof,
        reached=reached,
        goal=plan.goal,
        summary=_summary(before, after, attempts, plan.goal, given.subject.noun, reached=reached),
        patch=patch,
        cost=budget.cost,
        steps=plan.steps,
        batch_size=size,
        about=problem,
    )
    return outcome, treatment


def about(given: Treatment, goal: Goal, *, quick: bool = False, then: str = "") -> tuple[str, ...]:
    """Say what is wrong with the data, if they are rows of numbers and labels or numbers.

    If they can be learnt, say what to do `then`.
    """
    table = given.subject.data.table(goal.kind)
    return () if table is None else about_data(*table, goal, quick=quick, then=then)


def _lessons(given: Treatment, goal: Goal, before: Diagnosis, after: Diagnosis) -> tuple[str, ...]:
    """Say what is left where nothing has helped: the data, and what no edit has put right.

    That is the first finding, where it asks for no change of the network.
    """
    far = unreached(before)
    then = "give the network more width, or more steps" if after.healthy else ""
    said = about(given, goal, then=f"{far}, so that {LONGER}" if far else then)
    if after.healthy:
        return said
    edit = after.findings[0].edit
    single = () if edit is None else parts(edit)
    if any(not isinstance(one, (*SCALES, *TRAINING)) for one in single):
        return said
    return (*said, f"{after.findings[0].message}: {after.findings[0].advice}")


def _catch_up(sick: Trial, count: int) -> None:
    """Train what was given for as many steps as what was chosen."""
    while sick.history.steps < count and not sick.ended:
        sick.block(min(sick.block_steps, count - sick.history.steps), looking=False)
    if sick.history.steps == count:
        sick.look()


def _summary(
    before: Diagnosis,
    after: Diagnosis,
    attempts: Sequence[Attempt],
    goal: Goal,
    noun: str,
    *,
    reached: bool,
) -> str:
    """Say in a sentence how the search ended."""
    accepted = next((attempt for attempt in attempts if attempt.accepted), None)
    if accepted is not None and accepted.ended == "by-heart":
        return f"not cured: {accepted.change} reaches {goal}, but only by heart"
    if accepted is not None and reached:
        was = "" if before.healthy else f"{before.verdict} → {after.verdict}: "
        return f"cured: {was}{accepted.change}"
    if accepted is not None:
        short = "not seen to stay at" if accepted.ended == "luck" else "short of"
        return f"improved, but {short} {goal}: {accepted.change}"
    if reached:
        but = "" if before.healthy else f"{before.verdict}, but "
        return f"nothing to cure: {but}the {noun} reaches {goal} as it is"
    if not attempts:
        return f"not cured: no change of the {noun} can help, and none was tried"
    tried = sum(attempt.after is not None for attempt in attempts)
    return f"not cured: none of {tried} changes reached {goal}"
