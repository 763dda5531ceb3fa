"""Containers of somebody's own classes: those that never end, and those that say how long they are.

They were read until the memory was full, which ends the process.
"""

from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice, repeat
from typing import Any

import numpy as np
import pytest
import vegrad

ONE = np.ones(2)


class EndlessMapping(Mapping[str, Any]):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[str]:
        return map(str, count())

    def __getitem__(self, key: str) -> Any:
        return ONE


class EndlessSequence(Sequence[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: Any) -> Any:
        return ONE


class WithoutLength:
    def __iter__(self) -> Iterator[Any]:
        return repeat(ONE)


class Negative(list[Any]):
    def __len__(self) -> int:
        return -1


ENDLESS: dict[str, tuple[Callable[[], Any], int]] = {
    "a mapping": (EndlessMapping, 3),
    "a sequence": (EndlessSequence, 3),
    "an iterable": (WithoutLength, 2**22),
    "an iterator": (lambda: repeat(ONE), 2**22),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "norm": vegrad.norm,
    "clip_by_global_norm_": lambda g: vegrad.clip_by_global_norm_(g, 1.0),
    "AdaGC": lambda g: vegrad.clipping.AdaGC().apply_(g),
    "step": lambda g: vegrad.SGD().step(g, [ONE]),
    "adaptive_clip_": lambda g: vegrad.adaptive_clip_([ONE], g),
    "diagnose_gradients": vegrad.diagnose_gradients,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends(what: str, call: str) -> None:
    make, most = ENDLESS[what]
    with pytest.raises(TypeError, match=f" must have at most {most} entries, but a "):
        CALLS[call](make())


def test_what_never_ends_inside() -> None:
    with pytest.raises(TypeError, match=r'buffers\["a"\]\[1\] must have at most 3 entries, but a'):
        vegrad.norm({"a": [ONE, EndlessSequence()]})


def test_a_length_that_cannot_be() -> None:
    with pytest.raises(TypeError, match=r"must .* can be read, not .*Negative that raises"):
        vegrad.norm(Negative([ONE]))


def test_what_has_an_end_is_taken() -> None:
    for one in (
        UserList([ONE, ONE]),
        deque([ONE, ONE]),
        UserDict(a=ONE, b=ONE),
        OrderedDict(a=ONE, b=ONE),
        {"a": ONE, "b": ONE}.values(),
        iter([ONE, ONE]),
        islice(WithoutLength(), 2),
        (one for one in (ONE, None, ONE)),
    ):
        assert vegrad.norm(one) == pytest.approx(2.0)


def test_a_length_that_nobody_knows_is_none() -> None:
    class Plain:
        def __iter__(self) -> Iterator[Any]:
            return iter([ONE, ONE])

        def __len__(self) -> int:
            raise TypeError("nobody knows")

    assert vegrad.norm(Plain()) == pytest.approx(2.0)
