"""Findings that a training has met on its way, in a form that outlives it: in files and pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, isnan, nan
from typing import Any, cast

from vegrad.flow import edits
from vegrad.flow.edits import Edit
from vegrad.flow.finding import PLAIN, Finding, edit_to_dict
from vegrad.flow.site import Site

Json = Any  # what JSON can hold


@dataclass(frozen=True)
class Noted:
    """A finding, in its final words, and the number of steps that had been taken then."""

    step: int
    finding: Finding


def noted(step: int, finding: Finding) -> Noted:
    """Note a finding at a step: its words are rendered now, in the words of its front end."""
    said = replace(
        finding,
        says=_literal(finding.message),
        advises=_literal(finding.advice),
        facts={},
        evidence={name: float(value) for name, value in finding.evidence.items()},
        vocabulary=PLAIN,
    )
    return Noted(step, said)


def to_plain(one: Noted) -> dict[str, Json]:
    """Return a noted finding as JSON types; numbers are as `plain_number` has them."""
    finding = one.finding
    content: dict[str, Json] = {
        name: getattr(finding, name)
        for name in ("kind", "severity", "cause", "rule", "blame", "message", "advice")
    }
    content["evidence"] = {name: plain_number(value) for name, value in finding.evidence.items()}
    content["sites"] = [
        vars(site) | {"rows": site.rows and list(site.rows)} for site in finding.sites
    ]
    content["edit"] = None if finding.edit is None else _plain_edit(edit_to_dict(finding.edit))
    return {"step": one.step, **content}


def from_plain(content: Mapping[str, Json]) -> Noted:
    """Return the noted finding that `to_plain` described.

    Raises:
        ValueError: something is missing, or of another kind.
    """
    try:
        finding = Finding(
            sites=tuple(map(_site, content["sites"])),
            evidence={name: as_number(value) for name, value in content["evidence"].items()},
            edit=None if content["edit"] is None else _edit(content["edit"]),
            says=_literal(content["message"]),
            advises=_literal(content["advice"]),
            blame=None if content["blame"] is None else _text(content["blame"]),
            kind=_text(content["kind"]),
            severity=_text(content["severity"]),
            cause=_text(content["cause"]),
            rule=_text(content["rule"]),
        )
        if finding.severity not in ("critical", "warning"):
            raise TypeError(f"no severity is called {finding.severity!r}")
        return Noted(int(content["step"]), finding)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a noted finding must be as to_dict() gave it: {error!r}") from error


def plain_number(value: float) -> float | str | None:
    """Return a number as JSON has it: nan as null, infinities as "inf" and "-inf"."""
    return value if isfinite(value) else None if isnan(value) else str(value)


def as_number(value: Json) -> float:
    """Return the number that `plain_number` gave."""
    return nan if value is None else float(value)


def _literal(text: str) -> str:
    """Return the template of a text that stays as it is."""
    return _text(text).replace("{", "{{").replace("}", "}}")


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text, not {value!r}")
    return value


def _site(content: Mapping[str, Json]) -> Site:
    rows = content["rows"] and tuple(content["rows"])
    site = Site(**{**content, "rows": rows})
    numbers = [*(() if site.place is None else (site.place,)), *(site.rows or ())]
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"whole numbers, not {numbers}")
    return replace(site, kind=_text(site.kind), name=_text(site.name))


def _plain_edit(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {name: _plain_edit(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_edit(entry) for entry in value]
    return plain_number(value) if isinstance(value, float) else value


def _edit(content: Mapping[str, Json]) -> Edit:
    fields = dict(content)
    kind = _kind(fields.pop("edit"))
    if "edits" in fields:
        return cast(Edit, kind(tuple(_edit(one) for one in fields["edits"])))
    values = {n: tuple(v) if isinstance(v, list) else _infinite(v) for n, v in fields.items()}
    return cast(Edit, kind(**values))


def _kind(name: Json) -> Json:
    """Return the class of an edit; its name may be of a file that anybody has written."""
    kind = getattr(edits, name)
    if not isinstance(kind, type) or not issubclass(kind, Edit):
        raise TypeError(f"no edit is called {name!r}")
    return kind


def _infinite(value: Json) -> Json:
    return float(value) if value in ("inf", "-inf") else value
