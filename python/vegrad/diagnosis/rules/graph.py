"""Rules on any network, by the graph of its pass: what follows edges, not lists.

δ is compared between the first and the last maps that ran, by what reaches them by all ways
together: a skip connection counts, and queries and keys, which hardly any gradient comes to at
first, do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import inf, isfinite, isnan

import numpy as np

from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import AddSkips, Edit, Initialize, SetActivation, together
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Chain, Operation, Reading
from vegrad.flow.site import Site
from vegrad.flow.ways import entries
from vegrad.flow.wording import DECADE

FEWEST = 6  # maps, of which the first and the last third are compared
KEYED = {"softmax", "scaled_dot_product_attention"}
SEVERAL, APART = 2, 0.01  # attentions with keys that are alike; what differs in the first
SHARP = 0.9  # share of attention's rows with all weight on one key


# What reaches the first layers ------------------------------------------------------------------


def enters_higher(reading: Reading, chain: Chain, limit: float) -> bool:
    """Return True if the inputs come to a chain by a way on which less than `limit` is lost.

    That is so where they are joined again to a later layer's input.
    """
    way = best_entry(reading, chain)
    return way is not None and way[1] > limit


def best_entry(reading: Reading, chain: Chain) -> tuple[str, float] | None:
    """Return the layer above the first that inputs come to with the least loss, and its decades."""
    names = {layer.weight: place for place, layer in enumerate(chain.layers)}
    places = [names[one.parameters[0]] for one in entries(reading) if one.parameters[0] in names]
    deltas = chain.flow.delta_log2
    lost = [(float(deltas[place] - deltas[-1]) / DECADE, place) for place in places if place]
    if not lost:
        return None
    decades, place = max(lost)
    return chain.names[place], decades


def best_reached(reading: Reading) -> tuple[str, float] | None:
    """Return which of the first maps gets most by all ways together, and its decades.

    The inputs may come to a later one too, which counts as the first do. None if maps are few.
    """
    found = _first_and_last(reading)
    if found is None:
        return None
    early, middle, _ = found
    best = max(early, key=lambda one: one.delta_log2)
    return best.parameters[0], best.delta_log2 / DECADE - middle


def _maps(reading: Reading) -> list[Operation]:
    """Return the maps of which δ is known."""
    maps = [
        one
        for one in reading.operations
        if one.kind in MAPS and one.parameters and not isnan(one.delta_log2)
    ]
    if any(one.rms_log2 == -inf < one.gradient_log2 for one in reading.parameters.values()):
        # What lies below weights that begin at 0 gets a gradient after the first step.
        maps = [one for one in maps if one.delta_log2 > -inf]
    return maps


def _first_and_last(reading: Reading) -> tuple[list[Operation], float, float] | None:
    """Return the first maps, and the decades of δ of the last: their median and the most."""
    maps = _maps(reading)
    third = len(maps) // 3
    if len(maps) < FEWEST:
        return None
    early = [*maps[:third], *(one for one in entries(reading) if one in maps)]
    last = np.array([one.delta_log2 for one in maps[-third:]]) / DECADE
    last = last[np.isfinite(last)]
    return (early, float(np.median(last)), float(last.max())) if last.size else None


def _reach(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that all of the first maps get decades less than the last, or more."""
    if any(finding.kind == "nonfinite" for finding in earlier):
        return
    found = _first_and_last(reading)
    if found is None:
        return
    early, middle, most = found
    maps = _maps(reading)
    third = len(maps) // 3
    first = np.array([one.delta_log2 for one in early]) / DECADE
    if first.max() - middle <= rule.warning:
        yield _shrinks(float(first.max()) - middle, maps, third, reading, rule)
    elif first.min() - most >= GROWS:
        yield _grows(float(first.min() - most), maps, third, reading, rule)


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


def _alike(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that from some attention on the keys are alike in all of them, though not at first."""
    known = [one for one in reading.operations if not isnan(one.keys)]
    alike = list(takewhile(lambda one: one.keys <= rule.warning, reversed(known)))[::-1]
    if earlier or len(alike) < SEVERAL or 2 * len(alike) < len(known) or known[0].keys < APART:
        return
    sites = tuple(dict.fromkeys(Site("module", one.name) for one in alike if one.name))
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(1.0),
        rule=rule.name,
        cause="collapse",
        sites=sites or (Site("model", "the model"),),
        says="the tokens become alike on their way through the network: {was:.2g} of the size of "
        "the keys differs from token to token in the first attention, and {now:.1g} in the last "
        "{count:.0f} of {all:.0f}, which can only take means; their queries and keys get hardly "
        "any gradient",
        advises="{edit}: attention makes tokens more alike with every layer, and what is added to "
        "what it makes keeps them apart.",
        evidence={
            "was": known[0].keys,
            "now": max(one.keys for one in alike),
            "count": float(len(alike)),
            "all": float(len(known)),
        },
        edit=AddSkips(),
    )


# What is 0 ---------------------------------------------------------------------------------------


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
ALIKE = Rule(
    name="tokens-alike",
    kind="collapsed",
    warning=1e-4,
    critical=1,
    measured="share of the keys' size that differs from token to token, in at least half of all "
    "attentions up to the last",
    reason="Without skip connections it falls doubly exponentially with depth; in 43 public "
    "architectures it is 0.3 at least.",
    source="Dong et al. 2021, arXiv:2103.03404; Noci et al. 2022, arXiv:2206.03126",
    find=_alike,
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
RULES = (ZERO_VECTORS, SHRINKS, ALIKE, ATTENTION)
