"""The rule on a first loss that is far above that of guessing, where nothing else is off."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import isfinite, log2, sqrt

from vegrad.diagnosis.rules.maps import ABSURD
from vegrad.diagnosis.rules.outputs import above, guess, shaped_by
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import Compared
from vegrad.flow.edits import Scale
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Reading
from vegrad.flow.site import Site

LOGITS = {"cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"}
LARGE = 4.0  # standard deviation of outputs
TIMES = 3.0  # what the head makes of an input of size 1
NORMS = {"layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"}
FACTORS = {"mul", "rmul", "imul", "div", "truediv", "cosine_similarity"}
SEVERAL = 4  # branches that make a stream
NEAR, LESS = 3.0, 10.0  # times guessing to which a change has to bring the loss, or the factor
HEAD = "{edit}: an untrained network's outputs should be about 1 in size at most."
TIED = (
    "{edit}: the head's weights are an embedding's too, so that what it is added to has to become "
    "as much smaller; or divide the logits by {std:.3g}."
)
DIVIDE = "divide the logits by {std:.3g}: the head's weights are an embedding's too."
STREAM = (
    "{edit}, 1/√{branches:.0f} of what they are, since each of {branches:.0f} branches adds to the "
    "outputs' size; or let them begin at 0, or normalize."
)


def _absurd(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find outputs that are far too large for the loss, where nothing else is known to be off."""
    if earlier or any(one.learnt for one in reading.losses):
        return
    known = [one for one in reading.compared if _guess(one) > 0 and isfinite(one.value)]
    worst = max(known, key=lambda one: _times(one, one.value), default=None)
    if worst is None or worst.output.std < LARGE:
        return
    times = _times(worst, worst.value)
    found = _change(reading, worst, far=times >= ABSURD) if times >= rule.warning else None
    if found is None:
        return
    edit, advises = found
    names = edit.parameters if edit is not None else ()
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(times),
        rule=rule.name,
        cause="logits-scale",
        sites=tuple(Site("parameter", name) for name in names) or (Site("loss", "loss"),),
        says="the loss is {loss:.3g}, where guessing has {guess:.3g}: outputs of a standard "
        "deviation of {std:.3g} are far too large for it",
        advises=advises,
        evidence={"loss": worst.value, "guess": _guess(worst), "std": worst.output.std},
        facts={"branches": len(reading.branches)},
        edit=edit,
    )


def _guess(one: Compared) -> float:
    """Return the loss of guessing; 0 if that is not known."""
    if one.function in LOGITS:
        return guess(one)
    return one.target.std**2 if one.function == "mse_loss" else 0.0


def _times(one: Compared, loss: float) -> float:
    """Return how many times as large a loss is as that of guessing; of a square, its root."""
    ratio = loss / _guess(one)
    return ratio if one.function in LOGITS else sqrt(max(ratio, 0.0))


def _change(reading: Reading, worst: Compared, *, far: bool) -> tuple[Scale | None, str] | None:
    """Return what to do and the advice; None if such outputs may be meant."""
    made = shaped_by(reading, worst.place)
    _, maps = above(reading, worst.place, tuple(MAPS))
    last = tuple(name for n in sorted(maps) for name in reading.operations[n].parameters[:1])
    factor = float(f"{1 / worst.output.std:.3g}")
    tied = reading.tables.intersection(last)
    smaller = Scale((*last, *_beside(reading, tied)), factor) if last else None
    if worst.function in LOGITS:
        matrices = [reading.parameters[name] for name in last if name in reading.parameters]
        large = any(one.through_log2 >= log2(TIMES) for one in matrices)
        if made is not None and made.kind in MAPS and large and tied:
            return _tied(reading, worst, smaller)
        if made is not None and made.kind in MAPS and large:
            return smaller, HEAD
    if made is not None and made.kind in FACTORS:
        return None  # cosines are made larger by a factor that is meant
    branches = _smaller_branches(reading, worst)
    if branches is not None:
        return branches, STREAM
    if not far or worst.function not in LOGITS or reading.chain is not None:
        return None  # a stream behind normalizations may well grow with its depth
    if smaller is not None:
        return smaller, HEAD
    return None, "use an initialization that gives outputs of a size of about 1."


def _beside(reading: Reading, tied: Collection[str]) -> list[str]:
    """Return the tables to which those that are a head's weights too are added."""
    entering = [one.below for one in reading.branches if not set(tied).isdisjoint(one.below)]
    names = [name for below in entering for name in below] or sorted(reading.tables if tied else ())
    known = {name: reading.parameters[name] for name in names if name in reading.parameters}
    return [
        name
        for name, one in known.items()
        if name not in tied and one.is_matrix and one.role in ("table", "")
    ]


def _tied(reading: Reading, worst: Compared, smaller: Scale | None) -> tuple[Scale | None, str]:
    """Return what makes a head smaller whose weights are an embedding's, and what is added to it.

    Made smaller alone, it would be drowned by what it is added to.
    """
    effect = None
    if smaller is not None and reading.what_if is not None:
        effect = reading.what_if.effect(smaller)
    if effect is not None and _times(worst, effect.loss) > NEAR:
        return None, DIVIDE
    return smaller, TIED


def _smaller_branches(reading: Reading, worst: Compared) -> Scale | None:
    """Return what makes the last map of each branch smaller, if that brings the loss down.

    Of branches that begin with a normalization each adds as much, and gradients keep their size.
    """
    if any(one.kind in NORMS for one in reading.operations):
        return None
    maps = [
        [name for name in one.trail if reading.parameters[name].role == "map"]
        for one in reading.branches
    ]
    if len(maps) < SEVERAL or not all(maps) or reading.what_if is None:
        return None
    edit = Scale(tuple(names[-1] for names in maps), float(f"{len(maps) ** -0.5:.3g}"))
    effect = reading.what_if.effect(edit)
    enough = max(NEAR, _times(worst, worst.value) / LESS)
    return edit if effect is not None and _times(worst, effect.loss) <= enough else None


ABSURD_LOSS = Rule(
    name="loss-absurd",
    kind="exploding",
    warning=12,
    critical=ABSURD,
    measured="a cross entropy over that of guessing",
    reason="The first steps do nothing but make the outputs smaller, if they do not throw the "
    "network; public architectures begin at 6.4 times it at most (bench/architectures).",
    source="Karpathy 2019, A Recipe for Training Neural Networks (verify loss @ init)",
    find=_absurd,
)
