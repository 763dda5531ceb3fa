"""The learning rate and the clip that the history of a training asks for, and the weight decay.

The first two rest on the gauge of steps, `History.alpha`: -1 where a step leads nowhere, 0 where it
ends in the minimum along itself, more than 1 where it climbs.
"""

from __future__ import annotations

from math import inf, isfinite

import numpy as np

from vegrad.diagnosis.history import History
from vegrad.diagnosis.rules.penalty import outweighs_log2
from vegrad.flow.edits import WeightDecay
from vegrad.flow.reading import Reading
from vegrad.flow.wording import exp2

RISEN = 1.5  # times the first loss
USUAL = 1e-3  # to begin with in place of a rate of 0
MOST = 100.0  # times, by which the learning rate is changed at once
THROWN = 3.0  # times the first loss: no single steps did that
SHORT = -0.9  # median α: a tenth of the way, which a training mostly has no time for
PART = 0.3  # of the way to the minimum of a batch along the step, that a longer step shall go
CREEPING = -0.97  # median α: a thirtieth of the way to the minimum along the step
LANDING = -0.3  # median α: momentum carries such steps beyond the minimum
SHORTER = 5.0  # times, then, and where the loss left its range; its square if the first step made
HEAVY = -2.0  # log2 of a decay's gradient over the data's: it may hold a training up
GENTLE = 0.1  # of the data's gradient: a decay that does not hold a training up
JUMP = 1e4  # times the loss: on a parabola that is 50 times beyond the longest step that descends


def wanted_rate(history: History | None) -> tuple[float, str] | str:
    """Return the learning rate that a history asks for and why, or why none.

    It leads to the minimum along the step, as the gauge saw it; where the loss left its range,
    it is a fifth or less.
    """
    if history is None or not history.steps:
        return "no training has been looked at"
    rate = float(history.learning_rate[-1])
    finding = next((f for f in history.findings if "wanted" in f.evidence), None)
    if finding is not None and finding.kind == "stalled":
        finding = None  # it advises less than what may be tried here
    if rate == 0.0:
        return USUAL, "a rate of 0 takes no steps"
    if not (history.gradient_norm != 0).any():
        return "no gradient has come back: no learning rate makes a step of it"
    tenth = max(1, history.steps // 10)
    if not np.isfinite(history.loss).all():
        far = (history.loss_after[:1] > JUMP * history.loss[:1]).any()
        wanted, why = rate / (SHORTER**2 if far else SHORTER), "the loss left its range"
    elif np.mean(history.loss[-tenth:]) > RISEN * history.loss[0]:
        # The gauge's later steps began where an earlier one had thrown the weights.
        wanted, why = rate / 10, "the loss rose"
    elif finding is not None:
        wanted = finding.evidence["wanted"]
        if finding.kind == "overshooting":
            wanted = min(wanted, first_landing(history))
            if finding.severity == "critical":
                # It has learnt nothing, and the gauge measured weights that were thrown far away.
                wanted = min(wanted, rate / 10)
        wanted = min(max(wanted, rate / MOST), rate * MOST)
        why = f"{finding.kind}: α {finding.evidence['alpha']:+.2g}"
        if not wanted < rate / 1.5:
            return f"the steps are about as long as they may be ({why})"
    elif median_alpha(history) < SHORT:
        wanted = rate * min(PART / max(1.0 + median_alpha(history), PART / MOST), MOST)
        why = f"short steps: α {median_alpha(history):+.3f}"
    elif long_steps(history):
        wanted, why = rate / SHORTER, f"long steps: α {median_alpha(history):+.2f}"
    else:
        return "the steps are neither too long nor too short"
    return float(f"{wanted:.2g}"), why


def median_alpha(history: History) -> float:
    """Return the median α of the steps that the gauge looked at; 0 if there are none."""
    alpha = history.alpha[~np.isnan(history.alpha)]
    return float(np.median(alpha)) if alpha.size else 0.0


def short_steps(history: History) -> bool:
    """Return True if the gauge saw steps go a small part of the way to the minimum along them."""
    return median_alpha(history) < SHORT


def long_steps(history: History) -> bool:
    """Return True if the gauge saw steps end near the minimum along them, or beyond it."""
    return bool((~np.isnan(history.alpha)).any()) and median_alpha(history) > LANDING


def first_landing(history: History) -> float:
    """Return the rate that would have led to the minimum along the first step that climbed.

    Later steps start from where that one has thrown the weights. It is inf if none climbed.
    """
    climbs = np.flatnonzero(history.loss_after > history.loss)
    if not climbs.size:
        return inf
    first = climbs[0]
    slope = float(history.slope[first] * history.step_length[first])
    rise = float(history.loss_after[first] - history.loss[first])
    rate = float(history.learning_rate[first])
    return rate * slope / (2.0 * (slope - rise)) if slope < 0 else rate / 10.0


def wanted_limit(history: History | None) -> float | str:
    """Return the limit of a clip of the gradients' global norm, or why there should be none.

    It is the lowest quarter of the norms, where they vary and steps went too far.
    """
    if history is None or not history.steps:
        return "no training has been looked at"
    found = {finding.kind for finding in history.findings}
    if not found & {"overshooting", "oscillating"} and np.isfinite(history.loss).all():
        return "no step went too far"
    if np.median(history.loss) > THROWN * history.loss[0]:
        return "the loss rose from the first steps on: that is the learning rate's business"
    norms = history.gradient_norm
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if not norms.size:
        return "no norm was finite"
    limit = float(f"{float(np.quantile(norms, 0.25)):.2g}")
    if norms.size == history.steps and norms.max() < 4 * limit:
        return "the gradient's norm hardly varies: clipping would only lower the learning rate"
    return limit


def lower_decay(reading: Reading) -> WeightDecay | None:
    """Return a penalty far below the data's gradient, where the one that there is comes near it."""
    penalty = reading.penalty
    if penalty is None or not penalty.decay > 0:
        return None
    matrices = [one for one in reading.parameters.values() if one.is_matrix and one.trained]
    over = [outweighs_log2(one, penalty.decay) for one in matrices]
    over = [one for one in over if isfinite(one)]
    if not over or not max(over) > HEAVY:
        return None
    decay = float(f"{penalty.decay * GENTLE / exp2(max(over)):.1g}")
    return WeightDecay(decay, penalty.decay) if decay > 0 else None
