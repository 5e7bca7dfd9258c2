"""The errors for what a workflow can't await, because it could not be given back on replay."""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from types import FrameType, TracebackType

from sharded_wf.errors import NotDurableError

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARIES = tuple(
    path + os.sep
    for path in {
        os.path.dirname(asyncio.__file__),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
    }
)


def _is_users(filename: str) -> bool:
    return not filename.startswith((_OURS, *_LIBRARIES, "<frozen"))


def _line(frame: FrameType, number: int) -> str:
    return f"{frame.f_code.co_filename}:{number} in {frame.f_code.co_qualname}"


def users_line() -> str:
    """The line of user code that is being run, as ``file:line in function``."""
    frame: FrameType | None = sys._getframe(1)
    outermost: FrameType | None = None
    while frame is not None:
        filename = frame.f_code.co_filename
        if _is_users(filename):
            return _line(frame, frame.f_lineno)
        if outermost is None and not filename.startswith(_OURS):
            outermost = frame
        frame = frame.f_back
    return "workflow code" if outermost is None else _line(outermost, outermost.f_lineno)


def users_line_of(traceback: TracebackType | None) -> str:
    """The innermost line of user code in a traceback, as ``file:line in function``."""
    found = "workflow code"
    while traceback is not None:
        if _is_users(traceback.tb_frame.f_code.co_filename):
            found = _line(traceback.tb_frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def not_durable(what: str, instead: str) -> NotDurableError:
    """The error for ``what``, at the line of user code that is being run."""
    return NotDurableError(f"{users_line()}: {what} can't be recorded, so a workflow can't use it; {instead}")


def explained(error: BaseException) -> BaseException:
    """``error``, or the :class:`NotDurableError` that it stands for.

    A task that awaits a future of another loop gets a ``RuntimeError`` from asyncio itself, which says neither where
    nor what to do.
    """
    if type(error) is RuntimeError and "attached to a different loop" in str(error):
        return NotDurableError(
            f"{users_line_of(error.__traceback__)}: awaited a future of another event loop, which can't be recorded;"
            " do it in a step"
        )
    return error
