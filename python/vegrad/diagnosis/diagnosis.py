"""From a measured flow to findings: what is wrong with a network's gradients, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from os import PathLike
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray, as_array, as_count
from vegrad.arrays.measurement import Measurement
from vegrad.diagnosis.history import History, as_history
from vegrad.diagnosis.rules.table import RULES
from vegrad.diagnosis.trend import Measured, Trend
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, power, times
from vegrad.reports.page import page, write
from vegrad.reports.picture import plot
from vegrad.reports.shown import Comparison
from vegrad.reports.text import text
from vegrad.theory.expected import ExpectedFlow, expected_flow

MOST_RESAMPLED = 256  # rows of a resampled batch
SHIFT = min(abs(rule.warning) for rule in RULES if rule.kind == "vanishing") * DECADE

__all__ = ["RULES", "Diagnosis", "Finding", "Trend", "diagnose", "named", "power", "times"]


@dataclass(frozen=True)
class Diagnosis:
    """What one forward and backward pass says; print it, plot it, or take it apart.

    `findings` are ordered by cause, and the first gives the verdict. `flow`, `trend` and `loss`
    are None where nothing was run because the data are not finite, or because only gradients or a
    history were given. `expected` is what theory expects at initialization (None where it has no
    say). `underflowed` and `overflowed` are the layers whose weight gradient the network's dtype
    lost (to 0 or inf) although the flow knows its size. `measurement` has the gradients that
    `diagnose_gradients` was given.
    """

    findings: tuple[Finding, ...]
    summary: str
    config: dict[str, Any]
    loss: float | None = None
    flow: Flow | None = None
    trend: Trend | None = None
    underflowed: tuple[int, ...] = ()
    overflowed: tuple[int, ...] = ()
    expected: ExpectedFlow | None = None
    measurement: Measurement | None = None

    @property
    def verdict(self) -> str:
        """The kind of the first finding, or "healthy"."""
        return self.findings[0].kind if self.findings else "healthy"

    @property
    def healthy(self) -> bool:
        """Whether there is no finding."""
        return not self.findings

    @property
    def sentence(self) -> str:
        """The first finding's message or, without findings, why all is well."""
        return self.findings[0].message if self.findings else self.summary.removeprefix("healthy: ")

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, all_layers: bool = False) -> str:
        """The table of layers, the verdict, findings and advice.

        Middle layers that nothing is said about are left out unless `all_layers`.
        """
        return text(self, all_layers=all_layers)

    def plot(self, path: str | PathLike[str] = "vegrad-flow.png") -> str:
        """Draw the flow into a file, whose suffix gives the format, and return its path.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no flow to draw, or the suffix is unknown.
            OSError: the file cannot be written; nothing half-written is left.
        """
        return plot(self, path)

    def to_html(
        self,
        path: str | PathLike[str] | None = None,
        *,
        history: History | None = None,
        proof: Any = None,
    ) -> str:
        """A page that needs nothing beside itself: findings, flow and theory, charts, all layers.

        Args:
            path: the file to write, whole or not at all.
            history: of a training, whose loss, steps and findings are then shown.
            proof: what a cure has shown: a mapping (or object) with a `History` each as "before"
                and "after" and, if it likes, a "text".

        Returns:
            The page.

        Raises:
            TypeError: history is no `History`, or proof has none.
            OSError: the file cannot be written; nothing half-written is left.
        """
        seen = None if history is None else as_history("history", history)
        html = page(self, seen, None if proof is None else _comparison(proof))
        if path is not None:
            write(html, path)
        return html

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types; numbers that are not finite are None."""
        names = ("verdict", "healthy", "summary", "loss", "underflowed", "overflowed")
        content: dict[str, Any] = {name: getattr(self, name) for name in names}
        content["findings"] = [vars(finding) for finding in self.findings]
        content["trend"] = self.trend and vars(self.trend)
        content["flow"] = self.flow and self.flow.to_dict()
        expected = self.expected
        content["expected"] = expected and {n: v.tolist() for n, v in vars(expected).items()}
        if expected is not None and self.flow is not None:
            content["expected"]["deviations"] = expected.deviations(self.flow).tolist()
        content["measurement"] = self.measurement and self.measurement.to_dict()
        content["network"] = self.config
        plain: dict[str, Any] = _plain(content)
        return plain


def diagnose(
    network: Any,
    x: Any,
    target: Any,
    *,
    history: History | None = None,
    resamples: int = 4,
    seed: int = 0,
    theory: bool = True,
) -> Diagnosis:
    """Judge the gradients of `network` by one forward and backward pass.

    Args:
        network: a `vegrad.MLP`, whose `.gradients` and `.flow` are overwritten.
        x: the inputs (B, I).
        target: as for `MLP.backward`.
        history: of its training, whose findings are taken in.
        resamples: further passes, over at most 256 rows drawn from the batch with replacement,
            which tell how far the gains depend on the batch; 0 for one pass only.
        seed: of that draw.
        theory: whether to work out what theory expects, which takes a millisecond or two a layer
            and changes no verdict.

    Raises:
        TypeError, ValueError: as `MLP.backward`; but NaN and infinity in the data are a finding.
    """
    config = dict(network.config)
    unusable = not_run(
        config, (_check_finite("x", x, config), _check_finite("target", target, config))
    )
    if unusable is not None:
        return unusable
    batches = _resampled(network, x, target, as_count("resamples", resamples), seed)
    loss = network.backward(x, target)
    expected = expected_or_none(network, x) if theory else None
    m = Measured(network, loss, network.flow, SHIFT, batches, expected)
    findings, summary = judge(m, history)
    return Diagnosis(
        findings, summary, config, loss, m.flow, m.trend, m.underflowed, m.overflowed, m.expected
    )


def _comparison(proof: Any) -> Comparison:
    """Collect what a proof, a mapping or an object, has to show."""

    def entry(name: str) -> Any:
        if isinstance(proof, Mapping) and name in proof:
            return proof[name]
        return getattr(proof, name, None)

    before, after = (as_history(f'proof["{name}"]', entry(name)) for name in ("before", "after"))
    words, loss, accuracy = str(entry("text") or ""), entry("loss"), entry("accuracy")
    if loss is not None:  # a proof of vegrad.cure, whose numbers stand in the table
        words = f"{entry('steps')} steps from seed {entry('seed')}, on the same rows."
    return Comparison(before, after, words, loss, accuracy, entry("diagnoses"))


def not_run(config: dict[str, Any], problems: Iterable[Finding | None]) -> Diagnosis | None:
    """The diagnosis of data that cannot be used; None if there are no problems."""
    finding = next((one for one in problems if one is not None), None)
    if finding is None:
        return None
    return Diagnosis((finding,), f"{finding.kind}: {finding.message}", config)


def judge(m: Measured, history: History | None = None) -> tuple[tuple[Finding, ...], str]:
    """What the rules find in what was measured, causes first, and the verdict's sentence."""
    findings: list[Finding] = []
    for rule in RULES:
        findings.extend(rule.find(m, rule, findings))
        if np.isnan(m.flow.activation_rms).any() or np.isnan(m.flow.delta_log2).any():
            break  # the first rule has said where; the others cannot compare with NaN
    findings = with_history(_by_cause(findings, m), history)
    summary = f"{findings[0].kind}: {findings[0].message}" if findings else healthy_sentence(m)
    return tuple(findings), summary


