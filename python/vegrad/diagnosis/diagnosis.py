"""The diagnosis: findings, what they were made from, and ways to see and use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import starmap
from math import isfinite
from os import PathLike
from typing import Any, Self, cast

from vegrad.arrays.cached import cached_property
from vegrad.arrays.files import plain
from vegrad.arrays.measurement import Measurement
from vegrad.diagnosis.catalogue.table import as_ignored, without
from vegrad.diagnosis.history import History, as_history
from vegrad.diagnosis.judge import judge
from vegrad.diagnosis.looked_at import looked_at, trend_of
from vegrad.diagnosis.rules.chain import VANISHING
from vegrad.flow.descent import Descent
from vegrad.flow.edits import is_in_place
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.subject import Refusal, Subject
from vegrad.flow.time_flow import TimeFlow
from vegrad.flow.trend import Trend
from vegrad.pictures import Figure
from vegrad.reports import notebook, run_picture
from vegrad.reports.page import page, write
from vegrad.reports.protocols import Comparison
from vegrad.reports.shown_run import ShownModules
from vegrad.reports.text import brief, text
from vegrad.reports.time_picture import plot
from vegrad.theory.expected import ExpectedFlow
from vegrad.theory.recurrence import ExpectedRecurrence


@dataclass(frozen=True)
class Diagnosis:
    """The judgement of one forward and backward pass; print it, plot it, apply it, take it apart.

    `findings` are ordered by cause, and the first gives the verdict. `flow`, `trend` and `loss`
    are None where nothing was run because the data are not finite, or because only gradients or a
    history were given; a recurrent network has no trend. `underflowed` and `overflowed` are the
    layers whose weight gradient the network's dtype lost (to 0 or inf) although the flow knows its
    size. `expected_flow` is what theory expects of a chain of layers at initialization.
    `measurement` has the gradients that `diagnose_gradients` was given.
    """

    findings: tuple[Finding, ...]
    looked_at: str
    """The observation that a verdict of "healthy" rests on."""
    config: Mapping[str, Any]
    """The network, described by name and value."""
    loss: float | None = None
    flow: Flow | TimeFlow | None = None
    """Through the layers of a chain, or through the steps of a `vegrad.RNN`."""
    trend: Trend | None = None
    underflowed: tuple[int, ...] = ()
    overflowed: tuple[int, ...] = ()
    expected_flow: ExpectedFlow | None = None
    measurement: Measurement | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Causes that were left out, as asked, and how many findings of each there had been."""
    reading: Reading | None = field(default=None, repr=False)
    """The reading that the rules were given."""
    further: int = field(default=0, repr=False, compare=False)
    """Passes that what-ifs have taken beside the first."""
    subject_of: Callable[[Any], Subject] | None = field(default=None, repr=False, compare=False)
    """Makes the subject that `apply` edits, of a network of the kind that was judged."""

    @classmethod
    def of(
        cls,
        reading: Reading,
        history: History | None = None,
        subject_of: Callable[[Any], Subject] | None = None,
        **more: Any,
    ) -> Self:
        """Judge a reading."""
        history = None if history is None else as_history("history", history)
        return cls(**_judged(reading, history) | more, subject_of=subject_of)

    def ignoring(self, causes: Collection[str]) -> Self:
        """Return the diagnosis without findings of these causes.

        Raises:
            TypeError, ValueError: for what is no name of a cause (`vegrad explain` lists them).
        """
        counts = Counter(finding.cause for finding in self.findings)
        ignored = {**self.ignored, **{name: counts[name] for name in as_ignored(causes)}}
        return replace(self, findings=without(self.findings, ignored), ignored=ignored)

    @cached_property
    def expected(self) -> ExpectedFlow | tuple[ExpectedRecurrence, ...] | None:
        """The flow that theory expects; None where it has no say.

        Of a chain of layers at initialization. Of recurrent cells, each by itself (without what
        comes down from a layer above), with weights as large as its own that are drawn anew; this
        is worked out when it is first asked for and may take as long as the diagnosis.
        """
        cells = () if self.reading is None else self.reading.cells
        return self.expected_flow or tuple(cell.anew for cell in cells) or None

    @property
    def layer_flow(self) -> Flow | None:
        """The flow, if it is that of a chain of layers."""
        return self.flow if isinstance(self.flow, Flow) else None

    @property
    def time_flow(self) -> TimeFlow | None:
        """The flow, if it is that of a recurrent network."""
        return self.flow if isinstance(self.flow, TimeFlow) else None

    @property
    def left_out(self) -> str:
        """The causes that were left out, as a clause; "" if none was."""
        names = ", ".join(starmap(_counted, self.ignored.items()))
        return f"left out, as asked: {names}" if names else ""

    @property
    def verdict(self) -> str:
        """The kind of the first finding, or "healthy"."""
        return self.findings[0].kind if self.findings else "healthy"

    @property
    def healthy(self) -> bool:
        """True if there is no finding."""
        return not self.findings

    @property
    def summary(self) -> str:
        """The verdict and the first finding's message; of a healthy network what was looked at."""
        return f"{self.verdict}: {self.sentence}"

    @property
    def sentence(self) -> str:
        """The first finding's message; of a healthy network what was looked at."""
        if self.findings:
            return self.findings[0].message
        return "; ".join(filter(None, (self.looked_at, self.left_out)))

    def apply(self, network: Any, finding: Finding | None = None) -> tuple[str, ...] | None:
        """Do what a finding advises to a network, in place.

        Args:
            network: the one that was diagnosed, or a copy of it.
            finding: one of `findings`; the first, if None.

        Returns:
            The names of the parameters that were changed; None if there is nothing to do in place:
            no finding, an advice that changes the architecture, the data or the training, or one
            that cannot be done to this network or changes nothing in it.

        Raises:
            TypeError: for a network of another kind, or what is no finding.
        """
        if finding is None:
            finding = self.findings[0] if self.findings else None
        elif not isinstance(finding, Finding):
            raise TypeError(f"finding must be a vegrad.Finding, not {type(finding).__name__}")
        return None if self.subject_of is None else _applied(self.subject_of(network), finding)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {brief(self)}>"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        modules = self._modules()
        return notebook.diagnosis(self) if modules is None else notebook.modules(self, modules)

    def to_text(self, *, all_layers: bool = False) -> str:
        """Return the table of layers, the verdict, findings and advice.

        Middle layers that nothing is said about are left out unless `all_layers`.
        """
        return text(self, all_layers=all_layers)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the flow or, if it is no chain, the training or the modules, in matplotlib's figure.

        Args:
            path: a file to write, whose suffix gives the format.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is nothing to draw, or the suffix is unknown.
            OSError: the file cannot be written; nothing half-written is left.
        """
        modules = self._modules()
        return plot(self, path) if modules is None else run_picture.plot(self, modules, path)

    def to_html(
        self,
        path: str | PathLike[str] | None = None,
        *,
        history: History | None = None,
        proof: Any = None,
        descents: Mapping[str, Descent] | None = None,
    ) -> str:
        """Make a page that needs nothing beside itself: findings, flow, theory, charts, all layers.

        Args:
            path: the file to write, whole or not at all.
            history: of a training, whose loss, steps and findings are then shown.
            proof: what a cure has shown: a mapping (or object) with a `History` each as "before"
                and "after" and optionally a "text".
            descents: the steps of trainings over the loss, by title, as `vegrad descent` draws.

        Returns:
            The page.

        Raises:
            TypeError: history is no `History`, or proof has none.
            OSError: the file cannot be written; nothing half-written is left.
        """
        seen = None if history is None else as_history("history", history)
        compared = None if proof is None else _comparison(proof)
        html = page(self, seen, compared, descents, self._modules())
        if path is not None:
            write(html, path)
        return html

    def _modules(self) -> ShownModules | None:
        """Return what is shown of the modules of a model that is no chain."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain JSON types; numbers that are not finite are None."""
        return _as_dict(self)


