"""Timing in turns, and the peak rates of the machine."""

from itertools import pairwise

import pytest
from vegrad import _core
from vegrad.benchmark import limits, timing


def test_turns_are_taken_in_turn() -> None:
    order: list[str] = []
    rounds = []
    turns = timing.interleave(
        {name: lambda name=name: order.append(name) for name in "ab"},
        0.01,
        turn=0.001,
        seen=lambda now: rounds.append(len(now["b"])),
    )
    assert len(turns["a"]) == len(turns["b"]) >= 3
    assert rounds == list(range(1, len(rounds) + 1))
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == 2 * len(turns["a"]) - 1


def test_a_slow_call_has_three_turns() -> None:
    calls: list[int] = []
    turns = timing.interleave(
        {"slow": lambda: calls.append(len(calls))}, 0.05, turn=1e-9, slow=-1.0
    )
    assert list(map(len, turns["slow"])) == [1, 1, 1]
    assert timing.summary(turns["slow"])["calls"] == len(calls) == 3


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_what_reads_writes_and_updates_a_block(threads: int) -> None:
    _core.set_num_threads(threads)
    calls = limits.memory(4096, ("read", "write", "update"))
    for kind, title in (("read", "sum"), ("write", "fill"), ("update", "multiply")):
        names = [f"numpy {title}"] + ([f"numpy {title} in threads"] if threads > 1 else [])
        assert set(names) <= set(calls[kind])
        for call in calls[kind].values():
            call()
    assert ("numpy sum in threads" in calls["read"]) == (threads > 1)


def test_the_limit_of_a_pass() -> None:
    small = {"batch": 4, "width": 8, "by": "x", "gflops": 1.0}
    large = {"batch": 64, "width": 64, "by": "y", "gflops": 10.0}
    found: list[limits.Found] = [
        {"products": [small], "memory": []},
        {"products": [large], "memory": []},
    ]
    case = {"layers": 2, "width": 8, "batch": 4, "flops": 2e6}
    assert limits.peak(found, case) == large
    assert limits.pass_ms(found, case) == pytest.approx(0.2)
    assert limits.peak(found, case | {"width": 512, "batch": 512}) == large
    rates = [
        {"bytes": 1024, "kind": "read", "gbytes": 2.0},
        {"bytes": 1024, "kind": "write", "gbytes": 1.0},
    ]
    memory: list[limits.Found] = [{"products": [], "memory": rates}]
    assert limits.pass_ms(memory, case | {"batch": 1}) == pytest.approx(512e-6 * (2 / 2 + 1 / 1))
