"""The command line: `vegrad` and its subcommands."""

from vegrad.cli.commands import main

__all__ = ["main"]
