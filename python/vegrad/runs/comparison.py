"""Two runs, or two diagnoses, side by side: what changed first, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, log2
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.files import plain
from vegrad.arrays.shown import shown, visible
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.time_flow import TimeFlow
from vegrad.pictures import Figure
from vegrad.reports import comparison as report
from vegrad.reports import comparison_picture, notebook
from vegrad.reports.page import write
from vegrad.reports.shown_run import after_clip, is_clipped
from vegrad.reports.values import count_of
from vegrad.runs.departures import MODULES, Departure, common_steps, departures_of, same_until
from vegrad.runs.read import read_run
from vegrad.runs.run import Run

LATELY = 5  # steps at the end of which the median is told
MISSING = "–"  # a setting that one of two does not have


@dataclass(frozen=True)
class Difference:
    """A finding's cause, and at which step it came up in each of two runs."""

    cause: str
    kind: str
    steps: tuple[int | None, int | None]
    """None where it did not; of two diagnoses 0 where it did."""


@dataclass(frozen=True)
class Comparison:
    """Two runs or two diagnoses side by side; print it, plot it, write it as a page."""

    names: tuple[str, str]
    """How the two are called."""
    departures: tuple[Departure, ...]
    """Numbers that differ by more than noise: of runs the first to part, of diagnoses the one
    nearest to the loss first."""
    findings: tuple[Difference, ...]
    """Causes that were found in one only, or at other steps."""
    settings: Mapping[str, tuple[object, object]]
    """Settings that differ, with both values; "–" where there is none."""
    figures: Mapping[str, tuple[float, float]]
    """Numbers of both, by what they are: loss, gradient norm, …"""
    sizes: tuple[tuple[str, float, float], ...]
    """Name and log2 of the gradient's norm of each module or layer that both have, at the end of a
    run, from the input to the output."""
    runs: tuple[Run, Run] | None = field(default=None, repr=False)
    only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Modules or layers that only one of the two has."""
    steps: tuple[float, float, int] | None = None
    """Of runs: the first and the last step that both have, and how many."""
    same_until: float = inf
    """Of runs: the first step at which loss or gradient norm differ at all; inf if at none, nan if
    neither was recorded in both."""

    @property
    def first(self) -> Departure | None:
        """The first departure; None if there is none."""
        return self.departures[0] if self.departures else None

    @property
    def differ(self) -> bool:
        """True if a number departs or a finding is not in both."""
        return bool(self.departures) or any(None in one.steps for one in self.findings)

    def __repr__(self) -> str:
        return f"<Comparison of {self.names[0]} and {self.names[1]}: {report.headline(self)}>"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return notebook.comparison(self)

    def to_text(self) -> str:
        """Return what parted first, findings and settings that differ, and numbers of both."""
        return report.text(self)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """Return a page that needs nothing beside itself, which is also written to `path`.

        Raises:
            OSError: the file cannot be written; nothing half-written is left.
        """
        html = report.page(self)
        if path is not None:
            write(html, path)
        return html

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw both; return matplotlib's figure, which is also saved if there is a path.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is nothing to draw, or the suffix is unknown.
            OSError: the file cannot be written; nothing half-written is left.
        """
        return comparison_picture.plot(self, path)

    def to_dict(self) -> dict[str, object]:
        """Return the same as plain JSON types; numbers that are not finite are None."""
        content = {
            "names": self.names,
            "differ": self.differ,
            "departures": [vars(one) for one in self.departures],
            "findings": [vars(one) for one in self.findings],
            "settings": self.settings,
            "figures": self.figures,
            "gradient_log2": self.sizes,
            "only": self.only,
            "steps": self.steps,
            "same_until": self.same_until,
        }
        return {name: plain(value) for name, value in content.items()}


def compare(a: object, b: object, *, names: Sequence[str] | None = None) -> Comparison:
    """Compare two runs, or two diagnoses: what changed first, and where.

    A number of a run departs at the first step from which on, by the median of five, it differs by
    more than five times its usual change from step to step, and by a tenth (loss), half (norms,
    updates) or twice (a module's gradient). Steps that only one of them has are left out. A
    `History` has the gradients of layers at the ends of epochs only, a log at more steps.

    Args:
        a: a `Monitor`, its report, a `History`, the path of a log or of what another program has
            recorded (see `read_run`), or a `Run`; or a `Diagnosis`.
        b: likewise; both are runs, or both are diagnoses.
        names: what to call them; otherwise the names of files or models if they differ, or a and b.

    Raises:
        TypeError: a or b is none of these, or one is a run and the other a diagnosis.
        ValueError: names are not two different ones; two runs have no step in common; a file is
            damaged or of no known kind.
        OSError: a file cannot be read.
    """
    two = _taken("a", a), _taken("b", b)
    called = _names(two, names)
    first, second = two
    if isinstance(first, Run) and isinstance(second, Run):
        return _of_runs((first.thinned(), second.thinned()), called)
    if isinstance(first, Diagnosis) and isinstance(second, Diagnosis):
        return _of_diagnoses((first, second), called)
    kinds = [type(one).__name__ for one in two]
    raise TypeError(f"both must be runs, or both diagnoses, not a {kinds[0]} and a {kinds[1]}")


