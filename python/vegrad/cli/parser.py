"""The parser that all commands share: what it refuses, what it suggests, and shell completion."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from collections.abc import Collection, Sequence
from typing import NoReturn

from vegrad.arrays.checks import did_you_mean
from vegrad.arrays.shown import shown
from vegrad.cli.terminal import width

CHECKED_LATER = ("init",)  # whose names depend on --cell; the shell completes all of them
SHELLS = ("bash", "zsh", "fish", "powershell")


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations, and whose errors are ValueErrors.

    Args:
        says: the sentence above the options.
        examples: command lines, shown below them.
        notes: what stands below the examples.
        usage: what stands behind the program's name.
        prog: the program, with the command.
    """

    def __init__(
        self,
        *,
        says: str = "",
        examples: Sequence[str] = (),
        notes: str = "",
        usage: str = "[options]",
        prog: str | None = None,
    ) -> None:
        shown = ["Examples:", *(f"  {line}" for line in examples)] if examples else []
        if notes:
            shown += ["", textwrap.fill(notes, width() - 2)]
        super().__init__(
            prog=prog,
            usage=f"%(prog)s {usage}",
            description=textwrap.fill(says, width() - 2),
            epilog="\n".join(shown),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError with the message, so that it is printed like all others."""
        raise ValueError(message)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse what is none of the choices, and suggest the nearest."""
        if action.dest in CHECKED_LATER:
            return
        if action.choices is not None and value not in action.choices:
            option = [action.dest, *action.option_strings][-1]
            raise ValueError(not_one_of(option, list(action.choices), str(value)))

    def unknown(self, words: Sequence[str]) -> str:
        """Return the message about words that are no options of this command."""
        if "--data" in self._option_string_actions and words[0].endswith((".csv", ".npz")):
            return f"unrecognized arguments: {' '.join(words)} (did you mean --data {words[0]}?)"
        options = (word.partition("=")[0] for word in words if word.startswith("--"))
        hints = (did_you_mean(word, self._option_string_actions) for word in options)
        return f"unrecognized arguments: {' '.join(words)}{next(filter(None, hints), '')}"

    def complete_paths(self) -> None:
        """Let the shell complete the names of files where an option takes one."""
        files = importlib.import_module("shtab").FILE
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    parser.complete_paths()
            elif action.metavar == "PATH":
                action.complete = files  # type: ignore[attr-defined]


def not_one_of(option: str, names: Collection[str], value: str) -> str:
    """Return the message about a value that is none of these names."""
    hint = did_you_mean(value, names)
    return f"{option} must be one of {', '.join(names)}, not {shown(value)}{hint}"


def completion(parser: Parser, shell: str) -> str:
    """Return the script that completes commands, options and names in a shell.

    Raises:
        ImportError: shtab, which writes it, is not installed.
    """
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise ImportError('completion needs shtab: pip install "vegrad[cli]"') from error
    parser.complete_paths()
    script: str = shtab.complete(parser, shell=shell)
    return script
