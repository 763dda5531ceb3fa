"""What a monitor saw, as a diagnosis."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, log2, log10, nan
from typing import Any

import numpy as np

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.rules.table import RULES
from vegrad.flow.finding import Finding
from vegrad.flow.wording import times

WIDTH = 80
TINY = 1e-20  # δ from which nothing gets to 0 at once by its dtype
MUCH = 0.01  # subnormal elements that are worth a word


@dataclass(frozen=True)
class Report(Diagnosis):
    """A diagnosis of a monitored step; `flow` is None, `rows` has the modules' numbers."""

    rows: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    through_time: tuple[dict[str, Any], ...] = ()
    """Of recurrent modules: the steps that the gradient reaches, and how it changes in each."""

    def to_dict(self) -> dict[str, Any]:
        """As of a `Diagnosis`, with `through_time`."""
        return super().to_dict() | {"through_time": [dict(row) for row in self.through_time]}

    def to_text(self, *, all_layers: bool = False) -> str:
        """The table of modules, the verdict, findings and advice."""
        width = max([len(row["module"]) for row in self.rows] + [6])
        title = f"{'module':<{width}}  activation rms  δ log10  gradient log10"
        lines = [self.config["model"], "", title]
        shown, before = _shown(len(self.rows), all_layers), -1
        for place in shown:
            if place > before + 1:
                lines.append(f"{'⋮':<{width}}  {place - before - 1} modules not shown")
            before, row = place, self.rows[place]
            line = f"{row['module']:<{width}}  {_number(row['activation_rms']):>14}  "
            line += f"{_log(row['delta_norm']):>7}  {_log(row['gradient_norm']):>14}"
            lines.append(f"{line}  {row['note']}".rstrip())
        lines += [*_in_time(self.through_time), "", textwrap.fill(self.summary, WIDTH)]
        for place, finding in enumerate(self.findings):
            if place:
                lines.append(textwrap.fill(f"also {finding.kind}: {finding.message}", WIDTH))
            lines.append(_indented(f"→ {finding.advice}"))
        return "\n".join(lines + [_indented(f"! {note}") for note in self.notes])


def _in_time(rows: tuple[dict[str, Any], ...]) -> list[str]:
    """The table of recurrent weights."""
    if not rows:
        return []
    width = max([len(row["parameter"]) for row in rows] + [12])
    lines = ["", f"{'through time':<{width}}  a step back  reaches the last    weights drawn anew"]
    for row in rows:
        own, fresh = (times(log2(g) if g > 0 else -inf) for g in (row["gain"], row["fresh_gain"]))
        line = f"{row['parameter']:<{width}}  {own:>11}  {row['reach']:>7} of {row['steps']} steps"
        lines.append(f"{line:<{width + 37}}{fresh:>8}, {row['fresh_reach']} steps")
    return lines


def report(monitor: Any, own: list[list[str]], kind: str) -> Report:
    """The report of a monitor's last step; `own`: each module's own parameters."""
    last = monitor.history[-1]
    gradients = dict(zip(monitor.parameters, last.gradient_norms.tolist(), strict=True))
    rows = []
    for place, name in enumerate(monitor.modules):
        mine = (gradients.get(parameter, nan) for parameter in own[place])
        known = [norm for norm in mine if norm == norm]
        rows.append(
            {
                "module": name,
                "activation_rms": float(last.activation_rms[place]),
                "delta_norm": float(last.delta_norms[place]),
                "gradient_norm": float(np.linalg.norm(known)) if known else float("nan"),
                "note": "",
                "weighted": bool(own[place]),
            }
        )
    begun = _begun(monitor, own)
    dead, chain = _dead(rows, begun), _chain(rows, begun)
    cut = any(finding.evidence["decades"] == -inf for finding in chain)
    findings = [*_nonfinite(monitor), *(dead + chain if cut else chain + dead)]
    summary = (
        f"{findings[0].kind}: {findings[0].message}"
        if findings
        else healthy(rows, last.gradient_norm)
    )
    config = {"model": f"{kind}, step {last.step}", "parameters": len(monitor.parameters)}
    return Report(
        tuple(findings), summary, config, rows=tuple(rows), notes=tuple(_subnormal(monitor))
    )


def _nonfinite(monitor: Any) -> list[Finding]:
    first = monitor.nonfinite
    if first is None:
        return []
    advice = {
        "forward": "look at the input of this module and at the operations before it: a division, "
        "a logarithm or an exponential of what the data of this sample make.",
        "backward": "the derivative of this operation has no finite value there: a square root, a "
        "norm or a logarithm at 0, or a where() with an unused infinite branch.",
        "gradient": "the sum over the batch overflows: scale the loss down, or use a wider dtype.",
    }[first.phase]
    if first.parameter:
        advice = (
            f"draw or load {first.parameter} again; if training made it so, lower the learning "
            "rate by a factor of 10 and clip the gradients' joint norm at 1."
        )
    modules = (monitor.modules.index(first.module),) if first.module in monitor.modules else ()
    evidence = {"step": float(first.step)}
    return [Finding("nonfinite", "critical", modules, first.message, advice, evidence)]


