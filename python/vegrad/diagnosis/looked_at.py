"""Words for a network without findings: the parts that were looked at, and how they are."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, isnan, log10, nan

import numpy as np

from vegrad.diagnosis.judge import learnt
from vegrad.diagnosis.rules import table
from vegrad.diagnosis.rules.graph import best_entry, best_reached
from vegrad.diagnosis.rules.memory import own_reach
from vegrad.diagnosis.rules.recurrent import reach
from vegrad.diagnosis.rules.seen import rows_alike, run_looked_at
from vegrad.diagnosis.second import AT_LOSS, NO_GRADIENT
from vegrad.flow.cell import Cell
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.time_flow import TimeFlow
from vegrad.flow.trend import Trend
from vegrad.flow.wording import DECADE, listed, power, times
from vegrad.reports.values import count_of

TELLING = 2.0  # decades from end to end of an interval, beyond which it says nothing
NEAR = 1.0  # decades of a healthy chain, from which on it is said where health ends


def trend_of(reading: Reading) -> Trend | None:
    """Return the trend of the chain's gains, or of the recorded weights' gradients."""
    if reading.chain is not None:
        return reading.chain.gains.trend
    recorded = reading.gradients
    if recorded is None or reading.modules:
        return None
    if not all(size < inf for size in recorded.norms_log2.values()):
        return None
    weights = recorded.along_weights
    return None if weights is None else weights.gains.trend


def looked_at(reading: Reading, trend: Trend | None) -> str:
    """Say what was looked at and how it is, for a network without findings."""
    done, said = learnt(reading), list(rows_alike(reading))
    if done is not None:
        beside = f"its loss is {done.value:.3g}, beside {done.constant:.3g} of guessing"
        if done.value > done.constant:
            beside = f"{1 - done.wrong:.1%} of the rows are right, {1 - done.guess:.1%} by guessing"
        said.append(f"it has learnt: {beside}")
    said.append(_seen(reading, trend))
    watched = reading.watched
    if watched is not None and watched.losses and not any(map(isfinite, watched.losses)):
        how = reading.vocabulary.tells_loss
        said.append(f"the loss was not recorded, so that its course is not judged ({how})")
    return "; ".join(said)


def _seen(reading: Reading, trend: Trend | None) -> str:
    if reading.chain is not None:
        return _chain_looked_at(reading.chain, trend, reading)
    if reading.modules:
        return _modules_looked_at(reading)
    if reading.watched is not None and reading.watched.recorded is not None:
        return run_looked_at(reading.watched.recorded)
    if reading.cells:
        return _cells_looked_at(reading.cells, reading.memory)
    if reading.time_flow is not None:
        return _time_looked_at(reading.time_flow)
    recorded = reading.gradients
    if recorded is None or trend is None:
        return "there is no chain of gradients to compare"
    sizes = recorded.sizes(recorded.chain)
    reach = power(float(sizes[0] - sizes[-1]) / DECADE)
    return (
        f"the weights' gradients change {times(trend.gain)} a layer, from last to first to {reach} "
        "of their size"
    )


def _chain_looked_at(chain: Chain, trend: Trend | None, reading: Reading) -> str:
    if chain.begun:
        weights = [chain.layers[place].weight for place in chain.begun]
        return begun_words(weights)
    if trend is None:
        sizes = chain.flow.delta_log2
        if len(sizes) == 1 and isfinite(sizes[0]):
            (only,) = chain.layers
            own = (only.weight, only.bias)
            if any(n not in own and one.trained for n, one in reading.parameters.items()):
                return (
                    f"a gradient comes to {only.name}; no two layers that are trained follow each "
                    "other, between which it could be compared"
                )
            return "there is one layer, to which a gradient comes; there is none to compare it with"
        return "the gradient is exactly 0"
    told = trend.count > 1 and trend.high - trend.low <= TELLING * DECADE
    interval = f" (95 % interval {times(trend.low)} to {times(trend.high)})" if told else ""
    size = chain.flow.chain_log10
    rule = table.GROWS if size > 0 else table.SHRINKS
    return (
        f"the gradient passes each layer at {times(trend.gain)}{interval} and "
        f"reaches the first layer at {power(size)} {'times' if size >= 0 else 'of'} the last"
        + (f" ({rule.kind} begins at {10.0**rule.warning:g})" if abs(size) >= NEAR else "")
        + (_way_round(reading) if size <= rule.warning else "")
    )


def _way_round(reading: Reading) -> str:
    """Say why a gradient that hardly reaches the first layer is no fault, where that is known."""
    limit = table.SHRINKS.warning
    way = None if reading.chain is None else best_entry(reading, reading.chain)
    if way is not None and way[1] > limit:
        return f", but the inputs come in again at {way[0]}, which gets {_much(way[1])}"
    way = best_reached(reading)
    if way is not None and way[1] > limit:
        return f", but by another way the gradient reaches {way[0]} at {_much(way[1])}"
    again = {} if reading.watched is None else reading.watched.second
    if any(not found for cause, found in again.items() if cause not in (NO_GRADIENT, AT_LOSS)):
        return ", but a diagnosis of that step found other ways by which more reaches the first"
    begun = any(one.begun for one in reading.modules)
    return ", below weights that begin at 0" if begun else ""


def _much(decades: float) -> str:
    return f"{power(decades)} {'times' if decades >= 0 else 'of'} what the last gets"


def _cells_looked_at(cells: Sequence[Cell], memory: int) -> str:
    usual = min(reach(cell.sizes, cell.flat)[1].steps for cell in cells)
    own = min(own_reach(cell.sizes[:, 0], cell.length) for cell in cells)
    length = min(cell.length for cell in cells)
    far = f"{'all' if own >= length else f'{own} of'} {count_of(length, 'step')}"
    needed = f", and the task needs {memory}" if memory else ""
    return (
        f"a thousandth of the gradient of {listed([cell.label for cell in cells])} gets {far} back "
        f"(with weights drawn anew {usual}){needed}"
        + ("" if memory else "; if the task needs more, say so with memory=K")
    )


def _time_looked_at(flow: TimeFlow) -> str:
    """Say what a few steps tell, which are too few to compare cells with weights drawn anew."""
    steps = flow.gain_log2.shape[1]
    if steps == 1:
        return "there is one step, from which no gradient goes back through time"
    left = flow.left_log2[:, 0]
    if np.isnan(left).all():
        return "the gradient is exactly 0"
    layer = int(np.nanargmin(left))
    size = float(left[layer]) / DECADE
    return (
        f"the gradient {f'of layer {layer} ' * (len(left) > 1)}reaches the first of {steps} steps "
        f"at {power(size)} {'times' if size >= 0 else 'of'} the last"
    )


def _modules_looked_at(reading: Reading) -> str:
    chained = [one for one in reading.modules if one.chained]
    links = [one for one in chained if 0 < one.delta < inf]
    known = [one.delta for one in links]
    norm = _gradient_norm(reading)
    if len(known) < 2:
        whole = "" if isnan(norm) else f", the gradient's norm is {norm:.3g}"
        return f"every number is finite{whole}"
    whole = "" if isnan(norm) else f", its norm over all parameters is {norm:.3g}"
    size = log10(known[0] / known[-1])
    of = "times" if size >= 0 else "of"
    first = "the first module" if links[0] is chained[0] else links[0].name
    why = _way_round(reading) if size <= table.SHRINKS.warning else ""
    return f"the gradient reaches {first} at {power(size)} {of} the last{whole}{why}"


def _gradient_norm(reading: Reading) -> float:
    if reading.watched is not None:
        return reading.watched.norm
    measured = reading.gradients and reading.gradients.measurement
    return measured.total.norm if measured else nan


def begun_words(names: Sequence[str]) -> str:
    """Say that weights begin at 0."""
    several = " and others are" if len(names) > 1 else " is"
    return (
        f"{names[0]}{several} 0, so that what lies below gets no gradient from there; diagnose "
        "again after a step"
    )
