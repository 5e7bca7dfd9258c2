"""Workflows that are started without their code: by name, from a process that doesn't have the worker's modules."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

from sharded_wf.errors import DefinitionError
from sharded_wf.model.workflow import DEFAULT_QUEUE
from sharded_wf.serialization.values import ValueCodec, codec_for
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.signatures import check_name

T = TypeVar("T")


class NamedWorkflow(Generic[T]):
    """A workflow known only by name; what ``by_name`` returns. Its arguments are positional, because only the worker's
    code knows their names; whether they fit shows when the workflow runs. Nor are defaults known: to start an ID again
    that was started with the code (which fills them in), give all arguments, or ``on_conflict="existing"``."""

    def __init__(self, name: str, capability: str, queue: str, result: ValueCodec[T]) -> None:
        self.name = name
        self._capability = capability
        self._queue = queue
        self._result = result

    def bind(self, *args: object) -> Bound[T]:
        """The workflow with its arguments, to be given to ``client.start``. Raises ``UnstorableValue``."""
        return Bound(self.name, self._capability, self._queue, codec_for(Any).encode(list(args)), self._result)


@overload
def by_name(name: str, *, version: str | None = None, pinned: bool = ..., queue: str = ...) -> NamedWorkflow[Any]: ...
@overload
def by_name(
    name: str, result: type[T], *, version: str | None = None, pinned: bool = ..., queue: str = ...
) -> NamedWorkflow[T]: ...


def by_name(
    name: str, result: Any = Any, *, version: str | None = None, pinned: bool = False, queue: str = DEFAULT_QUEUE
) -> NamedWorkflow[Any]:
    """A workflow by its name, ``app/function``: ``by_name("shop/checkout", str).bind("o-1", 4200)``.

    ``result``: the type that its result is converted to. ``version``: of the app, if that has one. ``pinned``: as the
    worker's code declares the workflow. ``queue``: where it
    waits unless ``client.start`` says otherwise. Raises ``DefinitionError`` if the name is no ``app/function``.
    """
    app, slash, function = name.partition("/")
    if not (app and slash and function):
        raise DefinitionError(f"{name!r} names no workflow: write app/function, for example shop/checkout")
    check_name(name, "workflow")
    capability = app if version is None else f"{app}@{version}" + (f"/{function}" if pinned else "")
    return NamedWorkflow(name, capability, queue, codec_for(result))