def _counted(cause: str, count: int) -> str:
    return f"{cause} ({count} finding{'s' * (count > 1)})" if count else cause


def _judged(reading: Reading, history: History | None) -> dict[str, Any]:
    """Return what a diagnosis has of a reading."""
    reading = _resampled(reading)
    findings = judge(reading, history)
    numbers = isfinite(reading.loss or 0.0)
    numbers &= all(one.nonfinite is None for one in reading.parameters.values())
    if findings and numbers and reading.chain is not None and reading.chain.draw is not None:
        reading = _drawn(reading, reading.chain)
        findings = judge(reading, history)
    chain, trend = reading.chain, trend_of(reading)
    return {
        "findings": findings,
        "looked_at": looked_at(reading, trend),
        "config": reading.about,
        "loss": reading.loss,
        "trend": trend,
        "measurement": None if reading.gradients is None else reading.gradients.measurement,
        # Not what would keep the network alive.
        "reading": replace(
            reading,
            what_if=None,
            chain=chain and replace(chain, draw=None, resample=None),
            penalty=reading.penalty and replace(reading.penalty, possible=None),
        ),
        "further": 0 if reading.what_if is None else reading.what_if.passes,
        "underflowed": () if chain is None else chain.underflowed,
        "overflowed": () if chain is None else chain.overflowed,
        "flow": reading.time_flow if chain is None else chain.flow,
        "expected_flow": None if chain is None else chain.expected,
    }


