"""Remedies: they get a patient and propose an edit, which makes a treatment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.edits import SCALES, Edit, is_of_training, keeps_shape, parts, replaces
from vegrad.flow.reading import Chain, Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.treatment.curable import Curable

AS_IT_IS = "as it is"
# Layers over their width, beyond which no weights are sure to help: the logarithm of the squared
# gradient varies from draw to draw by 5 times that (Hanin & Nica 2020); and what is then kept, of
# the usual budget, for remedies whose gradient need not pass all layers.
NARROW, FOR_SKIPS = 0.5, 1.25
# Of the usual budget, what is kept for larger changes where the layers are no chain: beside what
# the diagnosis says, and beside others.
FOR_LESS_LIKELY, FOR_OTHERS = 0.25, 0.5


@dataclass(frozen=True)
class Proposal:
    """An edit to try."""

    edit: Edit
    note: str = ""
    """The numbers that it rests on, for the words."""
    waits: bool = False
    """True if it is left to a later row where its loss begins far above a guess's."""


@dataclass(frozen=True)
class Change:
    """An edit that was done."""

    proposal: Proposal
    code: Code

    @property
    def edit(self) -> Edit:
        """The edit."""
        return self.proposal.edit


@dataclass(frozen=True)
class Treatment:
    """A network to be trained, and how it came to be."""

    subject: Curable
    changes: tuple[Change, ...] = ()

    @property
    def words(self) -> str:
        """The changes in words, less what a later one replaces."""
        said = []
        for place, change in enumerate(self.changes):
            if any(replaces(later.edit, change.edit) for later in self.changes[place + 1 :]):
                continue
            note = f" ({change.proposal.note})" if change.proposal.note else ""
            said.append((change.code.words or self.subject.vocabulary.edit(change.edit)) + note)
        return "; ".join(said) or AS_IT_IS

    @property
    def lines(self) -> tuple[str, ...]:
        """The code that leads here from what was given."""
        return tuple(line for change in self.changes for line in change.code.lines)

    def has(self, kind: type[Edit]) -> bool:
        """Return True if an edit of this kind is among the changes."""
        single = (part for change in self.changes for part in parts(change.edit))
        return any(isinstance(part, kind) for part in single)

    @property
    def scales(self) -> bool:
        """True if the last change was one of the scale of data or target."""
        return bool(self.changes) and isinstance(self.changes[-1].edit, SCALES)

    @property
    def keeps_shape(self) -> bool:
        """True if the network is one of the same parameters, with other values."""
        return all(keeps_shape(change.edit) for change in self.changes)

    @property
    def is_of_training(self) -> bool:
        """True if the last change left the network and the data as they were."""
        return bool(self.changes) and is_of_training(self.changes[-1].edit)

    def then(self, proposal: Proposal, rows: Array) -> Treatment | Refusal:
        """Do an edit to a copy; `rows` may be run for it."""
        subject = self.subject.copy()
        done = subject.apply(proposal.edit, rows)
        if isinstance(done, Refusal):
            return done
        return Treatment(subject, (*self.changes, Change(proposal, done)))


@dataclass
class Patient:
    """A network with its data and what is known of it: all that a remedy may look at."""

    given: Treatment
    diagnosis: Diagnosis
    rows: Array
    """Rows to look at: all, or a draw."""
    history: History | None = None
    """The history of the training that has failed, if there was one."""
    passed: float = field(default=0.0)
    """Rows that went forward and back; a third of one if only forward."""

    @property
    def reading(self) -> Reading:
        """The reading that the diagnosis rests on."""
        assert self.diagnosis.reading is not None
        return self.diagnosis.reading

    @property
    def chain(self) -> Chain | None:
        """The chain that the layers form, if they form one."""
        return self.reading.chain

    @property
    def kinds(self) -> set[str]:
        """The kinds of what was found."""
        return {finding.kind for finding in self.diagnosis.findings}

    def treated(self, proposal: Proposal) -> Treatment | Refusal:
        """Do an edit to a copy, and count what that costs."""
        found = self.given.then(proposal, self.rows)
        self.passed += (found if isinstance(found, Refusal) else found.changes[-1].code).passed
        return found

    def look(self, treatment: Treatment) -> Diagnosis:
        """Diagnose a treatment's network on the rows to look at."""
        subject = treatment.subject
        found = subject.diagnosed(*subject.data.take(self.rows), theory=False)
        self.passed += subject.looking(len(self.rows)) + found.further * len(self.rows)
        return found


@dataclass(frozen=True)
class Remedy:
    """One row of `REMEDIES`: what it is tried for, and the function that proposes the edit.

    While it is tried, `kept` of the usual budget is left for those that come after it. `skips`
    is True if its network has skip connections, `scales` if it changes the scale of the data, which
    stays so for all that follows, `followed` if the history of its training may ask
    for another change on top of it, and `said` if it is what the diagnosis itself advises.
    """

    name: str
    kinds: frozenset[str]
    propose: Callable[[Patient], Proposal | Refusal]
    kept: float = 0.7
    skips: bool = False
    scales: bool = False
    followed: bool = True
    said: bool = False

    def treat(self, patient: Patient) -> Treatment | Refusal:
        """Do what is proposed to a copy of the patient's network.

        Why that cannot be done is worth saying of what the diagnosis advises.
        """
        proposal = self.propose(patient)
        if isinstance(proposal, Refusal):
            return proposal
        done = patient.treated(proposal)
        if self.said and isinstance(done, Refusal):
            words = patient.given.subject.vocabulary.edit(proposal.edit)
            return replace(done, why=f"cannot {words}: {done.why}", worth_saying=True)
        return done

    def within(self, name: str) -> Remedy:
        """Return the same remedy, tried on top of another."""
        return replace(self, name=f"{name}, {self.name}")


def kept_for(remedy: Remedy, reading: Reading) -> float:
    """Return the part of the usual budget to leave for larger changes, which are surer.

    A convolution's few channels make no narrow layer: chance averages over its positions.
    """
    if reading.chain is None:
        return min(remedy.kept, FOR_LESS_LIKELY if remedy.said else FOR_OTHERS)
    layers = reading.chain.layers
    narrow = sum(1.0 / layer.width for layer in layers[:-1] if layer.width) > NARROW
    narrow = narrow and all(layer.kind == "linear" for layer in layers)
    return FOR_SKIPS if narrow and not remedy.skips else remedy.kept
