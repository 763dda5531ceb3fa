"""A property that is computed once, without a lock.

That of functools has one up to Python 3.11, for all objects of a class together: a child of fork()
would wait for a thread that it does not have.
"""

from __future__ import annotations

import functools
import sys
from typing import Self, TypeVar, overload

T = TypeVar("T")

if sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property[T]):  # noqa: N801
        """A property that is computed when it is first asked for."""

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None) -> T: ...
        def __get__(self, instance: object, owner: type | None = None) -> Self | T:
            if instance is None:
                return self
            assert self.attrname is not None
            value = vars(instance)[self.attrname] = self.func(instance)
            return value
