"""Rules on any network, by the graph of its pass: what follows edges, not lists.

δ is compared between the first and the last maps that ran, by what reaches them by all ways
together: a skip connection counts, and queries and keys, which hardly any gradient comes to at
first, do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, isnan, log2

import numpy as np

from vegrad.diagnosis.rules.maps import ABSURD
from vegrad.diagnosis.rules.outputs import above, guess, shaped_by
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import AddSkips, Edit, Initialize, Scale, SetActivation, together
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Chain, Operation, Reading
from vegrad.flow.site import Site
from vegrad.flow.ways import entries
from vegrad.flow.wording import DECADE

FEWEST = 6  # maps, of which the first and the last third are compared
KEYED = {"softmax", "scaled_dot_product_attention"}
LOGITS = {"cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"}
LARGE = 4.0  # standard deviation of outputs
TIMES = 3.0  # what the head makes of an input of size 1
SHARP = 0.9  # share of attention's rows with all weight on one key


# What reaches the first layers ------------------------------------------------------------------


def enters_higher(reading: Reading, chain: Chain, limit: float) -> bool:
    """Return True if the inputs come to a chain by a way on which less than `limit` is lost.

    That is so where they are joined again to a later layer's input.
    """
    names = {layer.weight: place for place, layer in enumerate(chain.layers)}
    places = [names[one.parameters[0]] for one in entries(reading) if one.parameters[0] in names]
    deltas = chain.flow.delta_log2
    lost = [float(deltas[place] - deltas[-1]) / DECADE for place in places if place]
    return any(one > limit for one in lost)


def _reach(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that all of the first maps get decades less than the last, or more."""
    if any(finding.kind == "nonfinite" for finding in earlier):
        return
    maps = [
        one
        for one in reading.operations
        if one.kind in MAPS and one.parameters and not isnan(one.delta_log2)
    ]
    if any(one.rms_log2 == -inf < one.gradient_log2 for one in reading.parameters.values()):
        # What lies below weights that begin at 0 gets a gradient after the first step.
        maps = [one for one in maps if one.delta_log2 > -inf]
    third = len(maps) // 3
    if len(maps) < FEWEST:
        return
    early = [*maps[:third], *(one for one in entries(reading) if one in maps)]
    first = np.array([one.delta_log2 for one in early]) / DECADE
    last = np.array([one.delta_log2 for one in maps[-third:]]) / DECADE
    last = last[np.isfinite(last)]
    if not last.size:
        return
    middle = float(np.median(last))
    if first.max() - middle <= rule.warning:
        yield _shrinks(float(first.max()) - middle, maps, third, reading, rule)
    elif first.min() - last.max() >= GROWS:
        yield _grows(float(first.min() - last.max()), maps, third, reading, rule)


def _shrinks(
    decades: float, maps: Sequence[Operation], third: int, reading: Reading, rule: Rule
) -> Finding:
    bounded = _bounded(reading, len(maps))
    edit, advises = _against(bounded)
    gets = "more than {decades:power} of the gradient that the last ones get, by all ways together"
    return Finding(
        kind="vanishing",
        severity=rule.severity(decades),
        rule=rule.name,
        cause="activation-derivative" if bounded else "weight-scale-all",
        sites=tuple(Site("parameter", one.parameters[0]) for one in maps[:third]),
        says="none of the first {count} of {all} maps, from {first} to {last}, gets "
        + (gets if isfinite(decades) else "any gradient"),
        advises=advises,
        facts={
            "he": "he_normal",
            "count": third,
            "all": len(maps),
            "first": maps[0].parameters[0],
            "last": maps[third - 1].parameters[0],
        },
        evidence={"decades": decades},
        edit=edit,
    )


def _grows(
    decades: float, maps: Sequence[Operation], third: int, reading: Reading, rule: Rule
) -> Finding:
    return Finding(
        kind="exploding",
        severity=rule.severity(decades),
        rule=rule.name,
        cause="weight-scale-all",
        sites=tuple(Site("parameter", one.parameters[0]) for one in maps[:third]),
        says="each of the first {count} of {all} maps, from {first} to {last}, gets at least "
        "{decades:power} times the gradient that any of the last ones gets",
        advises="{edit}, and clip the gradients' joint norm.",
        facts={
            "count": third,
            "all": len(maps),
            "first": maps[0].parameters[0],
            "last": maps[third - 1].parameters[0],
        },
        evidence={"decades": decades},
        edit=Initialize("default"),
    )


def _bounded(reading: Reading, maps: int) -> str:
    """Return the bounded activation that follows at least half of the maps; "" if none does."""
    kinds = [one.kind for one in reading.operations if one.kind in ("sigmoid", "tanh")]
    most = max(set(kinds), key=kinds.count) if kinds else ""
    return most if 2 * kinds.count(most) >= maps else ""


def _against(bounded: str) -> tuple[Edit, str]:
    if bounded == "sigmoid":
        edit: Edit = together(SetActivation("relu"), Initialize("he_normal"))
        return edit, "{edit}: each sigmoid passes on a quarter of the gradient at most."
    return AddSkips(), "{edit}, or normalization, or {he:scheme} weights for ReLU."


