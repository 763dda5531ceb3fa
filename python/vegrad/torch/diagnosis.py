"""What one pass of a torch model says of its gradients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log2
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import FloatArray, as_count
from vegrad.diagnosis.diagnosis import (
    SHIFT,
    Diagnosis,
    healthy_sentence,
    judge,
    not_run,
    resampled,
    with_history,
)
from vegrad.diagnosis.history import History
from vegrad.diagnosis.trend import Measured
from vegrad.flow.finding import Finding
from vegrad.flow.wording import exp2
from vegrad.recordings import diagnose_gradients
from vegrad.torch import models
from vegrad.torch.monitor.monitor import Monitor
from vegrad.torch.monitor.report import Report, healthy, noted
from vegrad.torch.reading import blame, cells, passes, redraw, through_time
from vegrad.torch.reading.branches import OfBranch, faint, furthest
from vegrad.torch.reading.embeddings import findings_of
from vegrad.torch.vocabulary import begun, said

EDGE, NAME = 67, 22  # the table's columns; letters of a module's path beside it


@dataclass(frozen=True)
class ModelDiagnosis(Diagnosis):
    """A diagnosis of a model whose layers are a chain; layer n is `modules[n]`."""

    modules: tuple[str, ...] = ()
    drawn: bool = False
    """Whether `expected` is from weights drawn anew, where theory has no formulas."""

    def to_text(self, *, all_layers: bool = False) -> str:
        """The table of layers with their modules, the verdict, findings and advice."""
        lines = []
        for line in super().to_text(all_layers=all_layers).splitlines():
            row = re.match(r"^ {0,4}(\d+)  ", line)
            if row and int(row[1]) < len(self.modules) and len(line) < 82:
                name, note = self.modules[int(row[1])][-NAME:], line[EDGE:].strip()
                line = f"{line[:EDGE]:<{EDGE}}  {name}{' ←' if note else ''}"
            lines.append(line)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As of a `Diagnosis`, with `modules` and `drawn`."""
        return super().to_dict() | {"modules": list(self.modules), "drawn": self.drawn}


@torch.inference_mode(False)
def diagnose(
    model: Module,
    loss_fn: Any,
    x: Any,
    target: Any,
    *,
    history: History | None = None,
    resamples: int = 4,
    seed: int = 0,
) -> Diagnosis:
    """Judge the gradients of a model by one forward and backward pass of a batch.

    Where Linear layers or convolutions follow each other (with activations, normalization, skip
    connections and what else there is between), gains are taken apart into weights × derivative, as
    `vegrad.diagnose` does it; of other models (transformers, LSTMs) the gradients at modules and
    parameters are compared, and in recurrent modules followed through time. The model is run in the
    mode that it is in, and left as it was: parameters, their `.grad`, buffers, training flags and
    the random generators.

    Args:
        model: any module; wrapped by torch.compile or DistributedDataParallel, what it wraps.
        loss_fn: called with the model's output and target; returns the mean loss, a tensor.
        x: the inputs, a batch first; a tuple or mapping of several.
        target: whatever loss_fn takes.
        history: a `vegrad.History` of its training, whose findings are taken in.
        resamples: further passes, over at most 256 rows drawn from the batch with replacement,
            which tell how far the gains depend on the batch; 0 for one pass only.
        seed: of that draw.

    What gains are expected is theory's, where it knows every module; of other chains (convolutions,
    pooling, BatchNorm, blocks with their normalization before or after the skip connection, ...)
    it is found from eight passes of a copy whose weights are drawn anew, as they look to have been
    initialized (`.drawn`; not with resamples=0).

    Returns:
        A Diagnosis, with `flow`, if the layers are a chain, and `modules`, which names them; else
        with `rows`, the modules' numbers, and `measurement`, that of the parameters' gradients.

    Raises:
        TypeError: for a model that is no module, or a loss_fn that cannot be called.
        ValueError: for a loss that is no single number, or no parameter with a gradient. NaN and
            inf are a finding.
    """
    check(model, loss_fn)
    count, seed = as_count("resamples", resamples), as_count("seed", seed)
    if history is not None and not isinstance(history, History):
        raise TypeError(f"history must be a vegrad.History, not {type(history).__name__}")
    model = models.unwrapped(model)
    problems = (not_finite("x", x), not_finite("target", target))
    unusable = not_run({"model": type(model).__name__}, problems)
    if unusable is not None:
        return unusable
    with models.untouched(model, loss_fn):
        with cells.heard(model) as calls:
            run = passes.forward(model, loss_fn, x, target)
        if not run.path:
            in_time = cells.recurrences(model, calls, seed)
            return _of_any(model, loss_fn, x, target, run.trace, history, in_time)
        return _of_chain(model, loss_fn, x, target, run, history, count, seed)


