"""Diagnoses of runs: the steps of a training, whoever has recorded them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from os import PathLike

import numpy as np

from vegrad.arrays.files import plain
from vegrad.arrays.shown import SCREEN, visible
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.gradients import Gradients
from vegrad.flow.reading import Reading
from vegrad.flow.watched import Watched
from vegrad.flow.wording import Vocabulary
from vegrad.reports.shown_run import ShownModules
from vegrad.reports.spikes import told
from vegrad.reports.text import WIDTH, remarks, verdict
from vegrad.runs.read import read_run
from vegrad.runs.run import Run

CHAINS = ("MLP",)  # models whose modules are one way


@dataclass(frozen=True, repr=False)
class RunDiagnosis(Diagnosis):
    """The judgement of a run; `run` has its steps, and `flow` is None."""

    run: Run | None = field(default=None, compare=False)

    @property
    def head(self) -> str:
        """The file, the model and what has recorded it, in a line."""
        return "" if self.run is None else _head(self.run.about)

    def _modules(self) -> ShownModules:
        return ShownModules(self.head, run=None if self.run is None else self.run.thinned())

    def to_text(self, *, all_layers: bool = False) -> str:
        """Return what the run is of, the verdict, findings and advice, and its highest spikes."""
        return "\n".join([self.head, "", verdict(self), *remarks(self), *self.spikes()])

    def spikes(self, width: int = WIDTH) -> list[str]:
        """Return lines that tell of the highest spikes, which are no findings."""
        return [] if self.run is None else told(self.run, width)

    def to_dict(self) -> dict[str, object]:
        """Return what a `Diagnosis` does, with what is known of the run, and its spikes."""
        about = {} if self.run is None else dict(self.run.about)
        spikes = () if self.run is None else self.run.spikes
        more = {"run": plain(about), "spikes": [plain(vars(one)) for one in spikes]}
        return super().to_dict() | more


def diagnose_run(run: Run | str | PathLike[str], *, ignore: Collection[str] = ()) -> RunDiagnosis:
    """Judge a training from the record of its steps, made with vegrad or without.

    What can be judged depends on what was recorded: a loss that became NaN, rose far above its
    beginning or its lowest, or never fell; gradients that blew up, went to 0 or are NaN in all of
    the last steps; a learning rate that was 0; a clip that left next to nothing. The log of a
    `Monitor` or of `fit` also has what was found while it ran. The loss of a training by reward, or
    one that is negative, is not judged. Why gradients are as they are cannot be seen from their
    norms: `Monitor` and `diagnose` tell.

    Args:
        run: what `read_run` returns, or the path that it takes.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.

    Returns:
        A Diagnosis, with `run`; `sentence` says which columns were looked at.

    Raises:
        TypeError: it is neither a run nor a path.
        OSError, ValueError: as `read_run` says; what is no name of a cause in ignore.
    """
    ignored = as_ignored(ignore)
    if not isinstance(run, Run):
        if not isinstance(run, str | PathLike):
            raise TypeError(f"run must be a Run or the path of one, not {type(run).__name__}")
        run = read_run(run)
    if not run.steps:
        raise ValueError(f"{_named(run.about)}: it has no step yet: there is nothing to judge")
    if not any(np.isfinite(c).any() for c in (run.loss, run.gradient_norm)) and not run.nonfinite:
        lacks = "it has neither losses of the training nor norms of gradients"
        held = ", only losses of held-out data" if np.isfinite(run.validation_loss).any() else ""
        raise ValueError(f"{_named(run.about)}: {lacks}{held}")
    reading = Reading(
        vocabulary=Vocabulary(),
        about={"logged steps": run.steps, "modules": len(run.modules)},
        gradients=_chain(run),
        watched=Watched(recorded=run),
    )
    return RunDiagnosis.of(reading, run=run).ignoring(ignored)


def _chain(run: Run) -> Gradients | None:
    """Return the last sizes of gradients along a chain of layers, if the model is one."""
    if run.about.get("model") not in CHAINS or not run.modules:
        return None
    known = np.flatnonzero(np.isfinite(run.gradient_log2).any(axis=1))
    if not len(known):
        return None
    sizes = dict(zip(run.modules, run.gradient_log2[known[-1]].tolist(), strict=True))
    return Gradients(norms_log2=sizes, chain=tuple(sizes))


def _named(about: Mapping[str, object]) -> str:
    return visible(str(about.get("path") or "the run"), SCREEN)


def _head(about: Mapping[str, object]) -> str:
    """Return the line that says what the run is of."""
    keys = ("path", "model", "source")
    names = [visible(str(about[key]), SCREEN) for key in keys if about.get(key)]
    steps = about.get("steps")
    return ", ".join([*names, *([f"{steps} steps"] if isinstance(steps, int) else [])])
