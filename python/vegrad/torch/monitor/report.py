"""Judge a monitored step: the monitor's sizes as a reading, and the report made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isnan, nan
from typing import Any

import numpy as np

from vegrad.arrays.files import plain
from vegrad.diagnosis.causes import beginnings, unused_steps
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.diagnosis.looked_at import begun_words
from vegrad.diagnosis.rules.modules import DEAD, DRIFT
from vegrad.diagnosis.rules.recurrent import THROUGH_TIME, reach
from vegrad.diagnosis.second import Second
from vegrad.flow.course import Course
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Module, Reading
from vegrad.flow.subject import Subject
from vegrad.flow.watched import Watched
from vegrad.flow.wording import exp2, listed
from vegrad.reports.module_text import ModuleRow, TimeRow, text_of_modules
from vegrad.reports.shown_run import ShownModules
from vegrad.runs.run import Run
from vegrad.torch.monitor.looks import Looks
from vegrad.torch.monitor.missing import FEW, idle, without_gradient, zeros_there
from vegrad.torch.monitor.modules import begins_at_zero
from vegrad.torch.monitor.steps import StepHooks
from vegrad.torch.vocabulary import TorchVocabulary

BINARY = ("BinaryCrossEntropyBackward0", "BinaryCrossEntropyWithLogitsBackward0")
OPENING = 10  # looks within which what begins at 0 has opened: each step opens one more in line
EARLIEST, LATEST = 50, 400  # steps that a training is judged by
WINDOW = 10  # steps before a NaN that are asked for growth
DTYPES = {-126.0: "float32", -14.0: "float16", -1022.0: "float64"}  # by log2 of their least
MUCH = 0.01  # subnormal elements that are worth a word
LEAST = 1 << 14  # elements of a part of a gradient, as in cpp/bindings/quiet.hpp


@dataclass(frozen=True, repr=False)
class Report(Diagnosis):
    """A diagnosis of a monitored step; `flow` is None, `rows` has the modules' numbers."""

    rows: tuple[ModuleRow, ...] = ()
    notes: tuple[str, ...] = ()
    through_time: tuple[TimeRow, ...] = ()
    """Reach of the gradient back in time in each recurrent module, and its gain a step."""
    run: Run | None = field(default=None, compare=False)
    """The steps of the training, if it is the report of a `Monitor`."""

    @classmethod
    def of_modules(
        cls,
        reading: Reading,
        history: History | None = None,
        subject_of: Callable[[Any], Subject] | None = None,
        *,
        notes: Sequence[str] = (),
    ) -> Report:
        """Judge the reading of a model by its modules."""
        found = cls.of(reading, history, subject_of)
        return replace(
            found,
            rows=rows_of(reading, found.findings),
            notes=(*notes, *_notes(reading)),
            through_time=through_time(reading),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a `Diagnosis` does, with `modules` (the rows), `through_time` and `notes`."""
        rows, in_time, notes = map(plain, (self.rows, self.through_time, self.notes))
        return super().to_dict() | {"modules": rows, "through_time": in_time, "notes": notes}

    def _modules(self) -> ShownModules:
        if self.run is not None:
            dtype = DTYPES.get(self.run.floor_log2, "")
        else:
            dtype = "" if self.reading is None else self.reading.dtype
        rows = self.rows if self.run is None else _by_depth(self.rows, self.run.modules)
        head = str(self.config["model"])
        return ShownModules(head, rows, self.through_time, self.notes, self.run, dtype)

    def to_text(self, *, all_layers: bool = False) -> str:
        """Return the table of modules, the verdict, findings and advice."""
        return text_of_modules(
            self, self.rows, self.through_time, self.notes, all_layers=all_layers
        )


def report(
    monitor: StepHooks, flush_gain: float | None, looks: Looks, second: Second | None = None
) -> Report:
    """Return the report of a monitor's steps so far.

    Args:
        monitor: what has watched them.
        flush_gain: how many times faster a step was without subnormals, if that was measured.
        looks: its closer looks at outputs.
        second: what second looks at the model have found, by the cause that was doubted.
    """
    last = monitor.history.looked[-1]
    about = {"model": f"{monitor.kind}, step {last.step}", "parameters": len(monitor.parameters)}
    reading = Reading(
        vocabulary=TorchVocabulary(),
        about=about,
        modules=modules_of(monitor),
        watched=watched_by(monitor, looks, second),
    )
    notes = [*_subnormal(monitor.subnormals, flush_gain), *_read_in_part(monitor)]
    return Report.of_modules(reading, notes=notes)


def watched_by(monitor: StepHooks, looks: Looks, second: Second | None = None) -> Watched:
    """Return what a monitor saw beside the sizes of modules."""
    last, looked = monitor.history[-1], monitor.history.looked
    gradients: dict[str, bool] = {}
    if len(looked) >= FEW:
        lately = [looked[place].gradient_norms for place in range(-FEW, 0)]
        for place, name in enumerate(monitor.parameters):
            gradients[name] = all(bool(norms[place] > 0) for norms in lately)
    return Watched(
        last.step,
        last.gradient_norm,
        monitor.nonfinite,
        _growth(monitor),
        loops=monitor.loop.steps.facts(monitor.parameters),
        losses=monitor.history.losses,
        samples=monitor.updates.samples(),
        course=course_of(monitor, looks),
        unheld=monitor.owners.unheld(gradients, monitor.steps),
        unregistered=monitor.owners.unregistered(monitor.steps) if gradients else (),
        second=second or {},
        without=without_gradient(monitor),
        idle=idle(monitor),
        zeros=zeros_there(monitor),
        passes=monitor.loop.passes,
        strayed=monitor.owners.strayed(),
        in_copies=monitor.owners.in_copies(),
        unstepped=0 if monitor.nonfinite else monitor.owners.unstepped(),
    )


def _growth(monitor: StepHooks) -> float:
    """Return how many times gradients, outputs or the loss grew before the first NaN or inf."""
    first = monitor.nonfinite
    if first is None:
        return nan
    before = [one for one in monitor.history if first.step - WINDOW <= one.step < first.step]
    found = [first.growth]
    for sizes in (
        [one.gradient_norm for one in before],
        [abs(one.loss) for one in before],
        [float(np.nanmax(one.activation_rms, initial=0.0)) for one in before],
    ):
        finite = [size for size in sizes if 0 < size < inf]
        found.append(finite[-1] / min(finite) if finite else nan)
    return max((one for one in found if not isnan(one)), default=nan)


def modules_of(monitor: StepHooks) -> tuple[Module, ...]:
    """Return the sizes at a monitor's modules in its last step, in the order in which they ran."""
    last, first = monitor.history.looked[-1], monitor.history.looked[0]
    gradients = dict(zip(monitor.parameters, last.gradient_norms.tolist(), strict=True))
    moved = {
        name
        for name, size in zip(monitor.parameters, first.gradient_norms, strict=True)
        if size > 0 and not name.endswith("bias")
    }
    found, outer, opening = [], _outer(monitor), _opening(monitor)
    for place, (name, own) in enumerate(zip(monitor.modules, monitor.own, strict=True)):
        sizes = (gradients.get(parameter, nan) for parameter in own)
        known = [size for size in sizes if not isnan(size)]
        found.append(
            Module(
                name,
                activation_rms=float(last.activation_rms[place]),
                delta=float(last.delta_norms[place]),
                gradient=float(np.linalg.norm(known)) if known else nan,
                weighted=bool(own),
                # Heads and adapters begin with outputs of 0, and their weights have moved or will.
                begun=first.activation_rms[place] == 0.0
                and (
                    last.activation_rms[place] > 0 or place in opening or not moved.isdisjoint(own)
                ),
                kind=monitor.classes[place],
                outer=outer[place],
            )
        )
    return tuple(found[place] for place in monitor.run_order)


def _opening(monitor: StepHooks) -> set[int]:
    """Return the modules whose output is still 0 because weights are, and those right after them.

    Where a head and the branches below it begin at 0, the head opens with the first step, and they
    with the next ones.
    """
    looked = monitor.history.looked
    if len(looked) > OPENING:
        return set()
    found, before = set[int](), False
    for place in monitor.run_order:
        zero = looked[0].activation_rms[place] == 0 == looked[-1].activation_rms[place]
        before = bool(zero) and (before or begins_at_zero(monitor._watched[place]))
        if before:
            found.add(place)
    return found


def _outer(monitor: StepHooks) -> list[bool]:
    """Return True for each module within which others with weights ran in the last step."""
    ran = np.isfinite(monitor.history.looked[-1].activation_rms)
    return [bool(ran[inner].any()) for inner in monitor.inner]


def course_of(monitor: StepHooks, looks: Looks) -> Course:
    """Return the first and the last steps of a monitor as arrays, modules in run order."""
    columns, order = monitor.history.columns(EARLIEST, LATEST), monitor.run_order
    delta = columns.delta.copy()
    delta[:, _outer(monitor)] = nan
    return Course(
        step=columns.step,
        loss=columns.loss,
        norm=columns.norm,
        rms=columns.rms[:, order],
        delta=delta[:, order],
        largest=looks.largest,
        looked=looks.names,
        looks=looks.all,
        input_rms=looks.input_rms,
        input_column=looks.input_column,
        outputs=looks.outputs,
        of_zero=monitor.first.baseline.at(columns.step),
        entry=looks.entry,
        loss_kind="binary_cross_entropy" if monitor.loop.made_by in BINARY else "",
        complete=int(columns.step[0]) == monitor.first_step,
    )


def rows_of(reading: Reading, findings: Sequence[Finding]) -> tuple[ModuleRow, ...]:
    """Return a table's row for each module, with a note where a finding is about it."""
    notes: dict[int, str] = {}
    for finding in findings:
        places = finding.layers
        if finding.rule == DRIFT.name:
            places = (int(finding.evidence["worst"]),)
        if finding.rule in (DRIFT.name, DEAD.name, THROUGH_TIME.name):
            notes |= dict.fromkeys(places, f"← {finding.kind}")
    return tuple(
        {
            "module": one.name,
            "activation_rms": one.activation_rms,
            "delta_norm": one.delta,
            "gradient_norm": one.gradient,
            "note": notes.get(place, ""),
            "weighted": one.weighted,
        }
        for place, one in enumerate(reading.modules)
    )


def _by_depth(rows: Sequence[ModuleRow], modules: Sequence[str]) -> tuple[ModuleRow, ...]:
    """Return rows with each module that was never run after the one that uses its weights."""
    found = [row for row in rows if not isnan(row["activation_rms"])]
    before = dict(zip(modules[1:], modules, strict=False))
    for row in (row for row in rows if isnan(row["activation_rms"])):
        names = [one["module"] for one in found]
        last = before.get(row["module"])
        found.insert(names.index(last) + 1 if last in names else len(found), row)
    return tuple(found)


def through_time(reading: Reading) -> tuple[TimeRow, ...]:
    """Return how far back the gradient goes, and how far with weights drawn anew."""
    rows = list[TimeRow]()
    for cell in reading.cells:
        own, fresh = reach(cell.sizes, cell.flat)
        parameter = next(gate.parameter for gate in cell.gates if gate.part == "hh")
        rows.append(
            {
                "parameter": parameter,
                "steps": len(cell.sizes),
                "reach": own.steps,
                "gain": exp2(own.gain),
                "fresh_reach": fresh.steps,
                "fresh_gain": exp2(fresh.gain),
            }
        )
    return tuple(rows)


def _notes(reading: Reading) -> list[str]:
    """Return notes on what a user should know, though it is no fault."""
    notes = []
    unseen = [one.name for one in reading.modules if one.weighted and isnan(one.activation_rms)]
    if unseen and reading.operations:
        notes.append(
            f"what {listed(unseen)} did could not be followed: of it only the gradients of its "
            "parameters were looked at."
        )
    once = unused_steps(reading)
    if once:
        notes.append(
            f"{' and '.join(once[:2])}{' …' if len(once) > 2 else ''} got no gradient: of the "
            "outputs only a first step is used, before which there is none (of a reverse direction "
            "the first step is the last in time)."
        )
    begins = beginnings(reading)
    return [*notes, f"{begun_words(begins)}."] if begins else notes


def _read_in_part(monitor: StepHooks) -> list[str]:
    """Say what was not read of the gradients."""
    sizes = [one.numel() for one in monitor._params]
    part = min(monitor.schedule.part_of(sum(sizes)), max(sizes, default=0) // LEAST)
    if part <= 1:
        return []
    looked, steps = len(monitor.history.looked), len(monitor.history)
    return [
        f"{looked} of the last {steps} steps were looked at; in the others of late one part in "
        f"{part} of each large gradient was read, to keep within the budget: their norms are "
        "estimates, but for the joint one where a clip has told it."
    ]


def _subnormal(shares: Mapping[str, float], flush_gain: float | None) -> list[str]:
    """Say how many elements are subnormal, and how much faster steps are without them."""
    many = {phase: share for phase, share in shares.items() if share > MUCH}
    if not many:
        return []
    names = {
        "forward": "activations",
        "backward": "backward pass's elements",
        "gradients": "parameters' gradients",
    }
    parts = [f"{100 * share:.0f} % of the {names[phase]}" for phase, share in many.items()]
    said = f"{' and '.join(parts)} are subnormal, which most processors are slow at: "
    if flush_gain is None:
        return [said + "torch.set_flush_denormal(True) helps; measure_flush(step) says how much."]
    gain = f"{flush_gain:.1f}×"
    if flush_gain < 1.1:
        return [f"{said}but torch.set_flush_denormal(True) made no step faster here ({gain})."]
    return [f"{said}torch.set_flush_denormal(True) made one step {gain} faster."]
