"""Rules on the loss: what it is given, beside what it is made for.

Each looks at an output and the target that it is compared with (`vegrad.flow.data.Compared`), and
at the operations that made the output. What is found here is known for certain, and is said before
anything on gradients, of which it may be the cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, isfinite, log1p

from vegrad.diagnosis.rules.outputs import (
    CLASSES,
    EDGE,
    ERRORS,
    LOSS,
    PROBABILITIES,
    RANGES,
    SIGMOID,
    above,
    after,
    guess,
    range_of,
    shaped_by,
    softplus,
    unreachable,
)
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import Compared
from vegrad.flow.finding import Finding
from vegrad.flow.reading import MAPS, Reading
from vegrad.flow.site import Site

SUMS = {"sum", "mean", "div", "truediv", "nansum", "nanmean", "squeeze", "view", "reshape"}
LOGARITHMS = {"nll_loss", "kl_div"}


def _sites(reading: Reading, compared: Compared, *first: Site) -> tuple[Site, ...]:
    """Return the sites given, and the module that gave the output its range."""
    one = shaped_by(reading, compared.place)
    own = (Site("module", one.name),) if one is not None and one.name not in ("", "loss") else ()
    return (*first, *own)


# An output that nothing can change ----------------------------------------------------------------


def _constant(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a softmax, or a cross entropy, over a single unit."""
    for one in reading.compared:
        single = one.function in CLASSES and one.units == 1
        if not single and not _is_one(reading, one):
            continue
        what = (
            "the cross entropy is taken over a single unit, of which the softmax is always 1"
            if single
            else "the output is {value:.3g} for every row, whatever the weights are: it is divided "
            "by its own sum over a single unit"
        )
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="constant-output",
            sites=_sites(reading, one, LOSS),
            says=f"{what}, so that no gradient comes to any weight",
            advises="for two classes use one unit with a binary cross entropy of its logit, or two "
            "with a cross entropy; for more, as many units as classes; for numbers, no softmax.",
            evidence={"value": one.output.mean, "units": 1.0},
        )
        return


def _is_one(reading: Reading, one: Compared) -> bool:
    """Return True of an output that is the same for all rows though what it is made of varies."""
    if one.output.low != one.output.high or one.output.shape[:1] == (1,) or one.refused:
        return False
    if one.output.mean not in (0.0, 1.0) and abs(one.output.mean) > 1e-6:
        return False
    kinds, maps = above(reading, one.place, tuple(MAPS))
    divided = kinds & {"softmax", "log_softmax", "div", "truediv", "divide"}
    varies = any(reading.everything[n].alike < 1 for n in maps)
    return bool(divided) and varies and "relu" not in kinds


# Probabilities and logits ------------------------------------------------------------------------


