"""Judge from one pass, or from the beginning of a training, whether a change is promising."""

from __future__ import annotations

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.rules.memory import lost_on_the_way
from vegrad.flow.wording import power
from vegrad.reports.values import count_of
from vegrad.treatment.outcome import Ended
from vegrad.treatment.rates import CREEPING, long_steps, median_alpha, short_steps
from vegrad.treatment.trial import Trial

# Of a training: by then so much of the way to the goal must be done, or the loss be falling.
NEEDED = ((0.1, 0.01), (0.2, 0.1), (0.3, 0.2), (0.45, 0.35), (0.6, 0.5))
PATIENT = 2  # looks at a training whose gradient now gets to what the target depends on
LATE = 0.2  # of a training: from then on a loss must fall as fast as the goal asks for
ABOVE = 1.2  # times the guess's loss
THROWN = 3.0  # times the first loss and the guess's: what was learnt by then is lost
HIGH = 2.0  # times the guess's loss
HALF = 0.5  # of the way
FAR = 4.0  # decades, that a gradient may lose on its way to what tells of the target
NEAR = 2.0  # decades, by which it has come there
STANDING = -0.99  # median α of steps that are as good as none


def hopeless(trial: Trial, *, patient: int = 0) -> bool:
    """Return True if a training has learnt too little to go on with.

    It may have learnt nothing at the first so many looks.
    """
    needed = [way for share, way in NEEDED[patient:] if trial.share >= share]
    if not needed or trial.way >= needed[-1] or trial.on_the_way:
        return False
    return not (trial.moving and trial.share <= LATE)


def creeping(trial: Trial) -> bool:
    """Return True if the gauge says of a training that its steps are far too short."""
    short = trial.share >= NEEDED[0][0] and median_alpha(trial.history) < CREEPING
    return short and trial.way < HALF and not trial.on_the_way


def standing(trial: Trial) -> bool:
    """Return True if steps are a hundred times too short, which the first look tells.

    That takes a front end that gauges more than the first step by then.
    """
    return trial.treatment.subject.early > 0 and median_alpha(trial.history) < STANDING


def thrown(trial: Trial) -> bool:
    """Return True if a training is far above its beginning and above a guess."""
    return trial.points[-1][1] > THROWN * max(trial.points[0][1], trial.goal.guess)


def astray(trial: Trial) -> bool:
    """Return True if the steps of a training may be to blame that it missed the goal."""
    history = trial.history
    return bool(trial.ended) or rose(trial) or long_steps(history) or short_steps(history)


def rose(trial: Trial) -> bool:
    """Return True if a training ended above its beginning, and above a guess."""
    return trial.points[-1][1] > max(trial.points[0][1], ABOVE * trial.goal.guess)


def ended(trial: Trial) -> tuple[Ended, str]:
    """Return how a training ended, as in `Attempt.ended`, and the sentence for it."""
    steps = trial.history.steps
    if trial.reached:
        return "reached", "reached the goal"
    if trial.ended:
        return "diverged", trial.ended
    if hopeless(trial):
        return "learns-nothing", f"learns nothing in {count_of(steps, 'step')}"
    return "slow", f"not at the goal after {count_of(steps, 'step')}"


def worse(before: Diagnosis, after: Diagnosis, *, scaled: bool, said: bool = False) -> str:
    """Return why a change is not promising, from one pass; "" if it is.

    Data that were scaled may show what was hidden before. What the diagnosis itself has `said` is
    promising if it is any better.
    """
    if after.healthy or before.healthy:
        return ""
    first = after.findings[0]
    if badness(after) >= badness(before) and not scaled:
        return f"no better: {first.kind}: {first.message}"
    if not (said or scaled) and any(finding.severity == "critical" for finding in after.findings):
        return f"still {first.kind}: {first.message}"
    return ""


def high(diagnosis: Diagnosis, guess: float) -> str:
    """Return why a change may wait for gentler ones: its loss begins far above a guess's."""
    loss = diagnosis.loss
    if loss is None or loss <= HIGH * guess:
        return ""
    return f"its loss begins at {loss:.3g}, where that of a guess is {guess:.3g}"


def unreached(diagnosis: Diagnosis) -> str:
    """Return why a training of recurrent cells is not promising, from one pass; "" if it is."""
    reading = diagnosis.reading
    lost = 0.0 if reading is None else lost_on_the_way(reading)
    if lost <= FAR:
        return ""
    return f"only {power(-lost)} of the gradient gets to what the target depends on"


def brings(before: Diagnosis, after: Diagnosis) -> bool:
    """Return True if a change brings the gradient to what the target depends on.

    The fault is then mended, and the rest is for the training to do, which takes its time.
    """
    reading = after.reading
    return bool(unreached(before)) and reading is not None and lost_on_the_way(reading) <= NEAR


def badness(diagnosis: Diagnosis) -> float:
    """Add up how bad a diagnosis is, in decades; a finding that is of no chain counts for 2."""
    worst = max((abs(f.evidence.get("decades", 2.0)) for f in diagnosis.findings), default=0.0)
    critical = sum(f.severity == "critical" for f in diagnosis.findings)
    return worst + critical + 0.1 * len(diagnosis.findings)