def _begun(monitor: Any, own: list[list[str]]) -> set[int]:
    """Modules whose outputs were 0 at first, as heads and adapters begin: their weights moved."""
    first = monitor.history[0]
    moved = {name for name, size in zip(monitor.parameters, first.gradient_norms, strict=True)
             if size > 0 and not name.endswith("bias")}  # fmt: skip
    return {place for place, names in enumerate(own)
            if first.activation_rms[place] == 0.0 and not moved.isdisjoint(names)}  # fmt: skip


def _chain(rows: list[dict[str, Any]], begun: set[int]) -> list[Finding]:
    """The sizes of δ between the first module with weights and the last, in decades."""
    chain = [(i, r["delta_norm"]) for i, r in enumerate(rows) if r["weighted"]]
    chain = [(i, delta) for i, delta in chain if delta < inf]
    if len(chain) < 2 or chain[-1][1] == 0:
        return []
    (first, start), (last, end) = chain[0], chain[-1]
    decades = log10(start / end) if start else -inf
    kind = "vanishing" if decades < 0 else "exploding"
    rule = next(rule for rule in RULES if rule.kind == kind)
    if abs(decades) < abs(rule.warning):
        return []
    steps = [(place, log10(b / a) if a and b else inf if b else 0.0)
             for (_, a), (place, b) in pairwise(chain)]  # fmt: skip
    worst = max(steps, key=lambda step: step[1] if kind == "vanishing" else -step[1])[0]
    if kind == "vanishing" and worst in begun:
        return []  # what lies below gets its gradient through weights that were 0
    cut = not start and dict(chain)[worst] > TINY
    reach = "0" if cut else "0 (it is too small for its dtype)"
    reach = f"10^{decades:.1f}" if isfinite(decades) else reach
    message = (
        f"the gradient that reaches module {rows[first]['module']} is {reach} of the one at "
        f"module {rows[last]['module']}, the last of {len(chain)} with weights; it changes most in "
        f"passing module {rows[worst]['module']}"
    )
    advice = (
        "use an initialization that keeps variances for your activation (he_normal for ReLU, "
        "lecun_normal for tanh), normalization or skip connections; sigmoid shrinks by 4 or more."
        if kind == "vanishing"
        else "clip the gradients' joint norm, and scale the weights down: each module should pass "
        "about 1×; skip connections add up, by 1/√depth each they do not."
    )
    if cut:
        advice = (
            f"look at {rows[worst]['module']} and what stands before it: weights that are 0 (the "
            "first step changes them), activations that are flat for every input, a detach()."
        )
    evidence = {"decades": decades, "worst": float(worst)}
    rows[worst]["note"] = f"← {kind}"
    return [Finding(kind, rule.severity(decades), (first,), message, advice, evidence)]


def _dead(rows: list[dict[str, Any]], begun: set[int]) -> list[Finding]:
    silent = (place for place, row in enumerate(rows) if row["activation_rms"] == 0.0)
    dead = tuple(place for place in silent if place not in begun)
    if not dead:
        return []
    for place in dead:
        rows[place]["note"] = "← dead"
    names = ", ".join(rows[place]["module"] for place in dead[:3])
    message = f"every output of module {names}{' and others' if len(dead) > 3 else ''} is 0"
    advice = "draw the weights before it again, lower the learning rate, or use a leaky activation."
    return [Finding("dead", "critical", dead, message, advice, {"count": float(len(dead))})]


def noted(rows: Sequence[dict[str, Any]], findings: Sequence[Finding]) -> tuple[Any, ...]:
    """The rows without notes of what is no finding after all."""
    notes = {f"← {finding.kind}" for finding in findings}
    return tuple(row if row["note"] in notes else row | {"note": ""} for row in rows)


def healthy(rows: Sequence[dict[str, Any]], norm: float) -> str:
    """The sentence of a model without findings; `norm`: that of all gradients."""
    known = [r["delta_norm"] for r in rows if r["weighted"] and 0 < r["delta_norm"] < inf]
    if len(known) < 2:
        return f"healthy: every number is finite, the gradient's norm is {norm:.3g}"
    return (
        f"healthy: the gradient reaches the first module at 10^{log10(known[0] / known[-1]):.1f} "
        f"of the last, its norm over all parameters is {norm:.3g}"
    )


def _subnormal(monitor: Any) -> list[str]:
    shares = {k: share for k, share in monitor.subnormals.items() if share > MUCH}
    if not shares:
        return []
    names = {"forward": "activations", "backward": "backward pass's elements",
             "gradients": "parameters' gradients"}  # fmt: skip
    parts = [f"{100 * share:.0f} % of the {names[phase]}" for phase, share in shares.items()]
    said = f"{' and '.join(parts)} are subnormal, which most processors are slow at: "
    if monitor.flush_gain is None:
        return [said + "torch.set_flush_denormal(True) helps; measure_flush(step) says how much."]
    gain = f"{monitor.flush_gain:.1f}×"
    if monitor.flush_gain < 1.1:
        return [f"{said}but torch.set_flush_denormal(True) made no step faster here ({gain})."]
    return [f"{said}torch.set_flush_denormal(True) made one step {gain} faster."]


def _shown(count: int, everything: bool) -> list[int]:
    return (
        list(range(count)) if everything or count <= 24 else [*range(11), *range(count - 11, count)]
    )


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3g}"


def _log(value: float) -> str:
    return "" if value != value else f"{log10(value):.2f}" if 0 < value < inf else f"{value:g}"


def _indented(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ")