def _taken(name: str, value: object) -> Run | Diagnosis:
    """Return the run or the diagnosis that a value is, has or names."""
    run = getattr(value, "run", None)
    if isinstance(value, Run | Diagnosis) and not isinstance(run, Run):
        return value
    if isinstance(run, Run):
        return run
    if isinstance(value, History):
        return Run.of_history(value, source="vegrad.History")
    if isinstance(value, str | PathLike):
        return read_run(fspath(value))
    raise TypeError(
        f"{name} must be a run (a Monitor, a report, a History, a file) or a Diagnosis, not "
        f"{type(value).__name__}"
    )


def _names(two: Sequence[Run | Diagnosis], names: Sequence[str] | None) -> tuple[str, str]:
    if names is not None:
        if isinstance(names, str) or len(names) != 2 or not all(isinstance(n, str) for n in names):
            raise ValueError(f"names must be two words, not {shown(names)}")
        if names[0] == names[1]:
            raise ValueError(f"names must differ, not both be {shown(names[0])}")
        return visible(names[0]), visible(names[1])
    for place in (1, 2, 3):  # of the parts of the paths of files, from the last one on
        first, second = (_name_of(one, place) for one in two)
        if first and second and first != second:
            return visible(first), visible(second)
    return "a", "b"


def _name_of(one: Run | Diagnosis, place: int) -> str:
    about = one.about if isinstance(one, Run) else {}
    if about.get("name"):
        return str(about["name"])
    parts = Path(str(about.get("path") or "")).parts
    return parts[-place] if len(parts) >= place else ""


# Runs --------------------------------------------------------------------------------------------


def _of_runs(runs: tuple[Run, Run], names: tuple[str, str]) -> Comparison:
    step, *_ = common_steps(runs)
    if not len(step):
        ranges = [
            f"steps {run.step[0]:.0f} to {run.step[-1]:.0f}" if run.steps else "no step"
            for run in runs
        ]
        raise ValueError(
            f"the runs have no step in common: {names[0]} has {ranges[0]}, {names[1]} {ranges[1]}"
        )
    both = [name for name in runs[0].modules if name in set(runs[1].modules)]
    last = [_last_sizes(run) for run in runs]
    return Comparison(
        names,
        departures_of(runs),
        _findings([{n.finding.cause or n.finding.kind: n for n in run.noted} for run in runs]),
        _differing([_settings(run) for run in runs]),
        _figures(runs),
        tuple((name, last[0][name], last[1][name]) for name in both),
        runs,
        _only(runs[0].modules, runs[1].modules),
        (float(step[0]), float(step[-1]), len(step)),
        same_until(runs),
    )


