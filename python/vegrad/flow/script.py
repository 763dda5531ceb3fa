"""Code that is run as it is written, so that a patch shows what was done."""

from __future__ import annotations


class Script:
    """Lines of Python that have been run one after another, with the names that they speak of."""

    def __init__(self, **names: object) -> None:
        self.names: dict[str, object] = names
        self.lines: tuple[str, ...] = ()

    def run(self, *lines: str) -> None:
        """Run these lines, and keep them."""
        self.lines += lines
        exec("\n".join(lines), self.names)
