"""Second looks of a monitor: a diagnosis of the step, where sizes alone suggest a cause."""

from __future__ import annotations

from math import isfinite, isnan
from statistics import median

from vegrad.diagnosis.judge import judge
from vegrad.diagnosis.second import AT_LOSS, GONE, NO_GRADIENT, ZERO, can_contradict, questions
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.torch.monitor.looks import Looks
from vegrad.torch.monitor.report import Report, report
from vegrad.torch.monitor.steps import StepHooks

FEW = 4  # steps in which a parameter got no gradient before the graph is asked for the reason
TINY = 1e-8  # of the joint norm, below which a gradient is none
LOSSES = 10  # steps of which the losses have to be negative
UNLEARNT = 0.9  # of the loss of guessing, which a network that has learnt nothing is not below
BEYOND = 3.0  # times the first loss
LATER = 10  # times the step at which nothing was found, from which there may be another look


class Again:
    """Findings of second looks, by the cause that was doubted.

    Each is one pass of the model forward and back, so that there is one for each cause; only where
    nothing was found may there be another, much later.
    """

    def __init__(self) -> None:
        self.found: dict[str, tuple[Finding, ...]] = {}
        self._steps: dict[str, int] = {}
        """The step of the last look for each question, also of one that told nothing."""

    def report(self, monitor: StepHooks, flush_gain: float | None, looks: Looks) -> Report:
        """Return a monitor's report, after second looks at what it doubts."""
        first = report(monitor, flush_gain, looks, self.found)
        step = monitor.history.looked.last_step
        doubted = {*questions(first.findings), *_without_gradient(monitor)}
        doubted |= {ZERO} if any(one.rule in GONE for one in first.findings) else set()
        doubted |= {AT_LOSS} if _is_doubtful(monitor) else set()
        asked = [one for one in sorted(doubted) if self._is_open(one, step)]
        if not asked or monitor.nonfinite is not None:
            return first
        self._steps |= dict.fromkeys(asked, step)
        self._look(monitor, [one for one in asked if one != AT_LOSS], of_term=False)
        self._look(monitor, [one for one in asked if one == AT_LOSS], of_term=True)
        return report(monitor, flush_gain, looks, self.found)

    def _look(self, monitor: StepHooks, asked: list[str], *, of_term: bool) -> None:
        further = ZERO in asked
        reading = monitor.first.again(of_term=of_term, further=further) if asked else None
        findings = None if reading is None else _judged(reading)
        if findings is not None:
            self.found |= dict.fromkeys(asked, findings)

    def _is_open(self, question: str, step: int) -> bool:
        if question not in self._steps:
            return True
        return not self.found.get(question) and step >= LATER * (self._steps[question] + 1)


def _is_doubtful(monitor: StepHooks) -> bool:
    """Return True if the loss may not be made for what it gets.

    A cross entropy times -1 is what some take to unlearn, or to deceive another network. It is
    doubtful where nothing was learnt before, and from the first step on all losses are negative
    and fall without end.
    """
    term = monitor.first.term
    if term is None or term.guess is None:
        return monitor.first.is_doubtful
    losses = [one for one in monitor.history.losses if isfinite(one)]
    if len(losses) < LOSSES or max(losses) >= 0:
        return False
    first, last = -median(losses[:3]), -median(losses[-3:])
    return first >= UNLEARNT * term.guess() and last > BEYOND * first


def _judged(reading: Reading) -> tuple[Finding, ...] | None:
    """Return what is wrong by a reading; None if that it is healthy means nothing."""
    found = judge(reading)
    return found if found or can_contradict(reading) else None


def _without_gradient(monitor: StepHooks) -> tuple[str, ...]:
    """Return the question of parameters without a gradient, of modules that ran, beside others."""
    looked = monitor.history.looked
    if len(looked) < FEW:
        return ()
    lately = [looked[place] for place in range(-FEW, 0)]
    if not all(one.gradient_norm > 0 for one in lately):
        return ()
    ran = {
        name
        for own, size in zip(monitor.own, lately[-1].activation_rms.tolist(), strict=True)
        for name in own
        if not isnan(size)
    }
    # Those under no_grad() have no size, but the optimizer means to train them.
    quiet = {name for place in monitor.run_order[: monitor.ran] for name in monitor.own[place]}
    held = monitor.loop.steps.ids
    trained = dict(zip(monitor.parameters, monitor._params, strict=False))
    missing = (
        name
        for place, name in enumerate(monitor.parameters)
        if name in trained
        and (name in ran or (name in quiet and id(trained[name]) in held))
        and trained[name].requires_grad
        and not any(one.gradient_norms[place] > TINY * one.gradient_norm for one in lately)
    )
    return (NO_GRADIENT,) if any(missing) else ()
