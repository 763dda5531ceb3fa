"""Edits as code that is run as it is written, so that a patch shows what was done."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from vegrad.arrays.shown import in_code
from vegrad.flow.edits import ARCHITECTURE, Edit, keeps_shape, parts
from vegrad.flow.subject import Code, Refusal

LEAST = 0.1  # times the last layer's weights: less would be a layer that stops gradients


def quoted(name: str) -> str:
    """Write a name as a string of Python, in double quotes as far as that can be."""
    return in_code(json.dumps(name, ensure_ascii=False))


class Script:
    """Lines of Python that have been run one after another, with the names that they speak of."""

    def __init__(self, **names: object) -> None:
        self.names: dict[str, object] = names
        self.lines: tuple[str, ...] = ()

    def run(self, *lines: str) -> None:
        """Run these lines, and keep them."""
        self.lines += lines
        exec("\n".join(lines), self.names)


class Editor(ABC):
    """Does one edit to a network by a script; a front end says how each part is done."""

    noun = "network"
    rebuilding: tuple[type[Edit], ...] = ARCHITECTURE
    """Edits that are done all at once, with the others that belong to them."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.passed = 0.0
        """Rows that went forward and back."""

    @property
    @abstractmethod
    def known(self) -> Collection[str]:
        """The names of the network's parameters."""

    @abstractmethod
    def digest(self, name: str) -> bytes:
        """Return a digest of a parameter's values, which tells if they have changed."""

    @abstractmethod
    def do(self, edit: Edit) -> str | Refusal:
        """Do a single edit; return the words for it, "" if its own say it all."""

    @abstractmethod
    def rebuild(self, edits: Sequence[Edit]) -> str | Refusal:
        """Do edits of the architecture together; return the words for them."""

    def apply(self, edit: Edit) -> Code | Refusal:
        """Do an edit."""
        single, known = parts(edit), self.known
        named = [getattr(part, "parameters", ()) for part in single]
        unknown = [name for names in named for name in names if name not in known]
        if unknown:
            return Refusal(f"the {self.noun} has no parameter {unknown[0]}")
        touched = dict.fromkeys(name for names in named for name in names)
        if not all(named):
            touched = dict.fromkeys(known)
        before = {name: self.digest(name) for name in touched if keeps_shape(edit)}
        if any(isinstance(part, self.rebuilding) for part in single):
            done = self.rebuild(single)
        else:
            several = [self.do(part) for part in single]
            refused = (one for one in several if isinstance(one, Refusal))
            # The words of several are those of the edits, without numbers.
            done = next(refused, several[0] if len(several) == 1 else "")
        if isinstance(done, Refusal):
            return done
        changed = tuple(name for name, old in before.items() if self.digest(name) != old)
        return Code(self.script.lines, changed, done, self.passed)
