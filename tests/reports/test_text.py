"""The tables and sentences for the terminal."""

from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.finding import Finding
from vegrad.reports import cure, module_text, text
from vegrad.reports.module_text import ModuleRow, TimeRow

RNG = np.random.default_rng(3)
X, LABELS = RNG.standard_normal((60, 8)), RNG.integers(0, 4, 60)


def judge(depth: int, broken: int | None = None) -> Diagnosis:
    network = vegrad.MLP([8, *[16] * (depth - 1), 4], activation="tanh", init="critical", seed=0)
    if broken is not None:
        network.parameters[f"layers.{broken}.weight"][...] *= 1e-3
    return vegrad.diagnose(network, X, np.eye(4)[LABELS], resamples=0)


def test_modules_stand_beside_their_layers() -> None:
    diagnosis, names = judge(20, broken=8), [f"body.{2 * n}" for n in range(20)]
    plain = text.text(diagnosis).splitlines()
    named = text.text(diagnosis, names=names).splitlines()
    assert len(plain) == len(named)
    rows = [line for line in named if "  body." in line]
    assert len(rows) == sum(line[:5].strip().isdigit() for line in plain)
    for line in rows:
        layer = int(line[:5])
        assert line[69:].split()[0] == f"body.{2 * layer}"
        assert line.endswith("←") == (layer in (7, 8))
    assert any(line.endswith("vanishing") for line in plain)
    long = text.text(judge(2), names=["a", "a_name_that_is_longer_than_the_column"])
    assert "hat_is_longer_than_the_column"[-22:] in long
    assert "a_name_that" not in long


def module(number: int, **changes: Any) -> ModuleRow:
    row = ModuleRow(
        module=f"encoder.{number}",
        activation_rms=0.5,
        delta_norm=1e-3,
        gradient_norm=nan,
        note="",
        weighted=True,
    )
    row.update(changes)  # type: ignore[typeddict-item]
    return row


def test_modules_that_are_no_chain() -> None:
    rows = [module(n) for n in range(30)]
    rows[0]["delta_norm"], rows[29]["note"] = 0.0, "← dead"
    rows[1]["activation_rms"], rows[2]["gradient_norm"] = nan, 100.0
    lines = module_text.modules(rows)
    assert lines[0] == "module      activation rms  δ log10  gradient log10"
    assert lines[1] == "encoder.0              0.5        0"
    assert lines[2] == "encoder.1                     -3.00"
    assert lines[3] == "encoder.2              0.5    -3.00            2.00"
    assert lines[12] == "⋮           8 modules not shown"
    assert lines[-1].split()[-2:] == ["←", "dead"]
    assert len(lines) == 24
    assert len(module_text.modules(rows, all_layers=True)) == 31
    assert len(module_text.modules(rows[:24])) == 25


def test_weights_through_time() -> None:
    fresh = {"fresh_gain": 1.0, "fresh_reach": 40}
    row = TimeRow(parameter="rnn.weight_hh_l0", gain=0.5, reach=9, steps=40, **fresh)
    assert module_text.through_time([row]) == [
        "",
        "through time      a step back  reaches the last    weights drawn anew",
        "rnn.weight_hh_l0        0.50×        9 of 40 steps      1.00×, 40 steps",
    ]
    assert "0×" in module_text.through_time([row | {"gain": 0.0}])[2]
    assert module_text.through_time([]) == []


def test_a_report_of_modules_is_whole() -> None:
    words = {"says": "all is 0", "advises": "draw it again."}
    finding = Finding(kind="dead", severity="critical", **words)
    also = replace(finding, kind="vanishing", says="it shrinks", advises="use skips.")
    diagnosis = Diagnosis((finding, also), "nothing", {"model": "Net, step 3"})
    said = module_text.text_of_modules(diagnosis, [module(0)], notes=["x" * 70, "slow"])
    assert said.splitlines()[0] == "Net, step 3"
    assert said.splitlines()[5:] == [
        "dead: all is 0",
        "  → draw it again.",
        "also vanishing: it shrinks",
        "  → use skips.",
        f"  ! {'x' * 70}",
        "  ! slow",
    ]


@dataclass(frozen=True)
class Tried:
    ended: str
    steps: int = 10
    name: str = "a remedy"
    accepted: bool = False
    why: str = "a sentence that nothing reads"
    after: Diagnosis | None = None
    loss: tuple[float, float] = (2.0, 1.0)


@pytest.mark.parametrize(
    ("ended", "steps", "result"),
    [
        ("reached", 10, "no better"),
        ("luck", 10, "by luck"),
        ("slow", 10, "too slow"),
        ("learns-nothing", 10, "too slow"),
        ("diverged", 10, "diverges"),
        ("no-passes", 0, "–"),
        ("no-better", 0, "–"),
    ],
)
def test_results_of_attempts(ended: str, steps: int, result: str) -> None:
    _, row, _ = cure.attempts([Tried(ended, steps, after=judge(3))])
    assert row.split(maxsplit=3)[-1].endswith(f"  {result}")


def test_only_what_can_never_help_is_explained() -> None:
    assert cure.attempts([Tried("")]) == []
    assert cure.attempts([Tried("impossible")]) == ["a remedy: a sentence that nothing reads", ""]
