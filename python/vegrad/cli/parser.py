"""The parser that all commands share: what it refuses, what it suggests, and shell completion."""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, cast

from vegrad.arrays.checks import did_you_mean
from vegrad.arrays.shown import shown
from vegrad.cli.terminal import width
from vegrad.datasets import TABLES

KINDS: dict[object, str] = {int: "a whole number", float: "a number"}
CHECKED_LATER = ("init",)  # whose names depend on --cell; the shell completes all of them
# What argparse says, as all other errors say it.
ERRORS = (
    (r"^argument (\S+): expected one argument$", r"\1 needs a value"),
    (r"^argument (\S+): expected at least one argument$", r"\1 needs a value"),
    (r"^argument (\S+): expected (\d+) arguments$", r"\1 needs \2 values"),
    (r"^the following arguments are required: (.+)$", r"\1 is needed"),
)
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
        for pattern, words in ERRORS:
            message = re.sub(pattern, words, message)
        raise ValueError(message)

    def _get_value(self, action: argparse.Action, arg_string: str) -> object:
        """Return the value of a word, or say what it must be."""
        if action.type not in KINDS:
            return super()._get_value(action, arg_string)
        try:
            return cast(Callable[[str], object], action.type)(arg_string)
        except ValueError:
            option = [action.dest, *action.option_strings][-1]
            raise ValueError(
                f"{option} must be {KINDS[action.type]}, not {shown(arg_string)}"
            ) from None

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse what is none of the choices, and suggest the nearest."""
        if action.dest in CHECKED_LATER:
            return
        if action.choices is not None and value not in action.choices:
            option = [action.dest, *action.option_strings][-1]
            raise ValueError(not_one_of(option, list(action.choices), str(value)))

    def unknown(self, words: Sequence[str], commands: Mapping[str, Parser]) -> str:
        """Return the message about words that are no options of this one of the commands."""
        said = f"unrecognized arguments: {' '.join(words)}"
        if "--data" in self._option_string_actions and words[0].endswith((".npz", *TABLES)):
            return f"{said} (did you mean --data {words[0]}?)"
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        hints = [self._hint(one, commands) for one in options]
        if not words[0].startswith("-"):
            taken = [one for one in self._actions if not one.option_strings and one.metavar]
            hints += [f" (it takes {one.nargs or 1} {one.metavar})" for one in taken]
        return said + next(filter(None, hints), "")

    def _hint(self, option: str, commands: Mapping[str, Parser]) -> str:
        """Return what may be meant by an option, or which commands have it; "" if nothing is."""
        owners = [name for name, one in commands.items() if option in one._option_string_actions]
        if owners:
            return f" ({option} goes with {', '.join(owners)})"
        known = [one.lstrip("-") for one in self._option_string_actions if one.startswith("--")]
        hint = did_you_mean(option.lstrip("-"), known)
        return re.sub(r"(mean|or) (?=[a-z])", r"\1 --", hint)

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
