"""The remedies for sick gradients: one function and one row of `REMEDIES` each, smallest first.

A remedy gets a `Patient` and proposes an edit to try, or says why it cannot help. It knows the
diagnosis, the reading and the history of a training, and no framework: whether and how an edit can
be done to a network is the business of its front end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite, log2

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.rules.chain import ENTRANCE
from vegrad.diagnosis.rules.modules import CLEAR, DRIFT
from vegrad.diagnosis.rules.recurrent import THROUGH_TIME
from vegrad.diagnosis.rules.units import WIDE
from vegrad.flow.edits import (
    AddSkips,
    Clip,
    Edit,
    Initialize,
    LearningRate,
    Lsuv,
    Normalize,
    Redraw,
    Scale,
    ScaleData,
    SetActivation,
    Zero,
    parts,
    together,
)
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Chain
from vegrad.flow.subject import Refusal
from vegrad.theory.meanfield import CRITICAL_SIGMA_B
from vegrad.treatment.rates import wanted_limit, wanted_rate
from vegrad.treatment.remedy import Patient, Proposal, Remedy

FAR = 10.0  # from a standard deviation of 1, where data count as not scaled
ROUNDS = 4  # of looks: a parameter that is put right may show the next
NO_CHAIN = Refusal("the layers do not form one chain")


def _chain(p: Patient) -> Chain | None:
    return p.reading.chain


# The data ---------------------------------------------------------------------------------------


def _scale_data(p: Patient) -> Proposal | Refusal:
    if p.given.is_scaled:
        return Refusal("the data are scaled already")
    spread = p.given.subject.data.spread()
    if isinstance(spread, Refusal):
        return spread
    typical, off = spread
    if 1 / FAR <= typical <= FAR and off <= FAR / 3:
        return Refusal(f"the data need no scaling: their standard deviation is {typical:.3g}")
    return Proposal(ScaleData(), f"median {typical:.3g}")


# Values of parameters ---------------------------------------------------------------------------


def _scale_layers(p: Patient) -> Proposal | Refusal:
    """Scale single parameters by the factors that the diagnosis gives."""

    def wanted(diagnosis: Diagnosis) -> list[Edit]:
        return [Scale((name,), factor) for name, factor in _factors(diagnosis).items()]

    return _in_rounds(p, wanted) or Refusal("no single layer is to blame")


def _recurrent(p: Patient) -> Proposal | Refusal:
    """Change recurrent parameters as the findings through time say it."""

    def wanted(diagnosis: Diagnosis) -> list[Edit]:
        found = (f for f in diagnosis.findings if f.rule == THROUGH_TIME.name)
        return [part for f in found if f.edit is not None for part in parts(f.edit)]

    return _in_rounds(p, wanted) or Refusal("no recurrent parameter is to blame")


def _in_rounds(p: Patient, wanted: Callable[[Diagnosis], list[Edit]]) -> Proposal | None:
    """Propose what a diagnosis says, and what the next one says then; None if it says nothing."""
    diagnosis, done = p.diagnosis, dict[Edit, Edit]()
    for _ in range(ROUNDS):
        new = wanted(diagnosis)
        if not new:
            break
        for edit in new:
            key = replace(edit, factor=0.0) if isinstance(edit, Scale) else edit
            before = done.get(key)
            if isinstance(edit, Scale) and isinstance(before, Scale):
                edit = replace(edit, factor=before.factor * edit.factor)
            done[key] = edit
        treated = p.treated(Proposal(together(*done.values())))
        if isinstance(treated, Refusal):
            break
        diagnosis = p.look(treated)
    return Proposal(together(*done.values())) if done else None


def _factors(diagnosis: Diagnosis) -> dict[str, float]:
    """Return the factors of single parameters that the findings are about, by their names."""
    found: dict[str, float] = {}
    reading = diagnosis.reading
    assert reading is not None
    for finding in diagnosis.findings:
        edit = finding.edit
        if isinstance(edit, Scale) and _is_single(finding, edit, alone=not found):
            found[edit.parameters[0]] = edit.factor
        chain = reading.chain
        if chain is None:
            continue
        if finding.rule == ENTRANCE.name and chain.exact:  # else other operations may be before it
            found[chain.layers[0].weight] = 1.0 / finding.evidence["std"]
        if finding.kind == "saturated":
            _add_saturated(found, finding, chain)
    known = reading.parameters
    return {n: f for n, f in found.items() if n in known and isfinite(f) and f > 0}


def _is_single(finding: Finding, edit: Scale, *, alone: bool) -> bool:
    """Return True of a factor for one parameter that departs from the others."""
    e = finding.evidence
    if len(edit.parameters) > 1 or finding.rule == THROUGH_TIME.name:
        return False
    if finding.rule == DRIFT.name:
        return alone and e["factor"] > 0 and abs(log2(e["factor"])) > CLEAR
    return "factor" in e or (finding.is_departure and e["gain"] > 0)


def _add_saturated(found: dict[str, float], finding: Finding, chain: Chain) -> None:
    """Add the factor of the first layer whose pre-activations are wide.

    Those above may only be what this one makes of them.
    """
    flow = chain.flow
    for layer in finding.layers:
        std, mean = float(flow.preactivation_std[layer]), float(flow.preactivation_mean[layer])
        if isfinite(std) and std > max(WIDE, abs(mean)):
            found.setdefault(chain.layers[layer].weight, 1.0 / std)
            return


def _reset_biases(p: Patient) -> Proposal | Refusal:
    chain, findings = _chain(p), p.diagnosis.findings
    sick = {
        layer
        for f in findings
        if f.kind in ("saturated", "dead") or f.blame == "activation"
        for layer in f.layers
    }
    known, names, means = p.reading.parameters, [], []
    for layer in sorted(sick) if chain is not None else []:
        assert chain is not None
        bias = chain.layers[layer].bias
        if (
            bias is not None
            and bias in known
            and (known[bias].rms_log2 != -inf or known[bias].nonfinite)
        ):
            names.append(bias)
            means.append(float(chain.flow.preactivation_mean[layer]))
    if not names:
        return Refusal("the biases of the layers in question are 0")
    return Proposal(Zero(tuple(names)), f"pre-activations of mean up to {max(means, key=abs):.3g}")


def _draw_layers(p: Patient) -> Proposal | Refusal:
    """Draw layers again that no factor can bring back: dead, not finite, or closed."""
    chain, layers = _chain(p), set[int]()
    for f in p.diagnosis.findings:
        if f.kind in ("dead", "nonfinite"):
            layers |= set(f.layers)
        elif f.is_departure and (f.evidence["gain"] == 0 or f.blame == "activation"):
            layers |= {f.layers[0]}
    if chain is None or not layers:
        return Refusal("no layer is dead or not finite")
    chosen = [chain.layers[n] for n in sorted(layers)]
    names = [name for one in chosen for name in (one.weight, one.bias) if name is not None]
    return Proposal(Redraw(tuple(names)))


def _lsuv(p: Patient) -> Proposal | Refusal:
    return Proposal(Lsuv())


def _clip_first(p: Patient) -> Proposal | Refusal:
    if "vanishing" in p.kinds and p.history is None:
        why = "clipping makes gradients smaller, it cannot bring back those that vanish"
        return Refusal(why, worth_saying=True)
    return _clip(p)


# New weights, new architecture ------------------------------------------------------------------


def _of_chain(*edits: Edit) -> Callable[[Patient], Proposal | Refusal]:
    """Return a remedy that proposes these edits to any chain."""

    def propose(p: Patient) -> Proposal | Refusal:
        return NO_CHAIN if _chain(p) is None else Proposal(together(*edits))

    return propose


def _critical(p: Patient) -> Proposal | Refusal:
    chain = _chain(p)
    if chain is None:
        return NO_CHAIN
    if chain.activation in CRITICAL_SIGMA_B:
        return Proposal(Initialize("critical"))
    return Refusal(f"{chain.activation} has no critical point: no weights keep its gradient")


def _skips(p: Patient) -> Proposal | Refusal:
    chain = _chain(p)
    if chain is None:
        return NO_CHAIN
    scheme = "critical" if chain.activation in CRITICAL_SIGMA_B else "orthogonal"
    return Proposal(together(AddSkips(), Initialize(scheme)))


def _activation(p: Patient) -> Proposal | Refusal:
    """Use tanh, which trains deepest at its critical point; in place of tanh, ReLU."""
    chain = _chain(p)
    if chain is None:
        return NO_CHAIN
    if chain.activation == "tanh":
        return Proposal(together(SetActivation("relu"), Initialize("he_normal")))
    return Proposal(together(SetActivation("tanh"), Initialize("critical")))


# The training -----------------------------------------------------------------------------------


def _learning_rate(p: Patient) -> Proposal | Refusal:
    wanted = wanted_rate(p.history)
    if isinstance(wanted, str):
        return Refusal(wanted)
    assert p.history is not None
    rate, why = wanted
    return Proposal(LearningRate(rate, float(p.history.learning_rate[-1])), why)


def _clip(p: Patient) -> Proposal | Refusal:
    limit = wanted_limit(p.history)
    if isinstance(limit, str):
        return Refusal(limit)
    assert p.history is not None
    return Proposal(Clip(limit), f"the lowest quarter of {p.history.steps} norms")


# The table --------------------------------------------------------------------------------------

FLOW = frozenset({"vanishing", "exploding", "saturated", "dead", "nonfinite"})
TRAINING = frozenset({"training"})
BOTH = FLOW | TRAINING
NORM_SKIPS = _of_chain(Normalize(), AddSkips())
TANH = SetActivation("tanh")
TANH_SKIPS = _of_chain(TANH, Normalize(on=False), AddSkips(), Initialize("orthogonal"))
EVERYTHING = _of_chain(TANH, Normalize(), AddSkips(), Initialize("critical"))
REMEDIES = (
    Remedy("scale the data", BOTH, _scale_data),
    Remedy("scale single layers", FLOW, _scale_layers),
    Remedy("recurrent parameters", FLOW, _recurrent),
    Remedy("reset biases", FLOW, _reset_biases),
    Remedy("draw layers again", FLOW, _draw_layers),
    Remedy("scale every layer", FLOW, _lsuv),
    Remedy("clip", FLOW, _clip_first),
    Remedy("initialize at the critical point", FLOW, _critical),
    Remedy("initialize orthogonally", FLOW, _of_chain(Lsuv(orthogonal=True))),
    Remedy("skip connections", FLOW, _skips, 0.8, skips=True),
    Remedy("normalize", FLOW, _of_chain(Normalize())),
    Remedy("normalize, with skip connections", FLOW, NORM_SKIPS, 0.8, skips=True),
    Remedy("activation", FLOW, _activation),
    Remedy("activation, with skip connections", BOTH, TANH_SKIPS, 0.5, skips=True),
    Remedy("activation, normalize, skip connections", BOTH, EVERYTHING, 0.0, skips=True),
)
# What the history of a training that failed asks for, on top of what was trained.
FOLLOWING = (
    Remedy("learning rate", TRAINING, _learning_rate),
    Remedy("clip", TRAINING, _clip, followed=False),
)
