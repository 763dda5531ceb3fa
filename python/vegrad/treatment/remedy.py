"""What remedies get and give: a patient, and a proposal of an edit; and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.edits import Edit, ScaleData, is_of_training, keeps_shape, parts, replaces
from vegrad.flow.reading import Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.treatment.curable import Curable

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Proposal:
    """An edit to try."""

    edit: Edit
    note: str = ""
    """The numbers that it rests on, for the words."""


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
        """What was changed, less what a later change replaces."""
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

    @property
    def is_scaled(self) -> bool:
        """True if the data were scaled."""
        single = (part for change in self.changes for part in parts(change.edit))
        return any(isinstance(part, ScaleData) for part in single)

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
    """What a remedy may look at: a network with its data, and what is known of it."""

    given: Treatment
    diagnosis: Diagnosis
    rows: Array
    """Rows to look at: all, or a draw."""
    history: History | None = None
    """Of the training that has failed, if there was one."""
    passed: float = field(default=0.0)
    """Rows that went forward and back; a third of one if only forward."""

    @property
    def reading(self) -> Reading:
        """What the diagnosis rests on."""
        assert self.diagnosis.reading is not None
        return self.diagnosis.reading

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
        self.passed += subject.looking(len(self.rows))
        return subject.diagnosed(*subject.data.take(self.rows), theory=False)


@dataclass(frozen=True)
class Remedy:
    """One row of `REMEDIES`: what it is tried for, and the function that proposes the edit.

    While it is tried, `kept` of the usual budget is left for those that come after it. `skips`
    is True if its network has skip connections, and `followed` if the history of its training may
    ask for another change on top of it.
    """

    name: str
    kinds: frozenset[str]
    propose: Callable[[Patient], Proposal | Refusal]
    kept: float = 0.7
    skips: bool = False
    followed: bool = True

    def treat(self, patient: Patient) -> Treatment | Refusal:
        """Do what is proposed to a copy of the patient's network."""
        proposal = self.propose(patient)
        return proposal if isinstance(proposal, Refusal) else patient.treated(proposal)

    def within(self, name: str) -> Remedy:
        """Return the same remedy, tried on top of another."""
        return replace(self, name=f"{name}, {self.name}")