# Attention --------------------------------------------------------------------------------------


def _sharp(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    if earlier:
        return
    known = [one for one in reading.operations if not isnan(one.flat) and one.kind in KEYED]
    flat = [one for one in known if one.flat >= rule.warning]
    if not flat or 2 * len(flat) < len(known):
        return
    worst = max(flat, key=lambda one: one.flat)
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(worst.flat),
        rule=rule.name,
        cause="saturated-attention",
        sites=tuple(Site("module", one.name) for one in flat),
        says="{percent:.3g} % of the rows of attention in {worst} have all their weight on one "
        "key, where the softmax passes no gradient",
        advises="scale the queries' weights down, normalize queries and keys, or divide the "
        "products by the square root of their width.",
        facts={"percent": 100 * worst.flat, "worst": worst.name},
        evidence={"fraction": worst.flat},
    )


# What is too large, or 0 ------------------------------------------------------------------------


def _absurd(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find outputs that are far too large for the loss, where nothing else is known to be off."""
    if earlier:
        return
    known = [one for one in reading.compared if one.function in LOGITS and isfinite(one.value)]
    worst = max(known, key=lambda one: one.value / guess(one), default=None)
    if worst is None or worst.value < rule.warning * guess(worst) or worst.output.std < LARGE:
        return
    _, maps = above(reading, worst.place, tuple(MAPS))
    last = [name for n in sorted(maps) for name in reading.operations[n].parameters[:1]]
    made = shaped_by(reading, worst.place)
    raw = made is not None and made.kind in MAPS
    matrices = [reading.parameters[name] for name in last if name in reading.parameters]
    large = any(one.through_log2 >= log2(TIMES) for one in matrices)
    absurd = reading.chain is None and worst.value >= ABSURD * guess(worst)
    if not (raw and large) and not absurd:
        return  # cosines are made larger by a factor that is meant, and streams by their depth
    edit = Scale(tuple(last), float(f"{1 / worst.output.std:.3g}")) if last else None
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(worst.value / guess(worst)),
        rule=rule.name,
        cause="logits-scale",
        sites=tuple(Site("parameter", name) for name in last) or (Site("loss", "loss"),),
        says="the loss is {loss:.3g}, where guessing has {guess:.3g}: outputs of a standard "
        "deviation of {std:.3g} are far too large for it",
        advises="{edit}: an untrained network's outputs should be about 1 in size at most."
        if last
        else "use an initialization that gives outputs of a size of about 1.",
        evidence={"loss": worst.value, "guess": guess(worst), "std": worst.output.std},
        edit=edit,
    )


def _zero_vectors(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find vectors of 0 that a normalization divides by their size."""
    known = reading.parameters.values()
    maps = [one.gradient_log2 for one in known if one.role == "map" and isfinite(one.gradient_log2)]
    if not maps:
        return
    usual = float(np.median(maps))
    found = {
        one.name: (one.gradient_log2 - usual) / DECADE
        for one in known
        if one.is_matrix and one.role in ("", "table") and one.rms_log2 == -inf
    }
    names = [name for name, decades in found.items() if decades >= rule.warning]
    if not names:
        return
    worst = max(names, key=found.__getitem__)
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(found[worst]),
        rule=rule.name,
        cause="zero-vectors",
        sites=tuple(Site("parameter", name) for name in names),
        says=f"{{sites}} {'are' if len(names) > 1 else 'is'} 0, and a normalization divides by "
        "that size: the gradient there is {gradient:times} that of weights",
        advises="draw {sites} from a normal distribution of standard deviation 0.02.",
        evidence={"gradient": 10.0 ** found[worst]},
    )


SHRINKS = Rule(
    name="graph-reach",
    kind="vanishing",
    warning=-3,
    critical=-4,
    measured="log10 of the largest δ at the first third of the maps over the median at the last",
    reason="As for chains; what reaches them by any way counts.",
    source="the chain's limits",
    find=_reach,
)
GROWS = 5.0  # batch norms alone make 4 decades of 94 layers at the start, which trains
ATTENTION = Rule(
    name="attention-saturated",
    kind="saturated",
    warning=SHARP,
    critical=0.99,
    measured="share of attention's rows with nearly all weight on one key",
    reason="Default initializations leave attention spread out.",
    source="Zhai et al. 2023, arXiv:2303.06296 (entropy collapse)",
    find=_sharp,
)
ABSURD_LOSS = Rule(
    name="loss-absurd",
    kind="exploding",
    warning=12,
    critical=30,
    measured="a cross entropy over that of guessing",
    reason="The first steps do nothing but make the outputs smaller.",
    source="Karpathy 2019, A Recipe for Training Neural Networks (verify loss @ init)",
    find=_absurd,
)
ZERO_VECTORS = Rule(
    name="zero-vectors",
    kind="exploding",
    warning=3,
    critical=5,
    measured="log10 of the gradient of vectors that are 0 over that of weights",
    reason="A normalization passes 1/√ε to them: 10^6 for ε = 1e-12.",
    source="class and position tokens of DeiT and ViT-MAE in transformers",
    find=_zero_vectors,
)
RULES = (ZERO_VECTORS, SHRINKS, ATTENTION)