def _resampled(network: Any, x: Any, target: Any, count: int, seed: int) -> FloatArray:
    """Gains (count, L - 1), as if of batches as large as this one."""
    data, wanted = as_array(x, "x"), as_array(target, "target")
    same = data.ndim and wanted.ndim and len(data) == len(wanted)  # else backward complains

    def gains(rows: Any) -> FloatArray:
        network.backward(data[rows], wanted[rows])
        found: FloatArray = network.flow.gain_log2
        return found

    return resampled(gains, len(data) if same else 0, len(network.config["sizes"]) - 2, count, seed)


def resampled(
    gains: Callable[[Any], FloatArray], rows: int, chain: int, count: int, seed: int
) -> FloatArray:
    """What `gains` gives of rows drawn with replacement, as if of all rows: (count, chain)."""
    size = min(rows, MOST_RESAMPLED)
    random = np.random.default_rng(seed)
    drawn = [random.integers(0, rows, size) for _ in range(count if rows > 1 else 0)]
    found = np.array([gains(chosen) for chosen in drawn]).reshape(len(drawn), chain)
    if not len(found):
        return found
    with np.errstate(invalid="ignore"):
        middle = found.mean(axis=0)
        shrunk: FloatArray = middle + (found - middle) * sqrt(size / rows)
    return shrunk


