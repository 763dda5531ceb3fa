"""The remedies for sick gradients: one function and one row of `REMEDIES` each, smallest first.

A remedy gets a `Patient` and proposes an edit to try, or says why it cannot help. It knows the
diagnosis, the reading and the history of a training, and no framework: whether and how an edit can
be done to a network is the business of its front end.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from vegrad.activations import ACTIVATIONS
from vegrad.flow.edits import (
    AddSkips,
    Clip,
    Edit,
    Initialize,
    LearningRate,
    Lsuv,
    Normalize,
    Redraw,
    ScaleData,
    ScaleTarget,
    SetActivation,
    WeightDecay,
    Zero,
    parts,
    together,
)
from vegrad.flow.subject import Refusal
from vegrad.theory.meanfield import CRITICAL_SIGMA_B
from vegrad.treatment import advice, recurrent
from vegrad.treatment.rates import GENTLE, lower_decay, wanted_limit, wanted_rate
from vegrad.treatment.remedy import Patient, Proposal, Remedy

FAR = 10.0  # from a standard deviation of 1, where data count as not scaled
EXACT = 1e-6  # log2 of a gain, below which nothing has changed a gradient but rounding
NO_CHAIN = Refusal("the layers do not form one chain")


# The data ---------------------------------------------------------------------------------------


def _scale_data(p: Patient) -> Proposal | Refusal:
    spread = p.given.subject.data.spread()
    return _scaled(p, ScaleData(), spread, "the data", "median {:.3g}")


def _scale_target(p: Patient) -> Proposal | Refusal:
    spread = p.given.subject.data.target_spread()
    note = "it was {:.3g}"
    if not isinstance(spread, Refusal) and spread[1] > FAR / 3:
        note = f"its |mean| was {spread[0] * spread[1]:.3g}, its standard deviation {{:.3g}}"
    return _scaled(p, ScaleTarget(), spread, "the targets", note)


def _scaled(
    p: Patient, edit: Edit, spread: tuple[float, float] | Refusal, what: str, note: str
) -> Proposal | Refusal:
    """Propose to scale what is far from a mean of 0 and a standard deviation of 1."""
    if p.given.has(type(edit)):
        return Refusal(f"{what} are scaled already")
    if isinstance(spread, Refusal):
        return spread
    typical, off = spread
    edits = [finding.edit for finding in p.diagnosis.findings if finding.edit is not None]
    asked = any(isinstance(part, type(edit)) for one in edits for part in parts(one))
    if not asked and 1 / FAR <= typical <= FAR and off <= FAR / 3:
        return Refusal(f"{what} need no scaling: their standard deviation is {typical:.3g}")
    return Proposal(edit, note.format(typical))


# Values of parameters ---------------------------------------------------------------------------


def _reset_biases(p: Patient) -> Proposal | Refusal:
    chain, findings = p.chain, p.diagnosis.findings
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
    chain, layers = p.chain, set[int]()
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


def _anew(scheme: str) -> Callable[[Patient], Proposal | Refusal]:
    """Return a remedy that draws all weights of a network whose layers are no plain chain.

    For such a chain's gradients there are sharper ones: theory knows what weights keep them.
    """

    def propose(p: Patient) -> Proposal | Refusal:
        chain = p.chain
        plain = chain is not None and not (chain.residual or chain.norm or p.diagnosis.healthy)
        if chain is not None and (chain.exact or plain):
            return Refusal("the layers form a chain, for which there are other weights")
        return Proposal(Initialize(scheme))

    return propose


def _nonlinear(p: Patient) -> Proposal | Refusal:
    chain = p.chain
    if chain is None or chain.activation != "identity" or len(chain.layers) < 2:
        return Refusal("the layers form no chain without activations")
    if (abs(chain.flow.activation_gain_log2) > EXACT).any():
        return Refusal("something between the layers changes the gradient")
    return Proposal(together(SetActivation("relu"), Initialize("he_normal")))


def _without_sigmoids(p: Patient) -> Proposal | Refusal:
    """Use GELU, as smooth, in place of sigmoids, if most activations of no chain are such."""
    kinds = [one.kind for one in p.reading.operations if one.kind in ACTIVATIONS]
    if p.chain is not None or 2 * kinds.count("sigmoid") <= len(kinds):
        return Refusal("the activations are no sigmoids, or the layers form a chain")
    return Proposal(SetActivation("gelu"))


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
        return NO_CHAIN if p.chain is None else Proposal(together(*edits))

    return propose


def _critical(p: Patient) -> Proposal | Refusal:
    chain = p.chain
    if chain is None:
        return NO_CHAIN
    if chain.activation in CRITICAL_SIGMA_B:
        return Proposal(Initialize("critical"))
    return Refusal(f"{chain.activation} has no critical point: no weights keep its gradient")


def _skips(p: Patient) -> Proposal | Refusal:
    chain = p.chain
    if chain is None:
        return NO_CHAIN
    scheme = "critical" if chain.activation in CRITICAL_SIGMA_B else "orthogonal"
    return Proposal(together(AddSkips(), Initialize(scheme)))


def _activation(p: Patient) -> Proposal | Refusal:
    """Use tanh, which trains deepest at its critical point; in place of tanh, ReLU."""
    chain = p.chain
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


def _decay(p: Patient) -> Proposal | Refusal:
    lower = lower_decay(p.reading)
    if p.given.has(WeightDecay) or lower is None:
        return Refusal("no weight decay weighs much beside the gradient")
    times = GENTLE * lower.instead_of / lower.decay
    return Proposal(lower, f"its gradient was {times:.2g} times the data's")


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
    Remedy("scale the data", BOTH, _scale_data, scales=True),
    Remedy("scale the target", BOTH, _scale_target, 0.5, scales=True),
    Remedy("what the diagnosis says", FLOW, advice.as_said, said=True),
    Remedy("what else it says", FLOW, advice.else_said, said=True),
    Remedy("reset biases", FLOW, _reset_biases),
    Remedy("draw layers again", FLOW, _draw_layers),
    Remedy("open the gates", BOTH, recurrent.open_gates),
    Remedy("gates for the length", BOTH, recurrent.gates_for_the_length),
    Remedy("scale the recurrent matrix", BOTH, recurrent.scale_matrix),
    Remedy("orthogonal recurrent matrix", BOTH, recurrent.orthogonal_matrix),
    Remedy("scale every layer", FLOW, _lsuv),
    Remedy("what it says of all layers", FLOW, advice.said_of_all, said=True),
    Remedy("clip", FLOW, _clip_first),
    Remedy("truncate", BOTH, recurrent.truncated),
    Remedy("steady gradients", BOTH, recurrent.steady_matrix, 0.3),
    Remedy("another cell", BOTH, recurrent.other_cell, 0.0),
    Remedy("activation that it says", FLOW, advice.activation_said, 0.3, said=True),
    Remedy("activations", BOTH, _nonlinear, 0.3),
    Remedy("no sigmoids", BOTH, _without_sigmoids, 0.3),
    Remedy("initialize as by default", BOTH, _anew("default"), 0.0),
    Remedy("initialize for ReLU", BOTH, _anew("he_normal"), 0.0),
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
    Remedy("weight decay", TRAINING, _decay),
    Remedy("learning rate", TRAINING, _learning_rate),
    Remedy("clip", TRAINING, _clip, followed=False),
)