def _applied(subject: Subject, finding: Finding | None) -> tuple[str, ...] | None:
    """Apply a finding's edit in place; return what was changed, None if nothing was."""
    if finding is None or finding.edit is None or not is_in_place(finding.edit):
        return None
    done = subject.apply(finding.edit)
    return None if isinstance(done, Refusal) else done.changed or None


def _resampled(reading: Reading) -> Reading:
    """Run resampled batches where a finding hangs on what they give: if gains come near to a limit.

    Elsewhere what was told of them without running them is as good.
    """
    chain = reading.chain
    if chain is None or chain.resample is None:
        return reading
    gains, limit = chain.gains, abs(VANISHING.warning)
    far = gains.trend is not None and abs(gains.trend.decades) >= limit
    if not far and all(gains.drift(sign, limit) is None for sign in (-1, 1)):
        return reading
    return replace(reading, chain=replace(chain, batches=chain.resample(), resample=None))


def _drawn(reading: Reading, chain: Chain) -> Reading:
    """Work out what weights drawn anew give, which only findings need."""
    expected = chain.draw() if chain.draw is not None else None
    drawn = replace(chain, expected=expected, drawn=expected is not None, draw=None)
    return replace(reading, chain=drawn)


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


def _as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    names = ("verdict", "healthy", "summary", "loss", "underflowed", "overflowed")
    content: dict[str, Any] = {name: getattr(diagnosis, name) for name in names}
    content |= {"ignored": dict(diagnosis.ignored), "network": dict(diagnosis.config)}
    content["findings"] = [finding.to_dict() for finding in diagnosis.findings]
    content["trend"] = diagnosis.trend and vars(diagnosis.trend)
    content["flow"] = diagnosis.flow and diagnosis.flow.to_dict()
    expected, layers = diagnosis.expected_flow, diagnosis.layer_flow
    content["expected"] = expected and {n: v.tolist() for n, v in vars(expected).items()}
    if expected is not None and layers is not None:
        content["expected"]["deviations"] = expected.deviations(layers).tolist()
    content["measurement"] = diagnosis.measurement and diagnosis.measurement.to_dict()
    return cast("dict[str, Any]", plain(content))
