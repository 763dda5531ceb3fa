"""The help of the shell's commands, as they print it."""

import os
from unittest.mock import patch

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from vegrad.cli.commands import parsers

COLUMNS = "88"


class CommandHelp(Directive):
    """Shows the help of a command, or of the program if none is named."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the help as a block of text."""
        with patch.dict(os.environ, {"COLUMNS": COLUMNS}):
            program, commands = parsers()
            parser = commands[self.arguments[0]] if self.arguments else program
            text = parser.format_help()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
