"""Errors as JSON text and back, without ever running code that a stored name points to.

An error comes back as its own class only if that class is already in this process: a builtin, or an attribute of a
module that has been imported for other reasons. It is built from its arguments as any caller would build it, and thrown
away again if it doesn't read the same. Everything else becomes :class:`WorkflowFailed`, which carries the text.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from sharded_wf.errors import WorkflowFailed
from sharded_wf.limits import ERROR_TRACEBACK_MAX_CHARACTERS, PAYLOAD_MAX_BYTES

_NOTE_PREFIX = "Recorded traceback:\n"


class StoredError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of an error. ``args`` is ``None`` if they have no JSON form."""

    type: str
    module: str
    message: str
    args: list[Any] | None = None
    traceback: str = ""
    notes: list[str] = []
    causes: list[int] = []
    """Of a workflow's own error: the places of the entries that it came from."""
    undone_from: int | None = None
    """Of a workflow's own error: a ``saga()`` has undone its work, which began with the step of this number."""
    exceptions: list[StoredError] = []
    """Of a group: the errors in it, without their tracebacks, which the group's own shows."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredError).decode


def encode_error(error: BaseException, causes: Sequence[int] = (), undone_from: int | None = None) -> bytes:
    """The error as JSON text: type, module, message, arguments, traceback and notes; ``causes`` and ``undone_from`` as
    ``StoredError`` has them. One that is larger than any value may be keeps the ends of its message. Never raises."""
    stored = _stored(error, _traceback_text(error))
    if causes or undone_from is not None:
        stored = msgspec.structs.replace(stored, causes=list(causes), undone_from=undone_from)
    try:
        data = _encode(stored)
        if len(data) > PAYLOAD_MAX_BYTES:
            stored = msgspec.structs.replace(stored, message=_shortened(stored.message), notes=[])
        elif _decode(data) == stored:
            return data
    except Exception:  # noqa: BLE001 - arguments without a JSON form
        pass
    return _encode(msgspec.structs.replace(stored, args=None, exceptions=[]))


def _stored(error: BaseException, traceback_text: str) -> StoredError:
    kind = type(error)
    args: list[Any] = list(error.args)
    exceptions: list[StoredError] = []
    if isinstance(error, WorkflowFailed):
        # It stands for an error from elsewhere: passed on, it still names the original.
        args = [error.type_name, error.message, error.traceback_text]
    elif isinstance(error, OSError) and isinstance(error.filename, str) and error.filename2 is None:
        args = [error.errno, error.strerror, error.filename]  # its own `args` leave the file out
    elif isinstance(error, BaseExceptionGroup):
        args = [error.message]
        exceptions = [_stored(one, "") for one in cast("BaseExceptionGroup[BaseException]", error).exceptions]
    notes = [_clean(note) for note in getattr(error, "__notes__", ()) if not str(note).startswith(_NOTE_PREFIX)]
    return StoredError(
        kind.__qualname__, kind.__module__, _message_of(error), args, traceback_text, notes, exceptions=exceptions
    )


def decode_error(data: bytes) -> Exception:
    """The error to raise: of its own class where that can safely be found, else :class:`WorkflowFailed`.

    The recorded traceback is attached as a note. Never raises; text that is no stored error gives
    :class:`WorkflowFailed` too.
    """
    try:
        stored = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return WorkflowFailed("unreadable error", f"{error}; stored: {data[:200]!r}")
    return _error_of(stored)


def _error_of(stored: StoredError) -> Exception:
    rebuilt = _rebuild(stored)
    if rebuilt is None:
        name = stored.type if stored.module == "builtins" else f"{stored.module}.{stored.type}"
        rebuilt = WorkflowFailed(name, stored.message, stored.traceback)
    for note in stored.notes:
        rebuilt.add_note(note)
    if stored.traceback:
        rebuilt.add_note(_NOTE_PREFIX + stored.traceback)
    return rebuilt


def _rebuild(stored: StoredError) -> Exception | None:
    if stored.args is None:
        return None
    kind: Any = sys.modules.get(stored.module)
    for name in stored.type.split("."):
        # Only what a module or class holds itself: no __getattr__ is run for a stored name.
        kind = getattr(kind, "__dict__", {}).get(name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        inside = ([_error_of(one) for one in stored.exceptions],) if stored.exceptions else ()
        error = kind(*stored.args, *inside)
        same = type(error) is kind and str(error) == stored.message
    except Exception:  # noqa: BLE001 - what a stranger's constructor raises
        return None
    # A coroutine can't be made to raise it: Python takes it for the coroutine's own end.
    return error if same and not isinstance(error, StopIteration) else None


def _clean(text: object) -> str:
    """Text that UTF-8 can hold."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _message_of(error: BaseException) -> str:
    try:
        return _clean(error)
    except Exception as failure:  # noqa: BLE001 - what a stranger's __str__ raises
        return f"<its message can't be read: {type(failure).__qualname__}>"


def _traceback_text(error: BaseException) -> str:
    try:
        text = _clean("".join(traceback.format_exception(error)))
    except Exception:  # noqa: BLE001 - what a stranger's __str__ raises
        return ""
    return _shortened(text)


def _shortened(text: str) -> str:
    if len(text) > ERROR_TRACEBACK_MAX_CHARACTERS:
        half = ERROR_TRACEBACK_MAX_CHARACTERS // 2
        text = f"{text[:half]}\n  [...]\n{text[-half:]}"
    return text
