"""Running the attempts of ``async def`` steps on the process's event loop.

A task of its own for every attempt would cost more than most steps do. So attempts wait in a queue, and one task makes
them one after the other for as long as they end without waiting. The first one that waits keeps the task as its own to
its end (``asyncio.current_task()`` is always the same in one attempt), and another task goes on with the queue.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections import deque
from collections.abc import Awaitable, Generator
from contextvars import Context as VariableContext
from types import CoroutineType, coroutine
from typing import Any, Protocol

from sharded_wf.limits import ATTEMPTS_PER_TURN_MAX
from sharded_wf.workflow.context import Context, set_scope
from sharded_wf.workflow.replay import LIVE

STRAY_CANCEL_SECONDS = 1.0
"""How long a step that was cancelled from elsewhere is given before that counts as its failure."""


class Attempted(Protocol):
    """An attempt, as whoever makes it sees it: the command of a step that is tried once at a time, or an object of its
    own."""

    running: Any

    @property
    def phase(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def run(self) -> Any: ...
    @property
    def step(self) -> Any: ...
    def context(self) -> Context: ...
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]: ...
    def timeout_text(self) -> str: ...
    def succeed(self, result: Any) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def report(self, attempt: int, succeeded: bool, result: Any) -> None: ...


class _Queued:
    """Stands for the task of an attempt that has none yet."""

    __slots__ = ()

    def cancel(self) -> bool:
        """It does not begin: whoever cancels it also says that it is not live any more."""
        return True


_QUEUED = _Queued()
_ENDED = object()
"""What comes out of ``_drive`` when an attempt has ended."""


class Attempts:
    """The attempts of one process, on ``loop``."""

    __slots__ = ("_loop", "_queue", "_server")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[tuple[Attempted, VariableContext | None]] = deque()
        self._server: Task[None] | None = None
        """The task that makes the attempts in the queue."""

    def make(self, command: Attempted, variables: VariableContext | None) -> None:
        """Make an attempt of ``command`` soon, with these context variables (or none), in which it is the scope.
        ``command.running`` is what to cancel."""
        command.running = _QUEUED
        self._queue.append((command, variables))
        if self._server is None:
            self._serve()

    def _serve(self) -> None:
        self._server = Task(self._main(), loop=self._loop, name="steps", context=VariableContext())

    async def _main(self) -> None:
        await self._work()

    @coroutine
    def _work(self) -> Generator[Any, Any, None]:
        queue = self._queue
        task = asyncio.current_task(self._loop)
        assert task is not None
        driver: Any = _drive(task)
        drive = driver.send
        drive(None)
        spare = VariableContext()
        try:
            for _ in range(min(len(queue), ATTEMPTS_PER_TURN_MAX)):
                command, variables = queue.popleft()
                if command.phase != LIVE or command.running is not _QUEUED:
                    continue
                if variables is None:
                    if len(spare) > 1:  # the attempt before has left something
                        spare = VariableContext()
                    variables = spare
                waited = variables.run(drive, command)
                if waited is not _ENDED:
                    self._hand_on()
                    command.running = task
                    task.set_name(command.name)
                    yield from _follow(variables, driver, waited)
                    return
                if task.cancelling():
                    return  # somebody has cancelled this task; the next attempt shall not meet that
        finally:
            if self._server is task:
                self._hand_on()

    def _hand_on(self) -> None:
        """Another task goes on with the queue."""
        self._server = None
        if self._queue:
            self._serve()


@coroutine
def _drive(task: Task[None]) -> Generator[Any, Any, None]:
    """Makes one attempt after the other: each is sent in, in its own context, and then whatever it waits for comes
    out; ``_ENDED`` when it has ended.

    (A coroutine of its own for each attempt would end with a ``StopIteration``, which costs as much as many a step.)
    """
    while True:
        command: Any = yield _ENDED  # an `Attempted`
        set_scope(command)
        step = command.step
        try:
            args, kwargs = command.arguments()
            body = step.function(*args, **kwargs) if kwargs else step.function(*args)
            if step.timeout_seconds is not None:
                body = _with_timeout(command, body, step.timeout_seconds)
            elif type(body) is not CoroutineType:
                body = _await(body)
            result = yield from body  # pyright: ignore[reportGeneralTypeIssues] - a coroutine, in a coroutine
        except BaseException as error:  # noqa: BLE001 - whatever it raised is its result
            _raised(task, command, error)
        else:
            if command.phase == LIVE and not command.run.stopped:
                command.succeed(result)


async def _await(body: Awaitable[Any]) -> Any:
    return await body


async def _with_timeout(command: Attempted, body: Awaitable[Any], seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await body
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(command.timeout_text()) from None
        raise


def _follow(variables: VariableContext, driver: Any, waited: Any) -> Generator[Any, Any, None]:
    """The rest of an attempt that waits for ``waited``: what ``yield from`` would do, in the attempt's own context."""
    run = variables.run
    while waited is not _ENDED:
        try:
            sent = yield waited
        except GeneratorExit:
            run(driver.close)
            raise
        except BaseException as error:  # noqa: BLE001 - thrown into the attempt, as into a task of its own
            waited = run(driver.throw, error)
        else:
            waited = run(driver.send, sent)


def _raised(task: Task[None], command: Attempted, error: BaseException) -> None:
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        raise error
    if isinstance(error, asyncio.CancelledError):
        if task.cancelling() == 0:
            command.report(command.attempt, False, error)
            return
        # Cancelled by neither the workflow nor the step: probably the whole process is going down, which is no result.
        command.run.host.loop.call_later(STRAY_CANCEL_SECONDS, command.report, command.attempt, False, error)
        raise error
    if command.phase == LIVE and not command.run.stopped:
        command.fail(error)