def check(model: Any, loss_fn: Any) -> None:
    """TypeError, ValueError if they are none that gradients can be had of."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, not {type(loss_fn).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter that requires a gradient")


# A chain ---------------------------------------------------------------------------------------


def _of_chain(
    model: Module,
    loss_fn: Any,
    x: Any,
    target: Any,
    run: passes.Pass,
    history: History | None,
    count: int,
    seed: int,
) -> Diagnosis:
    before = list(run.path)
    gradients = passes.backward(run)
    passes.on_path(run)
    gradients = [gradients[before.index(place)] for place in run.path]
    flow, config, layers = passes.flow_of(run, gradients), passes.config_of(run), run.layers
    zeros = passes.begun_at_zero(run, gradients)
    names = [layer.name for layer in layers]
    parameters, stored = {}, {}
    for number, layer in enumerate(layers):
        for part, value in (("weight", layer.weight), ("bias", layer.bias)):
            if value is not None:
                parameters[f"layers.{number}.{part}"] = value.detach().double().cpu().numpy()
        shift = run.shifts.get(run.path[number], 0.0)
        stored[f"layers.{number}.weight"] = passes.shifted(gradients[number], shift, layer.weight)
    network = SimpleNamespace(config=config, parameters=parameters, gradients=stored)
    path = list(run.path)
    sizes = {f"{name}.weight": size for name, size in zip(names, flow.gradient_log2, strict=True)}
    branches = findings_of(run.trace, dict(model.named_parameters()), sizes)
    sums, small = run.trace.branches, faint(run.trace.branches)
    expected = passes.expected_of(run, config, x)
    drawn = expected is None and count > 0
    if drawn:
        expected = redraw.expected(model, loss_fn, x, target, run, config, seed)
    loss, known_loss = float(run.loss.detach()), run.loss_kind
    cut = min((n for n, place in enumerate(run.path) if place in run.sizes), default=0)
    del run, gradients
    batches = _resampled(model, loss_fn, x, target, path, count, seed)
    m = Measured(network, loss, flow, SHIFT, batches, expected)
    findings, summary = judge(m, history)
    if zeros and findings:
        findings = tuple(f for f in findings if f.layers[:1] not in {(n,) for n in zeros}
                         or f.evidence.get("gain") != 0)  # fmt: skip
    told = tuple(said(finding, names, drawn=drawn) for finding in findings)
    told = blame.detached(blame.outside(told, flow, names, known_loss), cut, names)
    told, named = blame.blamed(told, model, names, sums, drawn)
    known = {one.parameter for one in branches}
    branches += [one for one in named if one.parameter not in known]
    told = blame.causes(tuple(_without_bias(finding, model) for finding in told), layers)
    told = _with_branches(
        told, branches, small, names, lambda f: tuple(names[f.layers[0] : f.layers[0] + 2])
    )
    if told:
        summary = f"{told[0].kind}: {told[0].message}"
    elif not summary.startswith("healthy"):
        summary = f"healthy: {begun(list(zeros.values()))}" if zeros else healthy_sentence(m)
    return ModelDiagnosis(
        told, summary, config, loss, flow, m.trend, m.underflowed, m.overflowed, expected,
        modules=tuple(names), drawn=drawn and expected is not None,
    )  # fmt: skip


def _without_bias(finding: Finding, model: Module) -> Finding:
    """The advice without a bias that there is none of."""
    known = {name for name, _ in model.named_parameters()}

    def draw(found: re.Match[str]) -> str:
        return found[0] if f"{found[1]}.bias" in known else f"draw {found[1]}.weight again"

    advice = re.sub(r"set (\S+)\.bias to 0 and draw its weights again", draw, finding.advice)
    return replace(finding, advice=advice)


def _with_branches(
    findings: Sequence[Finding],
    branches: Sequence[OfBranch],
    small: set[str],
    modules: Sequence[str],
    gap: Callable[[Finding], tuple[str, ...]],
) -> tuple[Finding, ...]:
    """With what is wrong with branches, and without what only that makes of single layers.

    `small` are parameters of branches that add little by design, and `gap` tells the two modules,
    the lower one first, between which gradients were compared.
    """
    inside = {_module(name) for name in small}
    own = {_module(name) for one in branches for name in one.branch}
    places = {module: place for place, module in enumerate(modules)}
    drowned = [_place(one, places) for one in branches if one.kind == "exploding"]
    lowest = min(drowned, default=inf)  # above it the stream is large, and its gradient small

    def explained(finding: Finding) -> bool:
        if "usual_gain" not in finding.evidence:
            return "worst" in finding.evidence and bool(drowned)
        ends = gap(finding)
        above = max((places.get(end, -1) for end in ends), default=-1)
        if not own.isdisjoint(ends) or len(inside.intersection(ends)) == 1:
            return True
        return finding.kind == "vanishing" and above >= lowest

    kept = [finding for finding in findings if not explained(finding)]
    first = [finding for finding in kept if finding.kind == "nonfinite"]
    placed = []
    for one in branches:
        place = places.get(_module(one.parameter))
        placed.append(replace(one, layers=one.layers if place is None else (place,)))
    return (*first, *placed, *(finding for finding in kept if finding not in first))


def _place(finding: OfBranch, places: dict[str, int]) -> float:
    """Of its module, or of the last one below it in the branch, or of the first in it."""
    known = {name: places[_module(name)] for name in finding.branch if _module(name) in places}
    if finding.parameter in known:
        return known[finding.parameter]
    below = finding.branch[: finding.branch.index(finding.parameter)]
    below_it = [known[name] for name in below if name in known]
    return max(below_it) if below_it else min(known.values(), default=inf)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _resampled(
    model: Module, loss_fn: Any, x: Any, target: Any, path: list[int], count: int, seed: int
) -> FloatArray:
    """Gains (count, L - 1) of batches drawn with replacement; none where there are no rows."""
    take = passes.rows_of(x, target)

    def gains(rows: Any) -> FloatArray:
        assert take is not None
        run = passes.forward(model, loss_fn, *take(rows))
        passes.backward(run)
        run.path[:] = path
        return passes.gains(run)

    rows = 0 if take is None else len(target)
    return resampled(gains, rows, len(path) - 1, count, seed)


# Any model -------------------------------------------------------------------------------------


def _of_any(
    model: Module, loss_fn: Any, x: Any, target: Any, trace: Any, history: History | None,
    in_time: Sequence[cells.Recurrence],
) -> Diagnosis:  # fmt: skip
    """By a monitor's rows and the parameters' gradients."""
    monitor = Monitor(model, details=1)
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        monitor.probing = True
        loss = loss_fn(models.called(model, x), target)
        wanted = [parameter for parameter, _ in kept if parameter.requires_grad]
        given = torch.autograd.grad(loss, wanted, allow_unused=True)
        for parameter, gradient in zip(wanted, given, strict=True):
            parameter.grad = gradient
        monitor.step()
        said = monitor.report()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        weights = {n: p.detach() for n, p in model.named_parameters() if n in named}
        order = _one_after_the_other(named, trace)
        recorded = diagnose_gradients(_on_cpu(named), _on_cpu(weights), order)
    finally:
        monitor.remove()
        for parameter, gradient in kept:
            parameter.grad = gradient
    parameters = dict(model.named_parameters())
    anew = partial(redraw.decades, model, loss_fn, x, target)
    own = through_time.unlike_fresh(said, in_time, anew)
    findings = [_with_numbers(finding, said, recorded, parameters) for finding in own]
    kinds = {finding.kind for finding in findings}
    findings += [f for f in _alone(recorded.findings) if f.kind not in kinds]
    sizes = {name: models.size_log2(gradient) for name, gradient in named.items()
             if gradient.ndim > 1}  # fmt: skip
    branches = findings_of(trace, parameters, sizes)
    modules = [row["module"] for row in said.rows]
    findings = list(_with_branches(findings, branches, faint(trace.branches), modules, _between))
    findings, notes = through_time.added(findings, in_time, model, sizes, said.rows)
    notes = [*said.notes, *notes]
    maps = {f"{layer.name}.weight" for layer in trace.layers}
    maps |= {name for branch in trace.branches for name in branch.trail}
    begins = [name for name, size in sizes.items()
              if size > -inf and name in maps and not weights[name].any()]  # fmt: skip
    if begins:  # as many branches and heads do: the first step changes it
        findings = [f for f in findings if f.kind != "dead" and "exactly 0" not in f.message
                    and f.evidence.get("decades") != -inf]  # fmt: skip
        notes.append(begun(begins))
    findings = with_history(findings, history)
    last = monitor.history[-1].gradient_norm
    summary = f"{findings[0].kind}: {findings[0].message}" if findings else healthy(said.rows, last)
    why = f"no chain of layers: {trace.foreign}" if trace.foreign else "no chain of layers"
    config = {"model": f"{type(model).__name__} ({why}), loss {float(loss.detach()):.4g}",
              "parameters": len(kept), "chain": recorded.config["chain"]}  # fmt: skip
    return Report(
        tuple(findings), summary, config, loss=float(loss.detach()),
        measurement=recorded.measurement, rows=noted(said.rows, findings), notes=tuple(notes),
        through_time=through_time.rows_of(in_time),
    )  # fmt: skip


def _one_after_the_other(gradients: dict[str, Tensor], trace: Any) -> list[str] | None:
    """The weights, but of those that take the same inputs only one; None where biases count too.

    Of queries, keys and values: what goes through a softmax hardly gets a gradient at first, which
    says nothing of the layers above and below. Chosen is the kind whose gradient is mostly largest.
    Biases in branches, those of norms among them, do not stand one after the other either.
    """
    beside: dict[int, dict[str, str]] = {}  # the kind of weight, which is its name but for numbers
    for layer in trace.layers:
        name = f"{layer.name}.weight"
        if name in gradients:
            beside.setdefault(id(layer.x), {})[name] = re.sub(r"\d+", "", name)
    groups = [group for group in beside.values() if len(group) > 1]
    sizes = {name: models.size_log2(gradients[name]) for group in groups for name in group}
    first = Counter(group[max(group, key=sizes.__getitem__)] for group in groups)
    less: set[str] = set()
    for group in groups:
        less |= set(sorted(group, key=lambda name: (first[group[name]], sizes[name]))[:-1])
    weights = [name for name, one in gradients.items() if one.ndim > 1]
    return [name for name in weights if name not in less] if less or trace.branches else None


def _between(finding: Finding) -> tuple[str, ...]:
    """The modules of which a finding about recorded gradients speaks, the lower one first."""
    ends = re.match(r"between (\S+) and (\S+) below it", finding.message)
    return (_module(ends[2]), _module(ends[1])) if ends else ()


def _alone(findings: tuple[Finding, ...]) -> list[Finding]:
    """Without what says of a weight's neighbour that it is off, where the weight itself is.

    Then the gradients change one way in the gap above it and the other way in the gap below.
    """
    gaps = {f.layers[0]: f.kind for f in findings if "usual_gain" in f.evidence}
    doubled = {n for n, kind in gaps.items() if gaps.get(n - 1, kind) != kind}
    return [f for f in findings if "usual_gain" not in f.evidence or f.layers[0] not in doubled]


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        found[name] = dense.detach().cpu()
    return found


def _with_numbers(
    finding: Finding, report: Report, recorded: Diagnosis, parameters: dict[str, Tensor]
) -> Finding:
    """A chain's finding with the factor that its worst module, or each, should be scaled by."""
    if finding.kind not in ("vanishing", "exploding") or "worst" not in finding.evidence:
        return finding
    known = [r for r in report.rows if r["weighted"] and 0 < r["delta_norm"] < inf]
    steps = np.diff(np.log2([row["delta_norm"] for row in known]))
    worst = report.rows[int(finding.evidence["worst"])]["module"]
    place = next((n for n, row in enumerate(known) if row["module"] == worst), 0)
    if not steps.size or not place:
        return finding
    usual = float(np.median(np.delete(steps, place - 1))) if steps.size > 2 else 0.0
    apart = float(steps[place - 1]) - usual
    evidence = dict(finding.evidence)
    if abs(apart) >= SHIFT:
        factor = exp2(apart)
        name = f"{worst}.weight"
        if name not in parameters:
            name, factor = furthest([n for n in parameters if _module(n) == worst], parameters)
        advice = f"multiply {name} by {factor:.3g}: in passing {worst} δ changes "
        advice += f"{exp2(-float(steps[place - 1])):.2g}×, and {exp2(-usual):.2g}× elsewhere."
    else:
        factor = exp2(float(steps.mean()))
        advice = f"each of the {len(known)} modules with weights should pass {factor:.3g} times as "
        advice += f"much: multiply their weights by that, or: {finding.advice}"
    if finding.kind == "exploding" and recorded.measurement is not None:
        norms = [one.norm_log2 for one in recorded.measurement.buffers if one.norm_log2 > -inf]
        limit = exp2(float(np.median(norms)) + 0.5 * log2(len(norms)))
        advice += f" Until then clip the gradients' joint norm at {limit:.2g}."
        evidence["clip"] = limit
    evidence["factor"] = factor
    return replace(finding, advice=advice, evidence=evidence)


def not_finite(name: str, value: Any) -> Finding | None:
    """What is not finite in the data."""
    several = {name: value}
    if isinstance(value, tuple | list):
        several = {f"{name}[{n}]": one for n, one in enumerate(value)}
    elif isinstance(value, Mapping):
        several = {f"{name}[{key!r}]": one for key, one in value.items()}
    for where, tensor in several.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        bad = ~torch.isfinite(tensor)
        if not bool(bad.any()):
            continue
        first, count = bad.nonzero()[0].tolist(), int(bad.sum())
        message = f"{where}{first} is {float(tensor[tuple(first)])}"
        message += f", the first of {count} such values" if count > 1 else ""
        message += "; nothing was run"
        advice = f"fill in or remove {'these values' if count > 1 else 'it'}, then diagnose again."
        return Finding("nonfinite", "critical", (), message, advice, {"count": float(count)})
    return None