def expected_or_none(network: Any, x: Any) -> ExpectedFlow | None:
    """What theory expects of the network on x (B, I), where it has a say."""
    try:
        return expected_flow(network, as_array(x, "x"))
    except ValueError:  # of inputs that are all zero, or too large, theory says nothing
        return None


def with_history(findings: list[Finding], history: History | None) -> list[Finding]:
    """Steps that are too long break a network, and broken gradients stall it."""
    if history is None:
        return findings
    of_steps = list(history.findings)
    first = [finding for finding in of_steps if finding.kind == "overshooting"]
    return first + findings + [finding for finding in of_steps if finding not in first]


def _check_finite(name: str, value: Any, config: dict[str, Any]) -> Finding | None:
    """What is not finite in the data as the network sees them; `backward` judges the shapes."""
    array, dtype = as_array(value, name), np.dtype(config["dtype"])
    if array.dtype.kind in "biu" or array.ndim not in (1, 2):
        return None
    if name == "x" and array.shape[-1] != config["sizes"][0]:
        return None
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(array.astype(dtype))
    if not bad.any():
        return None
    place = tuple(np.argwhere(bad)[0].tolist())
    row, column = (*place, 0)[:2]
    count, rows = int(bad.sum()), int(bad.reshape(len(array), -1).any(axis=1).sum())
    what = "too large for " + dtype.name if isfinite(array[place]) else str(array[place])
    where = f"{name}[{', '.join(map(str, place))}]"
    among = f"the only such value in {len(array)} rows"
    if count > 1:
        among = f"the first of {count} such values in {rows} of {len(array)} rows"
    return Finding(
        "nonfinite",
        "critical",
        (),
        f"{where} is {what}, {among}; nothing was run",
        f"fill in or remove {'it' if count == 1 else f'these {count} values'} (rows and columns "
        "are counted from 0), then diagnose again.",
        {"row": row, "column": column, "count": count, "rows": rows},
    )


def _by_cause(findings: list[Finding], m: Measured) -> list[Finding]:
    """Causes before effects: the order of the table, with two exceptions."""
    order = list(dict.fromkeys(rule.kind for rule in RULES))
    blames = {f.blame for f in findings if f.kind == "vanishing"}
    saturated = {layer for f in findings if f.kind == "saturated" for layer in f.layers}
    if blames == {"weights"} and not saturated & m.broken.keys():  # it stops no gradient
        order.append(order.pop(order.index("saturated")))
    if np.isfinite(m.flow.delta_log2).all() and isfinite(m.loss):
        order.append(order.pop(order.index("nonfinite")))  # overflow is the explosion's effect
    return sorted(findings, key=lambda f: (order.index(f.kind), f.severity))


def healthy_sentence(m: Measured) -> str:
    """What is said where nothing is found."""
    if m.trend is None:
        single = len(m.flow.delta_log2) == 1
        why = "one layer has no chain of gradients" if single else "the gradient is exactly 0"
        return f"healthy: {why}"
    low, high = times(m.trend.low), times(m.trend.high)
    interval = f" (95 % interval {low} to {high})" if m.trend.count > 1 else ""
    chain = m.flow.chain_log10
    return (
        f"healthy: the gradient passes each layer at {times(m.trend.gain)}{interval} and reaches "
        f"the first layer at {power(chain)} {'times' if chain >= 0 else 'of'} the last"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if isfinite(value) else None
    return value
