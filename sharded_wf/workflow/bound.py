"""A workflow with its arguments: what is started."""

from __future__ import annotations

import inspect
from typing import Generic, TypeVar

import msgspec

from sharded_wf.serialization.values import ValueCodec

R_co = TypeVar("R_co", covariant=True)


class Bound(msgspec.Struct, Generic[R_co], frozen=True):
    """A workflow with its arguments, ready to be started; what ``fn.bind(...)`` returns. It can't change.

    ``input`` is the arguments as JSON text; ``result`` reads the result back, so a handle to it is typed.
    """

    name: str
    capability: str
    queue: str
    input: bytes
    result: ValueCodec[R_co]
    timeout_seconds: float | None = None


def check_bound(given: object) -> None:
    """Raises ``TypeError`` if what is to be started was not made by ``bind``; says what to write."""
    if isinstance(given, Bound):
        return
    if inspect.iscoroutine(given):
        given.close()  # else Python complains as well, that it was never awaited
    name = getattr(given, "__name__", None) if inspect.iscoroutine(given) or hasattr(given, "bind") else None
    raise TypeError(
        f"what is started is a workflow with its arguments: write {name or 'function'}.bind(...)"
        + ("" if name else f", not {given!r}")
    )
