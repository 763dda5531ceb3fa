"""Every block of README.md and docs/ runs as a test, alone: in a namespace and a folder of its own.

A ```python block is run as a script, a ```pycon block as a session at the prompt, and in a
```console block every line `$ vegrad …`. What is shown is compared: of a script the ```text block
that follows at once, of the others what stands in the block. `...` stands for anything, `⋮` alone
on a line for lines left out; a number with decimals may be off by one in its last digit, and on
another instruction set than the pages were made on, where trainings take other ways, by anything.
Blocks of other languages are not run.

Files of docs/files are there by their names. Pictures that a block writes are kept in the folder
that VEGRAD_PICTURES names, which is how docs/pictures is made.
"""

import ast
import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest
from unittest.mock import patch

import vegrad
from sybil import Example, Sybil
from sybil.evaluators.doctest import NUMBER, OutputChecker
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[1]
FILES = ROOT / "docs" / "files"
OPTIONAL = {
    "accelerate",
    "equinox",
    "flax",
    "haiku",
    "jax",
    "keras",
    "lightning",
    "optax",
    "tensorboard",
    "torch",
    "transformers",
    "wandb",
}
LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | NUMBER
SHOWN = re.compile(r"\s*^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MADE_ON = "avx512"
FIGURE = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?")
ENVIRONMENT = {"COLUMNS": "80", "MPLBACKEND": "agg", "NO_COLOR": "1"}


class Checker(OutputChecker):
    """A comparison that lets figures differ where the instruction set does."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        want, got = (FIGURE.sub("0", text) for text in (want, got))
        return vegrad.isa() != MADE_ON and super().check_output(want, got, optionflags)


def run_python(example: Example) -> str | None:
    """Run a script, as if it were a file of its own; compare what it prints."""
    needs(example.parsed)
    shown = SHOWN.match(example.document.text, example.end)
    printed = io.StringIO()
    with a_folder() as folder, a_still_clock(example.parsed):
        script = folder / f"{Path(example.path).stem}_line_{example.line}.py"
        script.write_text(example.parsed, encoding="utf-8")
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(script), run_name="__main__")
    return difference(shown[1], printed.getvalue()) if shown else None


def run_session(example: Example) -> str | None:
    """Run a session at Python's prompt; compare what it answers."""
    needs(re.sub(r"^(>>>|\.\.\.) ?|^[^>.].*\n", "", example.parsed, flags=re.MULTILINE))
    name = f"{example.path}, line {example.line}"
    session = doctest.DocTestParser().get_doctest(example.parsed, {}, name, example.path, 0)
    report = io.StringIO()
    with a_folder(), a_still_clock(example.parsed):
        doctest.DocTestRunner(Checker(), optionflags=LIKE).run(session, out=report.write)
    return report.getvalue() or None


def run_shell(example: Example) -> str | None:
    """Run each command of vegrad; compare what it prints, if something is shown."""
    parts = re.split(r"^\$ (.*(?:\\\n.*)*)\n?", example.parsed, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    steps = [(command, shown) for command, shown in pairs if command.startswith("vegrad ")]
    all_done = runs(tuple(command for command, _ in steps))
    for (command, shown), done in zip(steps, all_done, strict=True):
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            return f"{command}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        if shown.strip() and (found := difference(shown, done.stdout)):
            return f"{command}\n{found}"
    return None


@cache
def runs(commands: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Run a block's commands one after the other, once for all blocks with the same commands."""
    with a_folder():
        return [
            subprocess.run(
                [sys.executable, "-m", "vegrad", *shlex.split(command, comments=True)[1:]],
                capture_output=True,
                text=True,
                check=False,
            )
            for command in commands
        ]


@contextlib.contextmanager
def a_still_clock(code: str) -> Iterator[None]:
    """Let the number of a step alone say if a monitor of this code looks at it."""
    if "Monitor" not in code or find_spec("torch") is None:
        yield
        return
    schedule = import_module("vegrad.torch.monitor.schedule")
    with patch.object(schedule, "clock", lambda: 0.0):
        yield


def needs(code: str) -> None:
    """Skip code that imports a package which vegrad does without and which is not installed.

    Other blocks have run in this process: that one forgets an import has to be seen in the code.
    """
    tree = ast.parse(code)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    for name in sorted(OPTIONAL & {part for path in imported for part in path.split(".")}):
        if find_spec(name) is None:
            raise SkipTest(f"{name} is not installed")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "vegrad":
            path = f"vegrad.{node.attr}"
            known = node.attr in vegrad.__all__ or any(
                f"{one}.".startswith(f"{path}.") for one in imported
            )
            assert known, f"{path} is used and not imported"


def difference(shown: str, printed: str) -> str | None:
    """Return in what the output differs from what the page shows, if it does."""
    wanted = doctest.Example("", re.sub(r"^\s*⋮\s*$", "...", shown, flags=re.MULTILINE))
    checker = Checker()
    if checker.check_output(wanted.want, printed, LIKE):
        return None
    return checker.output_difference(wanted, printed, LIKE | doctest.REPORT_NDIFF)


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """Work in a fresh folder with docs/files in it, and with a terminal of 80 columns.

    A finding may be said as a warning: that is what pages show. Any other warning
    is an error, but for what Lightning says of itself.
    """
    before = dict(os.environ)
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.chdir(name),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default", vegrad.FindingWarning)
        warnings.filterwarnings("default", module="lightning")
        folder = Path(name)
        if FILES.is_dir():
            shutil.copytree(FILES, folder, dirs_exist_ok=True)
        os.environ.update(ENVIRONMENT)
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)
        if kept := os.environ.get("VEGRAD_PICTURES"):
            for picture in folder.glob("*.png"):
                shutil.copy(picture, ROOT / kept)


collect = Sybil(
    parsers=[
        CodeBlockParser("python", run_python),
        CodeBlockParser("pycon", run_session),
        CodeBlockParser("console", run_shell),
    ],
    path=str(ROOT),
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()
