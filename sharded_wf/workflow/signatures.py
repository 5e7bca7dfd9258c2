"""What a decorated function must be, and what its annotations mean.

Annotations are resolved on first use, because those of a module's first function may name classes that its last lines
define. ``App.check`` resolves all, so that a process which is about to work hears of mistakes at once.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

from sharded_wf.errors import DefinitionError
from sharded_wf.limits import NAME_LENGTH_MAX_BYTES


def check_function(function: object, what: str) -> None:
    """Raises :class:`DefinitionError` unless ``function`` is a plain function that can be found by name alone."""
    if isinstance(function, (staticmethod, classmethod, property)):
        raise DefinitionError(f"@{what}: a method can't be a {what}: its object can't be stored; use a function")
    if not inspect.isfunction(function):
        raise DefinitionError(f"@{what}: {function!r} is no function; decorate a function of your own")
    name = function.__qualname__
    owner = name.rpartition(".")[0]
    if owner and not owner.endswith("<locals>"):
        raise DefinitionError(f"@{what}: {name} is a method, whose object can't be stored; use a function")
    parameters = list(inspect.signature(function).parameters)
    if parameters and parameters[0] in ("self", "cls"):
        raise DefinitionError(f"@{what}: {name} takes {parameters[0]!r}, so it is a method; use a function")
    if function.__name__ == "<lambda>":
        raise DefinitionError(f"@{what}: a lambda has no name to be known by; use a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(f"@{what}: {name} is a generator; return a list instead")


def check_name(name: str, what: str) -> str:
    """The name, if it can be stored. Raises :class:`DefinitionError`."""
    if not name or not name.isprintable() or len(name.encode("utf-8", "replace")) > NAME_LENGTH_MAX_BYTES:
        raise DefinitionError(f"{what} {name!r}: a name is printable text of 1 to {NAME_LENGTH_MAX_BYTES} bytes")
    return name


class Signature:
    """The annotations of one function, resolved when they are first needed."""

    __slots__ = ("_function", "_hints", "_namespace", "name")

    def __init__(self, function: Callable[..., Any], name: str, namespace: dict[str, Any] | None) -> None:
        self._function = function
        self._namespace = namespace
        self._hints: dict[str, Any] | None = None
        self.name = name

    @property
    def hints(self) -> dict[str, Any]:
        """Annotations by parameter name, and ``return``. Raises :class:`DefinitionError` if one names nothing."""
        if self._hints is None:
            namespace = dict(self._namespace or {})
            closure = self._function.__closure__ or ()
            for variable, cell in zip(self._function.__code__.co_freevars, closure, strict=False):
                try:
                    namespace[variable] = cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
            try:
                self._hints = typing.get_type_hints(self._function, localns=namespace, include_extras=True)
            except Exception as error:
                raise DefinitionError(f"{self.name}: its annotations can't be resolved: {error}") from error
            self._namespace = None
        return self._hints

    @property
    def result(self) -> Any:
        """The annotation of the result; ``Any`` if there is none."""
        kind = self.hints.get("return", Any)
        return Any if kind in (typing.NoReturn, typing.Never) else kind


def local_namespace(function: Callable[..., Any], depth: int) -> dict[str, Any] | None:
    """The local variables among which a function was decorated, if it is a local function; else ``None``.

    Only there can its annotations name what is neither global nor in its closure.
    """
    if "<locals>" not in function.__qualname__:
        return None
    return dict(sys._getframe(depth).f_locals)
