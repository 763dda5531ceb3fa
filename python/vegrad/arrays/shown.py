"""Names and values of users, modules and files, as people are shown them.

Names and values may hold anything: escape sequences that a terminal obeys, marks that turn the
direction of what follows, a million letters. Whatever shows them, in a terminal, a picture, a page
or a message, takes them from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from reprlib import Repr

from vegrad._core import visible as visible

MOST = 80
"""The characters of a name in a message."""
FEW = 8
"""The names of a list in a message."""
SCREEN = 1500
"""The characters of a whole message."""
_repr = Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 3, MOST, MOST


def shown(value: object, most: int = MOST) -> str:
    """Return a value as Python writes it, on one line and cut where it is long."""
    try:
        return visible(_repr.repr(value), most)
    except Exception:  # of a __repr__, which is not ours
        return f"<{visible(type(value).__name__)}>"


def some(names: Iterable[object], most: int = FEW) -> str:
    """Join names by commas, of many the first and how many more there are."""
    every = list(names)
    more = [f"… {len(every) - most} more"] if len(every) > most else []
    return ", ".join([*(visible(str(one)) for one in every[:most]), *more])


def in_code(literal: str, kept: str = "") -> str:
    """Return a string as code has it, with what cannot be printed, and is not kept, written out."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in literal)


def whole(text: object) -> str:
    """Return a text of several lines, and with the spaces that we use ourselves, written out."""
    return in_code(str(text), "\n\xa0\u2009\u202f")


def escape(text: object) -> str:
    """Return a text for a page: nothing in it is markup, and nothing invisible but its spaces."""
    import html  # takes a millisecond to import, and few need it

    return html.escape(whole(text))


@contextmanager
def plainly() -> Iterator[None]:
    """Let a ValueError or TypeError say on one line, of a screen at most, what it says.

    For what reads files, whose messages give paths and names from all over the file.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if (plain := visible(str(error), SCREEN)) != str(error):
            error.args = (plain,)
        raise