def _double(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find probabilities where a loss takes logits or logarithms, and a softmax of a softmax."""
    for one in reading.compared:
        made = shaped_by(reading, one.place)
        kind = "" if made is None else made.kind
        takes = _takes(one, kind)
        if not takes:
            continue
        within = made is None or not any(made is op for op in reading.loss_operations)
        floor, of = _floor(one, 0.0, 1.0), " of the model" * within
        constant, logits = guess(one), takes == "logits"
        yield Finding(
            kind=rule.kind if logits else "vanishing",
            severity=rule.severity(floor / constant if constant > 0 else 1.0),
            rule=rule.name,
            cause="double-softmax",
            sites=_sites(reading, one, LOSS),
            says=f"{{loss}} takes {takes}, and is given the output of "
            + (f"a {kind}" if kind in RANGES else "a softmax")
            + (", below {floor:.3g} it cannot come" if floor > 0 else "")
            + ("" if logits else ": where the right class has little, next to no gradient comes"),
            advises=f"leave the {kind or 'softmax'} out{of}: {{loss}} applies its own."
            if logits
            else f"give {{loss}} the logarithm: a log-softmax instead of {kind or 'softmax'}.",
            facts={"loss": one.function},
            evidence={"floor": floor, "constant": constant},
        )
        return
    yield from _twice(reading, rule)


def _takes(one: Compared, kind: str) -> str:
    """Return what a loss takes where it is given probabilities; "" if all is well."""
    summed = one.sums[0] and one.output.low >= 0 and one.output.high <= 1
    if one.function == "cross_entropy":
        if kind in PROBABILITIES or (summed and kind not in MAPS):
            return "logits"
    elif one.function in SIGMOID:
        if kind in PROBABILITIES or kind in ("log_softmax", "logsigmoid"):
            return "logits"
    elif one.function in LOGARITHMS and kind in PROBABILITIES:
        return "logarithms of probabilities"
    return ""


def _twice(reading: Reading, rule: Rule) -> Iterator[Finding]:
    """Find a softmax of a softmax in the last steps before the loss."""
    last = {one.place for one in reading.compared}
    for place, one in enumerate(reading.everything):
        if one.kind not in ("softmax", "log_softmax") or len(one.below) != 1:
            continue
        below = shaped_by(reading, one.below[0])
        if below is None or below.kind not in ("softmax", "sigmoid"):
            continue
        if place not in last and any(o.kind in MAPS for o in after(reading, place)):
            continue  # it is no output
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="double-softmax",
            sites=(Site("module", below.name),) if below.name else (LOSS,),
            says=f"a {one.kind} is taken of the output of a {below.kind}: its probabilities are "
            "nearly alike whatever the weights are",
            advises="take one of them out.",
        )
        return


def _floor(one: Compared, low: float, high: float) -> float:
    """Return the loss that outputs within a range cannot come below."""
    if one.function == "cross_entropy":
        return log1p((one.units - 1) * exp(low - high)) if high - low < 700 else 0.0
    if one.function in SIGMOID:
        parts = one.target.quantiles or (one.target.low, one.target.high)
        parts = tuple(min(max(q, 0.0), 1.0) for q in parts)
        return sum(q * softplus(-high) + (1 - q) * softplus(low) for q in parts) / len(parts)
    return 0.0


def _domain(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find numbers of any size where a loss takes probabilities or their logarithms."""
    if earlier:
        return
    for one in reading.compared:
        made = shaped_by(reading, one.place)
        raw = made is not None and (made.kind in MAPS or made.kind in ("relu", "tanh"))
        binary = one.function == "binary_cross_entropy" and one.refused
        outside = one.output.low < 0 or one.output.high > 1
        log_of = one.function in LOGARITHMS and raw and not one.sums[0]
        if not log_of and not (binary and outside):
            continue
        takes = "probabilities" if binary else "logarithms of probabilities"
        yield Finding(
            kind="nonfinite" if one.refused else rule.kind,
            severity="critical",
            rule=rule.name,
            cause="loss-domain",
            sites=_sites(reading, one, LOSS),
            says=f"{{loss}} takes {takes}, and is given numbers from {{low:.3g}} to {{high:.3g}}",
            advises="use a binary cross entropy that takes logits."
            if binary
            else "use a cross entropy that takes logits, or a log-softmax before it.",
            facts={"loss": one.function},
            evidence={"low": one.output.low, "high": one.output.high},
        )
        return


# Outputs that cannot reach the targets -----------------------------------------------------------


def _out_of_reach(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find an output whose last operation cannot make what the targets ask for."""
    if any(one.cause in ("double-softmax", "target-range") for one in earlier):
        return
    for one in reading.compared:
        kind, low, high = range_of(reading, one)
        if not kind or one.target_place is not None:
            continue
        if one.function in ERRORS:
            lost = unreachable(one.target, low, high)
            usual = one.target.std**2 or one.target.rms**2
        elif one.function in SIGMOID | {"cross_entropy"}:
            lost, usual = _floor(one, low, high), guess(one)
        else:
            continue
        if not usual > 0 or lost < rule.warning * usual:
            continue
        yield Finding(
            kind=rule.kind,
            severity=rule.severity(lost / usual),
            rule=rule.name,
            cause="output-range",
            sites=_sites(reading, one, LOSS),
            says=f"the output of a {kind} lies between {low:g} and {high:g}, "
            + (
                "and the targets between {low:.3g} and {high:.3g}: {share:.0%} of their variance "
                "is out of reach"
                if one.function in ERRORS
                else "where the loss takes logits: below {lost:.3g} it cannot come"
            ),
            advises=f"leave the {kind} out of the last layer"
            + (", or scale the targets into its range." if one.function in ERRORS else "."),
            facts={"share": min(lost / usual, 1.0)},
            evidence={"low": one.target.low, "high": one.target.high, "lost": lost},
        )
        return


# The sign and the axis ----------------------------------------------------------------------------


def _reduced(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a softmax over the rows of the batch, and a loss with the wrong sign.

    A softmax that is one too many is to be left out, whatever its axis is.
    """
    twice = any(finding.cause == "double-softmax" for finding in earlier)
    for one in () if twice else reading.compared:
        made = shaped_by(reading, one.place)
        over_rows = one.sums[1] and not one.sums[0] and made is not None
        if over_rows and made is not None and made.kind in ("softmax", "log_softmax", "log"):
            yield _wrong(
                rule,
                _sites(reading, one, LOSS),
                "the softmax is taken over the rows of the batch: the probabilities of a class sum "
                "to 1 over all rows, not those of a row over the classes",
                "take it over the axis of the classes.",
            )
            return
    if _is_flipped(reading) and not earlier:
        yield _wrong(
            rule,
            (LOSS,),
            "the loss is {loss:.3g}, where an error is never below 0: its sign is flipped, and "
            "each step makes the outputs worse",
            "take the minus away, or put the missing one in.",
            loss=reading.loss or 0.0,
        )


def _wrong(
    rule: Rule, sites: tuple[Site, ...], says: str, advises: str, **evidence: float
) -> Finding:
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="wrong-reduction",
        sites=sites,
        says=says,
        advises=advises,
        evidence=evidence,
    )


def _is_flipped(reading: Reading) -> bool:
    """Return True of a loss that is an error, or a cross entropy, times -1."""
    loss = reading.loss
    if loss is None or not isfinite(loss) or loss >= 0 or len(reading.compared) != 1:
        return False
    one = reading.compared[0]
    if not one.given or one.target_place is not None:
        return False
    rest = {o.kind for o in after(reading, one.place)} - {"loss", reading.loss_kind}
    if one.function in ("mul", "gather"):
        picked = one.function == "gather"
        allowed = SUMS | ({"gather", "getitem", "take_along_dim"} if picked else {"mul"})
        return (picked or one.target.low >= 0) and one.output.high <= EDGE and rest <= allowed
    if one.function == "nll_loss" and one.output.high > EDGE:
        return False
    if not one.value > 0:
        return False
    return abs(loss + one.value) <= 1e-4 * one.value


# The table ---------------------------------------------------------------------------------------

CONSTANT_OUTPUT = Rule(
    name="constant-output",
    kind="stalled",
    warning=1,
    critical=1,
    measured="units over which a softmax is taken, and the spread of its output",
    reason="exp(z)/exp(z) is 1 for every z: the gradient is exactly 0.",
    source="the commonest fault in sets of faulty networks (Cao et al. 2022, DeepFD)",
    find=_constant,
)
DOUBLE_SOFTMAX = Rule(
    name="double-softmax",
    kind="stalled",
    warning=0.01,
    critical=0.5,
    measured="lowest loss that outputs between 0 and 1 can have, over that of guessing",
    reason="log(1 + (C − 1)/e) is 1.46 for ten classes.",
    source="PyTorch's documentation of CrossEntropyLoss: unnormalized logits",
    find=_double,
)
LOSS_DOMAIN = Rule(
    name="loss-domain",
    kind="stalled",
    warning=1,
    critical=1,
    measured="outputs outside of the domain of the loss",
    reason="Without a normalization the loss has no lower bound, or no value.",
    source="PyTorch's documentation of NLLLoss and BCELoss",
    find=_domain,
)
OUTPUT_RANGE = Rule(
    name="output-range",
    kind="stalled",
    warning=0.1,
    critical=0.5,
    measured="mean squared distance of the targets from the output's range over their variance; "
    "the lowest cross entropy within it over that of guessing",
    reason="What is out of reach stays in the loss for ever, and pushes the output to its bound.",
    source="an arithmetic fact",
    find=_out_of_reach,
)
WRONG_REDUCTION = Rule(
    name="wrong-reduction",
    kind="stalled",
    warning=1,
    critical=1,
    measured="sums of probabilities over classes and rows; the sign of the loss",
    reason="A softmax over rows makes each row's output depend on the others'.",
    source="PyTorch's documentation of Softmax, argument dim",
    find=_reduced,
)
RULES = (
    CONSTANT_OUTPUT,
    DOUBLE_SOFTMAX,
    LOSS_DOMAIN,
    OUTPUT_RANGE,
    WRONG_REDUCTION,
)
