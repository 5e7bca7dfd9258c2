"""Attributes that are computed when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class on_first_use(Generic[T]):  # noqa: N801 - a decorator, as cached_property is
    """Computes an attribute once, when it is first asked for. (``cached_property`` locks on Python 3.11, and a
    ``__getattr__`` slows every attribute of the object down.)"""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        value = self._compute(owner)
        owner.__dict__[self._name] = value  # from now on found there, before this descriptor
        return value
