"""Where the code of async workflows runs.

While a workflow's callbacks run, its own loop must be the one that asyncio calls running; for the rest of the process
it is the process's loop. Going to and fro costs more than a step should, so a host opens the stage once for all that a
flush or a claim brings: the workflows then take their turns one after the other, and what they ask for begins when the
stage has closed.
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, _get_running_loop, _set_running_loop
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from sharded_wf.workflow.async_run import AsyncRun
    from sharded_wf.workflow.loop import WorkflowLoop


class Stage:
    """The stage of one host, whose own event loop is ``loop``; open inside ``with stage:``, in plain callbacks only.

    Whose turn it is makes its own loop the running one. It also tells the owner of an async generator that is dropped
    unfinished: the hooks that Python has for that are set once for all turns, because they cost more than a turn's
    beginning.
    """

    __slots__ = ("_hooks", "_loop", "_owners", "is_open", "waiting")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._hooks: Any = None
        self._owners: WeakValueDictionary[int, WorkflowLoop] = WeakValueDictionary()
        """The loops of async generators, by ``id``, which is a generator's own for as long as it lives."""
        self.is_open = False
        self.waiting: list[AsyncRun] = []
        """Runs that had their turn and may have asked for something."""

    def __enter__(self) -> None:
        self.is_open = True
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._generator_begins, self._generator_dropped)

    def _generator_begins(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._owners[id(generator)] = cast("WorkflowLoop", _get_running_loop())

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Called at any time, also when the stage is closed or it is another's turn."""
        loop = self._owners.pop(id(generator), None)
        if loop is not None:
            loop.finalize_generator(generator)

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        sys.set_asyncgen_hooks(*self._hooks)
        _set_running_loop(self._loop)
        self.is_open = False
        waiting, self.waiting = self.waiting, []
        if waiting:
            now_us = waiting[0].host.clock.now_us()
            for run in waiting:
                run.go_on(now_us)
