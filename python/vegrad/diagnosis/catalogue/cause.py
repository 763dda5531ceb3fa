"""The row of the table of causes."""

from __future__ import annotations

from dataclasses import dataclass

from vegrad.flow.wording import Vocabulary, render

PLACES = ("weights", "architecture", "data", "loss", "operation", "loop")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One reason why a network does not train: the page that `vegrad explain` prints."""

    name: str
    """Its stable name, that of `Finding.cause`."""
    says: str
    """The trouble, in a sentence."""
    shows: str
    """The signs by which a user meets it."""
    evidence: str
    """The measurements without which it is not said."""
    sites: str
    """The places that a finding names."""
    advises: str
    """The template of what to do; see `advice`."""
    lies_in: str
    """The part in which the remedy lies, one of `PLACES`."""
    curable: bool
    """True if changes of weights, architecture, scales or the learning rate can be the remedy.

    False where the remedy is a line of the user's code, which no search can write.
    """
    sources: tuple[str, ...]
    """Public addresses of papers, issues or documentation, each after a word of what it is."""

    def advice(self, words: Vocabulary) -> str:
        """Return what to do, in the words of a front end."""
        return render(self.advises, {}, words)
