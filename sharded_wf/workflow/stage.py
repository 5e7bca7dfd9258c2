"""Where the code of async workflows runs.

While a workflow's callbacks run, its own loop must be the one that asyncio calls running; for the rest of the process
it is the process's loop. Going to and fro costs more than a step should, so a host opens the stage once for all that a
flush or a claim brings: the workflows then take their turns one after the other, and what they ask for begins when the
stage has closed.
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, _set_running_loop
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharded_wf.workflow.async_run import AsyncRun
    from sharded_wf.workflow.loop import WorkflowLoop


class Stage:
    """The stage of one host, whose own event loop is ``loop``; open inside ``with stage:``, in plain callbacks only."""

    __slots__ = ("_hooks", "_loop", "is_open", "waiting")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._hooks: Any = None
        self.is_open = False
        self.waiting: list[AsyncRun] = []
        """Runs that had their turn and may have asked for something."""

    def enter(self, loop: WorkflowLoop) -> None:
        """It is this workflow's turn."""
        _set_running_loop(loop)
        sys.set_asyncgen_hooks(None, loop.finalize_generator)

    def __enter__(self) -> None:
        self.is_open = True
        self._hooks = sys.get_asyncgen_hooks()

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        sys.set_asyncgen_hooks(*self._hooks)
        _set_running_loop(self._loop)
        self.is_open = False
        waiting, self.waiting = self.waiting, []
        for run in waiting:
            run.go_on()
