"""What is found to be wrong, and what a training's history tells of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vegrad.flow.finding import Finding

History = Any  # vegrad.History, which asks this module

CLIMBS = 0.1  # share of steps looked at after which the loss may be higher than before
LONG = 0.5  # median α
LITTLE = 0.1  # of its first value: what the loss must have lost by the end
THROWN = 100.0  # times its first value: a loss that has been there has lost what it knew
BABY, NEARLY_ALL = 1e-3, 0.9  # 1 + α of the median step; share of the steps within 5 times that
ENOUGH = 20  # steps before anything is called stalled
RISE, RISES, EPOCHS = 0.03, 0.2, 5  # of the loss from epoch to epoch; share of epochs; at least


def of_history(history: History) -> tuple[Finding, ...]:
    """overshooting, stalled, oscillating: what loss and α say of the steps.

    α is Cockpit's gauge (Schneider et al. 2021, arXiv:2102.06604), seen at some of the steps. On
    the parabola along a step, lr/(1 + α) would have landed at the minimum. Where the loss climbs,
    the parabola is taken through the loss before, its slope and the loss after.

    - overshooting: the loss of the batch is higher after the step in a tenth of those looked at, or
      half of them go past the minimum by half its distance (α > 0.5), or past it at all while the
      loss is no lower at the end than at the start;
      It is critical if the loss has lost less than a tenth of its first value by the end, or was
      100 times that in between;
    - stalled: after 20 steps the loss has lost less than a tenth of what it was, or the steps
      looked at, each on its own batch, take so little off that all together cannot have (losses of
      single batches differ by more), or steps go less than a thousandth of the way to the minimum
      along them, and no step overshoots;
    - oscillating: of at least 5 epochs, a fifth end 3 % above the one before (the rule of
      AUTOTRAINER, Zhang et al. 2021, arXiv:2002.05945, on the loss).
    """
    if history.steps == 0:
        return ()
    found = [_overshooting(history)]
    if found[0] is None:
        found.append(_stalled(history))
    found.append(_oscillating(history))
    return tuple(finding for finding in found if finding is not None)


def _looks(history: History) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    alpha = history.alpha
    steps = np.flatnonzero(~np.isnan(alpha))
    return steps, alpha[steps]


def _overshooting(history: History) -> Finding | None:
    steps, alpha = _looks(history)
    if not len(steps):
        return None
    fallen = _fall(history)
    before, after = history.loss[steps], history.loss_after[steps]
    median, climbs = float(np.median(alpha)), ~(after <= before)
    diverged = not fallen > 0 and median > 0
    share = float(climbs.mean())
    if not (share >= CLIMBS or median > LONG or diverged):
        return None
    beyond = climbs if climbs.any() else alpha > min(LONG, median - 1e-12)
    first = int(steps[beyond][0])
    rate = float(history.learning_rate[first])
    if climbs.any():
        slope = (history.slope * history.step_length)[steps[climbs]]
        with np.errstate(all="ignore"):
            part = np.nan_to_num(slope / (2 * (slope + before[climbs] - after[climbs])))
        wanted = rate * float(np.median(part))
        past = (
            f"the loss of {100 * share:.0f} % of the batches is higher after the step than before"
        )
    else:
        wanted = rate / (1 + float(np.median(alpha[beyond])))
        past = "they pass the minimum"
    message = f"from step {first} on steps are too long: {past} (α {median:+.2g})"
    message += "" if fallen > 0 else "; the loss is no lower than at the start"
    advice = f"lower the learning rate from {rate:.3g} to {wanted:.2g}, which would land at the "
    advice += "minimum along the step"
    if (history.coefficient == 1).all():
        norm = float(np.nanmedian(history.gradient_norm[: first + 1]))
        advice += f", or clip the gradients' global norm at {norm:.2g}, what it was until then"
    evidence = {"step": first, "alpha": median, "climbs": share}
    evidence |= {"learning_rate": rate, "wanted": wanted}
    thrown = not float(np.max(history.loss)) <= THROWN * history.loss[0]
    severity = "warning" if fallen > LITTLE and not thrown else "critical"
    return Finding("overshooting", severity, (), message, advice + ".", evidence)


def _stalled(history: History) -> Finding | None:
    steps, alpha = _looks(history)
    fallen = float(np.fmin(_fall(history), _fall_by_looks(history, steps)))
    baby = len(steps) > 0 and np.median(1 + alpha) < BABY
    baby = baby and np.quantile(1 + alpha, NEARLY_ALL) < 5 * BABY
    if history.steps < ENOUGH or not (fallen < LITTLE or baby):
        return None
    message = f"the loss has lost {100 * max(fallen, 0):.1f} % in {history.steps} steps"
    evidence = {"fall": fallen, "steps": history.steps}
    advice = "see what diagnose says of the gradients."
    if len(steps):
        median, last = float(np.median(alpha)), int(steps[-1])
        rate = float(history.learning_rate[last])
        wanted = rate / (1 + median) if median > -1 else np.inf
        evidence |= {"step": last, "alpha": median, "learning_rate": rate, "wanted": wanted}
        if median < -LONG:
            way = float(f"{1 / (1 + median):.2g}") if median > -1 else np.inf
            message += f": baby steps, 1/{way:g} of the way to the minimum"
            message += f" (α {median:+.4f})"
            advice = f"raise the learning rate from {rate:.3g} towards {wanted:.2g}, which would "
            advice += (
                "land at the minimum along the step; if that does not help, see what diagnose "
            )
            advice += "says of the gradients."
        else:
            message += f", though they reach the minimum of their direction (α {median:+.2f})"
    return Finding("stalled", "critical", (), message, advice, evidence)


def _oscillating(history: History) -> Finding | None:
    loss = history.epoch_loss
    if len(loss) < EPOCHS:
        return None
    rises = np.diff(loss) > RISE * np.abs(loss[:-1])
    share = float(rises.mean())
    if share < RISES:
        return None
    first = int(history.epoch_steps[: np.flatnonzero(rises)[0] + 1].sum())
    rate = float(history.learning_rate[-1])
    message = f"the loss rises from one epoch to the next in {100 * share:.0f} % of them, first at"
    message += f" step {first}"
    advice = f"lower the learning rate, from {rate:.3g} to {rate / 3:.2g}, or let it fall (cosine)."
    evidence = {"share": share, "step": first, "learning_rate": rate}
    return Finding("oscillating", "warning", (), message, advice, evidence)


def _fall(history: History) -> float:
    """By what part of its first value the loss is lower in the last epoch's steps; nan if it is."""
    loss = history.loss
    count = int(history.epoch_steps[-1]) if history.epochs else len(loss)
    with np.errstate(all="ignore"):
        return float(1 - np.mean(loss[-min(count, max(len(loss) // 2, 1)) :]) / loss[0])


def _fall_by_looks(history: History, steps: npt.NDArray[np.intp]) -> float:
    """By what part all steps would lower the loss if each did what those looked at do; nan if none.

    That of a step's own batch, which falls by more than that of all rows.
    """
    before, after = history.loss[steps], history.loss_after[steps]
    with np.errstate(all="ignore"):
        part = np.log(after / before)
    part = part[np.isfinite(part)]
    return float(-np.expm1(history.steps * np.mean(part))) if part.size else np.nan
