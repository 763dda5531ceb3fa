"""A finding: one thing that is wrong, where, why, on what evidence, and the edit that mends it.

A finding is data. Its message and advice are rendered from that data when somebody reads them, in
the words of the front end (`vegrad.flow.wording`); no code reads them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import cast

from vegrad.arrays.files import plain
from vegrad.flow.edits import Edit
from vegrad.flow.site import LAYERED, Site
from vegrad.flow.wording import Vocabulary, render

PLAIN = Vocabulary()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    """The symptom: vanishing, exploding, saturated, dead, nonfinite, overshooting, …"""
    severity: str
    """"critical" or "warning"."""
    sites: tuple[Site, ...] = ()
    """The places that it is about, the one that matters most first."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The numbers that it rests on, by name."""
    cause: str = ""
    """The reason, by its stable name; "" if it cannot be told."""
    edit: Edit | None = None
    """The change that its advice describes, for `Diagnosis.apply` and the remedies."""
    rule: str = ""
    """The name of the rule that found it."""
    blame: str | None = None
    """The factor of a layer's gain that is at fault, "weights" or "activation", if one is."""
    says: str = ""
    """The template of the message, see `vegrad.flow.wording.render`."""
    advises: str = "{edit}."
    """The template of the advice."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Sites, edits and names that the templates mention beside the evidence."""
    vocabulary: Vocabulary = field(default=PLAIN, repr=False, compare=False)
    """How the front end that was judged names things."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers (or of a report's rows) that it is about."""
        places = (site.place for site in self.sites if site.kind in LAYERED)
        return tuple(place for place in places if place is not None)

    @property
    def is_departure(self) -> bool:
        """True if one gain departs from the usual one, which the evidence has beside it."""
        return "usual_gain" in self.evidence

    @property
    def message(self) -> str:
        """The trouble, in a sentence."""
        return render(self.says, self._named(), self.vocabulary)

    @property
    def advice(self) -> str:
        """The remedy, in a sentence."""
        return render(self.advises, self._named(), self.vocabulary)

    def __repr__(self) -> str:
        cause = f" by {self.cause}" if self.cause else ""
        return f"<Finding: {self.kind}{cause}: {self.message}>"

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}\n  → {self.advice}"

    def _named(self) -> dict[str, object]:
        site = self.sites[0] if self.sites else None
        return {"site": site, "sites": self.sites, "edit": self.edit, **self.evidence, **self.facts}

    def to_dict(self) -> dict[str, object]:
        """Return the finding as plain JSON types, in words and in data."""
        content = {
            "kind": self.kind,
            "severity": self.severity,
            "cause": self.cause,
            "rule": self.rule,
            "layers": self.layers,
            "sites": [asdict(site) for site in self.sites],
            "message": self.message,
            "advice": self.advice,
            "evidence": dict(self.evidence),
            "blame": self.blame,
            "edit": None if self.edit is None else edit_to_dict(self.edit),
        }
        return cast("dict[str, object]", plain(content))


def edit_to_dict(edit: Edit) -> dict[str, object]:
    """Return an edit as its name and its fields."""
    return {"edit": type(edit).__name__} | {
        name: [edit_to_dict(one) for one in value] if name == "edits" else value
        for name, value in vars(edit).items()
    }


def layer_sites(places: Iterable[int], names: Iterable[str] | None = None) -> tuple[Site, ...]:
    """Return the sites of layers by number; `names` are those of all layers."""
    known = None if names is None else list(names)
    return tuple(
        Site("layer", f"layers.{place}" if known is None else known[place], place)
        for place in map(int, places)
    )
