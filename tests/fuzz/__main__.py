"""Damage what readers read, at random: each must read it, or refuse it as it documents.

    python -m tests.fuzz                            a minute, all targets in turn, from a new seed
    python -m tests.fuzz --target log --seed 7      one of them, with the inputs of seed 7
    python -m tests.fuzz --runs 100000              so many inputs, however long it takes
    python -m tests.fuzz --only FILE --target log   one input

An input that ends in another exception, or takes longer than a minute, is kept, and its path
printed; after a crash it is what lies in the folder that was printed first. What was once found
wrong belongs into corpus.jsonl. guided.py has the same targets for atheris, core.cpp the kernels
and passes for libFuzzer.
"""

from __future__ import annotations

import argparse
import base64
import faulthandler
import json
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random, SystemRandom

from tests.fuzz.mutation import damaged
from tests.fuzz.targets import FOLDER, TARGETS, outcome

CORPUS = Path(__file__).with_name("corpus.jsonl")
LONGEST = 60  # seconds for one input


def corpus(name: str) -> list[bytes]:
    """Return what is undamaged, and what was once found wrong."""
    entries = [json.loads(line) for line in CORPUS.read_text("utf-8").splitlines()]
    found = [base64.b64decode(one["base64"]) for one in entries if one["target"] == name]
    return TARGETS[name].seeds() + found


def fuzz(names: list[str], options: argparse.Namespace) -> int:
    """Run the targets in turn; return how many faults there were."""
    inputs = {name: corpus(name) for name in names}
    counts = {name: {"read": 0, "refused": 0, "wrong": 0} for name in names}
    seen: set[str] = set()
    end, number = time.monotonic() + options.seconds, 0
    while number < options.runs if options.runs else time.monotonic() < end:
        name = names[number % len(names)]
        random = Random(f"{options.seed} {number}")
        content = damaged(random.choice(inputs[name]), random)
        (FOLDER / "last").write_bytes(content)
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            counts[name][outcome(TARGETS[name], content)] += 1
        except Exception:
            counts[name]["wrong"] += 1
            keep(name, content, f"{options.seed}-{number}", seen)
        number += 1
    faulthandler.cancel_dump_traceback_later()
    for name, of_name in counts.items():
        print(name, *(f"{count} {what}" for what, count in of_name.items()))
    wrong = sum(of_name["wrong"] for of_name in counts.values())
    print(f"seed {options.seed}: {number} inputs, {wrong} wrong")
    return wrong


def keep(name: str, content: bytes, label: str, seen: set[str]) -> None:
    """Keep an input that has raised at a place from which none is kept yet."""
    _, error, at = sys.exc_info()
    place = f"{type(error).__name__} {traceback.extract_tb(at)[-1:]}"
    if place in seen:
        return
    seen.add(place)
    traceback.print_exc()
    path = Path(tempfile.gettempdir()) / f"vegrad-fuzz-{name}-{label}"
    path.write_bytes(content)
    print(f"{name}: kept as {path}", flush=True)


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="all of them")
    parser.add_argument("--seconds", type=int, default=60, help="length of the run (60)")
    parser.add_argument("--runs", type=int, help="inputs, in place of seconds")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**32))
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    parser.add_argument("--only", type=Path, help="a file with one input")
    parser.add_argument("--memory", type=int, default=16, help="GB for one input (16); 0: any")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.list:
        print(*names)
        return 0
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if options.only:
        print(outcome(TARGETS[names[0]], options.only.read_bytes()))
        return 0
    if options.memory:
        resource.setrlimit(resource.RLIMIT_AS, (options.memory << 30, options.memory << 30))
    print(f"the input that is read now lies in {FOLDER}", flush=True)
    return fuzz(names, options) > 0


if __name__ == "__main__":
    sys.exit(main())
