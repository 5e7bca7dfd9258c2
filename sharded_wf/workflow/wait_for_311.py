"""Python 3.11's ``asyncio.wait_for``, made to take the same turns as that of later versions.

Before 3.12 ``wait_for`` wraps what it waits for into a task and waits on a future of its own; since 3.12 it simply
awaits. A history recorded on one must replay on the other, and shared state (three branches that pull from one queue)
shows the difference. So on 3.11 whatever ``wait_for`` schedules runs right after the current callback, ahead of all
others: the first step of its task, the callback when that task is done, and the wake-up of the waiting code. The order
of what user code does is then the same as if it had awaited.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import Future, Task
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from types import FrameType
from typing import TYPE_CHECKING, Any

from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.tasks import WorkflowTask

if TYPE_CHECKING:
    from sharded_wf.workflow.loop import Call, WorkflowLoop

_WAIT_FOR = asyncio.wait_for.__code__
_CANCEL_AND_WAIT = getattr(getattr(asyncio.tasks, "_cancel_and_wait", None), "__code__", None)


class _PromptFuture(Future[Any]):
    """A future whose callbacks run ahead of what else is ready."""


class _PromptTask(WorkflowTask):
    """A task whose first step and callbacks run ahead of what else is ready."""


def install(loop_class: type[WorkflowLoop], call_class: type[Call]) -> None:
    """Give ``loop_class`` the methods that see ``wait_for`` coming."""

    def call_soon(self: WorkflowLoop, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        call = call_class(callback, args, copy_context() if context is None else context)
        if args and ((kind := type(args[0])) is _PromptFuture or kind is _PromptTask):
            self.next.append(call)
        else:
            self.ready.append(call)
        return call

    def create_future(self: WorkflowLoop) -> Future[Any]:
        if self.stopped:
            raise RunDropped
        caller = sys._getframe(1)
        if caller.f_code is _CANCEL_AND_WAIT:
            if _is_wait_for(caller.f_back):
                return _PromptFuture(loop=self)
        elif caller.f_code is _WAIT_FOR:
            return _PromptFuture(loop=self)
        return Future(loop=self)

    def create_task(
        self: WorkflowLoop,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: Context | None = None,
        **_options: Any,
    ) -> Task[Any]:
        if self.stopped:
            coro.close()
            raise RunDropped
        prompt = _called_by_wait_for()
        task = self.make_task(_PromptTask if prompt else WorkflowTask, coro, name, context)
        if prompt:
            self.next.append(self.ready.pop())
        return self.keep(task)

    loop_class.call_soon = call_soon  # type: ignore[method-assign]
    loop_class.create_future = create_future  # type: ignore[method-assign]
    loop_class.create_task = create_task  # type: ignore[method-assign]


def _called_by_wait_for() -> bool:
    """Whether the caller's caller came here by way of ``wait_for`` → ``ensure_future``."""
    frame = sys._getframe(2).f_back
    return frame is not None and _is_wait_for(frame.f_back)


def _is_wait_for(frame: FrameType | None) -> bool:
    """Whether this is ``wait_for`` with time left; without, later versions make a task too."""
    return frame is not None and frame.f_code is _WAIT_FOR and frame.f_locals["timeout"] > 0
