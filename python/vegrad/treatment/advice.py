"""Remedies that the diagnosis itself advises: what it says is tried before anything else.

Values of parameters that findings ask for are changed together, as long as that helps. What asks
for another network, or for new weights of all layers, is a trial of its own.
"""

from __future__ import annotations

from dataclasses import replace

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.edits import (
    Edit,
    Initialize,
    Scale,
    SetActivation,
    Shift,
    is_in_place,
    keeps_shape,
    parts,
    together,
)
from vegrad.flow.subject import Refusal
from vegrad.treatment.promise import badness
from vegrad.treatment.remedy import Patient, Proposal

ROUNDS = 4  # of looks: a parameter that is put right may show the next
BY_HAND = Refusal(
    "its advice is in words, without a change that could be tried as it stands", worth_saying=True
)
NO_VALUES = Refusal("the diagnosis asks for no other values")


def as_said(p: Patient) -> Proposal | Refusal:
    """Do what the first finding asks for; other values along with what else asks for such."""
    edit = _first(p)
    if edit is not None and _stands_alone(p, edit):
        return Proposal(edit, waits=True)
    proposal = _values(p)
    by_hand = edit is None and p.diagnosis.findings and isinstance(proposal, Refusal)
    return BY_HAND if by_hand else proposal


def else_said(p: Patient) -> Proposal | Refusal:
    """Change the values that findings ask for, where the first asks for more than that."""
    edit = _first(p)
    return _values(p) if edit is not None and _stands_alone(p, edit) else NO_VALUES


def said_of_all(p: Patient) -> Proposal | Refusal:
    """Change all layers of a chain as a finding says it; LSUV, a layer at a time, is surer."""
    edits = (finding.edit for finding in p.diagnosis.findings)
    edit = next((one for one in edits if one is not None and _is_whole(one)), None)
    if p.chain is None or edit is None:
        return Refusal("the diagnosis asks for nothing of all layers")
    return Proposal(edit)


def activation_said(p: Patient) -> Proposal | Refusal:
    """Exchange the activations as a finding says it, with new weights for them."""
    edits = (finding.edit for finding in p.diagnosis.findings)
    edit = next((one for one in edits if isinstance(one, SetActivation)), None)
    if edit is None:
        return Refusal("the diagnosis asks for no other activation")
    return Proposal(together(edit, Initialize("he_normal")))


def _first(p: Patient) -> Edit | None:
    """Return what the first finding asks for; what has scaled the data may have left none."""
    return p.diagnosis.findings[0].edit if p.diagnosis.findings else None


def _stands_alone(p: Patient, edit: Edit) -> bool:
    """Return True of what asks for another network, or, of a chain, for new weights throughout."""
    return not keeps_shape(edit) or (p.chain is not None and _is_whole(edit))


def _values(p: Patient) -> Proposal | Refusal:
    """Change values as the findings say it, and then as those of the next look do, for some rounds.

    The best of what was looked at is proposed: what is found next may be no more than what the
    change has shown, and where all of it does harm, what the first finding asks for may not.
    """
    looked = list[tuple[float, tuple[Edit, ...], Diagnosis]]()
    done, diagnosis = tuple[Edit, ...](), p.diagnosis
    for number in range(ROUNDS):
        said = _said(diagnosis, whole=p.chain is None)
        every = tuple(edit for edits in said for edit in edits)
        choices = [every, said[0]] if len(said) > 1 and not number else [every] * bool(said)
        tried = [one for new in choices if (one := _look(p, done, new)) is not None]
        if not tried:
            break
        looked += tried
        _, done, diagnosis = min(tried, key=lambda one: one[0])
    if not looked:
        return NO_VALUES
    return Proposal(together(*min(looked, key=lambda one: one[0])[1]))


def _said(diagnosis: Diagnosis, *, whole: bool) -> list[tuple[Edit, ...]]:
    """Return the edits of values that findings ask for, of each parameter the first.

    Those of all layers at once are left out unless `whole`.
    """
    found, touched = list[tuple[Edit, ...]](), set[str]()
    for finding in diagnosis.findings:
        # Instead of data, what they are multiplied with first may be scaled.
        edits = [finding.edit, *finding.facts.values()]
        edit = next((one for one in edits if isinstance(one, Edit) and is_in_place(one)), None)
        if edit is None or (not whole and _is_whole(edit)):
            continue
        named = [getattr(part, "parameters", ()) for part in parts(edit)]
        if not all(named):  # all that there are
            return found or [parts(edit)]
        new = {name for names in named for name in names}
        if not new & touched:
            found.append(parts(edit))
            touched |= new
    return found


def _is_whole(edit: Edit) -> bool:
    """Return True of new weights for all, or of one factor for several."""
    return isinstance(edit, Initialize) or (isinstance(edit, Scale) and len(edit.parameters) > 1)


def _look(
    p: Patient, done: tuple[Edit, ...], new: tuple[Edit, ...]
) -> tuple[float, tuple[Edit, ...], Diagnosis] | None:
    """Diagnose the network with these edits and those before.

    None if they cannot be done, or have been.
    """
    edits = _joined(done, new)
    if edits == done:
        return None
    treated = p.treated(Proposal(together(*edits)))
    if isinstance(treated, Refusal):
        return None
    diagnosis = p.look(treated)
    return badness(diagnosis) if diagnosis.findings else -1.0, edits, diagnosis


def _joined(done: tuple[Edit, ...], new: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Return both, with factors and amounts for the same parameters as one."""
    found: dict[Edit, Edit] = {}
    for edit in (*done, *new):
        match edit:
            case Scale(_, factor):
                key: Edit = replace(edit, factor=1.0)
                before = found.get(key)
                factor *= before.factor if isinstance(before, Scale) else 1.0
                found[key] = replace(edit, factor=factor)
            case Shift(_, amount):
                key = replace(edit, amount=0.0)
                before = found.get(key)
                amount += before.amount if isinstance(before, Shift) else 0.0
                found[key] = replace(edit, amount=amount)
            case _:
                found[edit] = edit
    return tuple(found.values())
