"""What was once found wrong, and some inputs of each target: `python -m tests.fuzz` has more."""

import base64
import json
import sys
from random import Random

import pytest

if sys.platform == "win32":
    pytest.skip("no mprotect and no limits as Unix has them", allow_module_level=True)

from tests.fuzz.__main__ import CORPUS, corpus
from tests.fuzz.mutation import damaged
from tests.fuzz.targets import TARGETS, outcome

FOUND = [json.loads(line) for line in CORPUS.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("entry", FOUND, ids=[one["was"] for one in FOUND])
def test_what_was_found_stays_mended(entry: dict[str, str]) -> None:
    outcome(TARGETS[entry["target"]], base64.b64decode(entry["base64"]))


@pytest.mark.parametrize("name", list(TARGETS))
def test_each_target_reads_what_is_whole_and_survives_what_is_not(name: str) -> None:
    for content in TARGETS[name].seeds():
        assert name in ("arrays", "tensors", "passes") or outcome(TARGETS[name], content) == "read"
    inputs = corpus(name)
    for number in range(20):
        random = Random(number)
        outcome(TARGETS[name], damaged(random.choice(inputs), random))
