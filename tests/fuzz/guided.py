"""Damage that is chosen by the lines that it reaches: atheris, with the mutations of this folder.

    python -m tests.fuzz.guided log -max_total_time=60        the options are libFuzzer's

It takes the package atheris. What ends it is kept by libFuzzer, which prints the path.
"""

from __future__ import annotations

import sys
from random import Random

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["vegrad"]):
    from tests.fuzz.__main__ import corpus
    from tests.fuzz.targets import FOLDER, TARGETS, outcome

from tests.fuzz.mutation import damaged


def mutated(content: bytes, longest: int, seed: int) -> bytes:
    """Return damaged content, as atheris asks for it."""
    return damaged(content, Random(seed))[:longest]


def main() -> None:
    """Run the target that is named, until libFuzzer ends the process."""
    _, name, *options = sys.argv
    folder = FOLDER / "corpus"
    folder.mkdir()
    for number, content in enumerate(corpus(name)):
        (folder / str(number)).write_bytes(content)
    command = [sys.argv[0], str(folder), "-max_len=20000", "-timeout=60", *options]

    def run(content: bytes) -> None:
        outcome(TARGETS[name], content)

    atheris.Setup(command, run, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