def _only(first: Sequence[str], second: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not first or not second:  # of one of them modules are not known
        return ((), ())
    return (
        tuple(name for name in first if name not in set(second)),
        tuple(name for name in second if name not in set(first)),
    )


def _findings(found: Sequence[Mapping[str, object]]) -> tuple[Difference, ...]:
    """Return the causes that are not in both, or that came up at different steps."""
    differ = []
    for cause in dict.fromkeys([*found[0], *found[1]]):
        there = [one.get(cause) for one in found]
        steps = [None if one is None else int(getattr(one, "step", 0)) for one in there]
        if steps[0] != steps[1]:
            known = next(one for one in there if one is not None)
            kind = str(getattr(getattr(known, "finding", known), "kind", ""))
            differ.append(Difference(cause, kind, (steps[0], steps[1])))
    return tuple(
        sorted(differ, key=lambda one: min(step for step in one.steps if step is not None))
    )


def _settings(run: Run) -> dict[str, object]:
    settings = run.about.get("settings")
    named = {name: run.about[name] for name in ("model", "parameters") if name in run.about}
    return named | (dict(settings) if isinstance(settings, Mapping) else {})


def _differing(two: Sequence[Mapping[str, object]]) -> dict[str, tuple[object, object]]:
    """Return the settings that differ; nothing is said of what only one has told at all."""
    if not two[0] or not two[1]:
        return {}
    pairs = {
        name: (two[0].get(name, MISSING), two[1].get(name, MISSING))
        for name in dict.fromkeys([*two[0], *two[1]])
    }
    return {name: values for name, values in pairs.items() if plain(values[0]) != plain(values[1])}


def _figures(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """Return numbers of both that say how they went."""
    few = max(1, min(LATELY, *(run.steps for run in runs)))
    columns = [_figures_of(run, few) for run in runs]
    pairs = {name: (columns[0][name], columns[1][name]) for name in columns[0]}
    return {name: pair for name, pair in pairs.items() if not all(map(isnan, pair))}


def _figures_of(run: Run, few: int) -> dict[str, float]:
    """Return the figures of a run; of the first and the last steps medians of so `few`."""
    first = "first" if few == 1 else f"median of the first {few}"
    last = first.replace("first", "last")
    clipped, known = is_clipped(run), np.isfinite(after_clip(run))
    return {
        "steps": float(run.steps and run.step[-1] + 1),
        f"loss, {first}": _middle(run.loss[:few]),
        "loss, lowest": float(np.nanmin(run.loss, initial=inf)) if run.steps else np.nan,
        f"loss, {last}": _middle(run.loss[-few:]),
        "validation loss, last": _middle(run.validation_loss, last=True),
        f"gradient norm, {last}": _middle(run.gradient_norm[-few:]),
        "steps that were clipped, %": float(100 * clipped[known].mean()) if known.any() else np.nan,
        "update over weight, median": _middle(run.update_ratio),
        "spikes": float(len(run.spikes)),
        "findings": float(len(run.noted)),
    }


def _middle(values: FloatArray, *, last: bool = False) -> float:
    known = values[np.isfinite(values)]
    if not known.size:
        return np.nan
    return float(known[-1]) if last else float(np.median(known))


def _last_sizes(run: Run) -> dict[str, float]:
    """Return log2 of the gradient of each module, the median of the last steps that have it."""
    found = {}
    for name, sizes in zip(run.modules, run.gradient_log2.T, strict=True):
        known = sizes[~np.isnan(sizes)][-LATELY:]
        found[name] = float(np.median(known)) if known.size else np.nan
    return found


# Diagnoses ---------------------------------------------------------------------------------------


def _of_diagnoses(two: tuple[Diagnosis, Diagnosis], names: tuple[str, str]) -> Comparison:
    sizes = [_sizes_of(one) for one in two]
    flows = [one.layer_flow for one in two]
    both = [name for name in sizes[0] if name in sizes[1]]
    if flows[0] is not None and flows[1] is not None and len(sizes[0]) != len(sizes[1]):
        both = []  # a layer of the same number is another one
    found = tuple((name, sizes[0][name], sizes[1][name]) for name in both)
    losses = [np.nan if one.loss is None else one.loss for one in two]
    through_time = all(isinstance(one.flow, TimeFlow) for one in two)
    what = "layer" if flows[0] is not None else "time" if through_time else "module"
    return Comparison(
        names,
        _along(found, what),
        _findings([{f.cause or f.kind: f for f in one.findings} for one in two]),
        _differing([one.config for one in two]),
        {} if all(map(isnan, losses)) else {"loss": (losses[0], losses[1])} | _reaches(two),
        found,
        only=_only(tuple(sizes[0]), tuple(sizes[1])),
    )


def _sizes_of(one: Diagnosis) -> dict[str, float]:
    """Return log2 of the gradient by layer or module, from the input on."""
    if (flow := one.layer_flow) is not None:
        count = len(flow.delta_log2)
        names = getattr(one, "modules", ()) or [str(layer) for layer in range(count)]
        return dict(zip(names, flow.delta_log2.tolist(), strict=True))
    if isinstance(one.flow, TimeFlow):
        return _through_time(one.flow)
    shown_modules = one._modules()
    if shown_modules is not None:
        sizes = {row["module"]: row["gradient_norm"] for row in shown_modules.rows}
        return {name: _log2(size) for name, size in sizes.items() if not isnan(size)}
    if one.measurement is None:
        return {}
    parts = zip(one.measurement.names, one.measurement.buffers, strict=True)
    return {name: part.norm_log2 for name, part in parts}


def _through_time(flow: TimeFlow) -> dict[str, float]:
    """Return log2 of the gradient by layer and step, counted from the last."""
    layers, steps = flow.delta_log2.shape
    found = {}
    for layer in range(layers):
        where = f"of layer {layer} " if layers > 1 else ""
        for step, size in enumerate(flow.delta_log2[layer].tolist()):
            back = steps - 1 - step
            when = f"{count_of(back, 'step')} before the last" if back else "at the last step"
            found[f"{where}{when}"] = size
    return found


def _reaches(two: Sequence[Diagnosis]) -> dict[str, tuple[float, float]]:
    """Return how many steps back the gradient of each recurrent layer reaches."""
    a, b = (one.flow.reach.tolist() if isinstance(one.flow, TimeFlow) else [] for one in two)
    pairs = zip(a, b, strict=False)
    return {f"reach of layer {layer}, steps": pair for layer, pair in enumerate(pairs)}


def _log2(size: float) -> float:
    return log2(size) if 0 < size < inf else -inf if size == 0 else inf


def _along(sizes: Sequence[tuple[str, float, float]], what: str) -> tuple[Departure, ...]:
    """Return the layers at which the ratio of gradients changes, the nearest to the loss first."""
    found, before = list[Departure](), 0.0
    for name, a, b in reversed(sizes):
        times = b - a if isfinite(a) and isfinite(b) else np.nan
        if a != b and not abs(times - before) < MODULES:
            found.append(Departure(what, name, None, (float(np.exp2(a)), float(np.exp2(b))), times))
            before = times if isfinite(times) else before
    return tuple(found)
