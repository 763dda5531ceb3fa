"""The list of the architectures: their names, and the functions that make them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from architectures.tasks import Case

MAKE: dict[str, Callable[[], Case]] = {}


def add(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Put the function that makes an architecture into the list."""

    def put(make: Callable[[], Case]) -> Callable[[], Case]:
        MAKE[name] = make
        return make

    return put


def build(name: str) -> Case:
    """Make an architecture in training mode, the same at every call.

    Raises:
        ImportError: its library is not installed.
    """
    torch.manual_seed(0)
    case = MAKE[name]()
    case.model.train()
    return case
