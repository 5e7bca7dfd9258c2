"""Waiting, beyond what asyncio has: until a moment, until a condition is true; and telling that a long step lives."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Coroutine
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

import mmh3

from sharded_wf.clock import SECOND_US, UNIX_EPOCH, Microseconds, microseconds_of, seconds_of
from sharded_wf.errors import DefinitionError, NaiveMoment, OutsideWorkflow
from sharded_wf.limits import TIMER_MAX_SECONDS
from sharded_wf.serialization.values import codec_for
from sharded_wf.workflow.commands import NULL, TimerCommand
from sharded_wf.workflow.context import scope
from sharded_wf.workflow.definitions import AsyncStep, StepDefinition, SyncStep
from sharded_wf.workflow.guarded import GuardedAttempt, SensorCommand
from sharded_wf.workflow.replay import ISSUED
from sharded_wf.workflow.run import WorkflowRun
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.thread_answers import ThreadAnswer, wake
from sharded_wf.workflow.whose_code import async_run, blocking_run

R = TypeVar("R")
_UNTIL_SEED = 3
_SENSOR_SEED = 4


class MomentCommand(TimerCommand):
    """A moment of the calendar, which stays where it is while a workflow that ended waits to be resumed."""

    __slots__ = ()

    def resumed(self, ended_us: Microseconds, resumed_us: Microseconds, *, anew: bool) -> None:
        """It stays where it is."""


class SleepUntil:
    """``await sleep_until(moment)``; in a ``def`` workflow, ``sleep_until.blocking(moment)``."""

    __slots__ = ()

    def __call__(self, moment: datetime) -> Coroutine[Any, Any, None]:
        """Sleep until a moment, durably; not at all, if it has passed by the workflow's own time.

        ``moment`` has a time zone, else :class:`NaiveMoment` is raised. Raises :class:`OutsideWorkflow` anywhere but in
        an async workflow's code.
        """
        return self._sleep(moment)

    async def _sleep(self, moment: datetime) -> None:
        run = async_run("sleep_until")
        if run.stopped:
            raise RunDropped
        delay_us, base = _until(run, moment)
        if delay_us <= 0:
            return
        future: Future[None] = Future(loop=run.loop)
        command = MomentCommand(run, run.loop.now_us, delay_us, wake, (future,), None)
        run.issue(command, base)
        try:
            await future
        except asyncio.CancelledError:
            command.abandon()
            raise

    def blocking(self, moment: datetime) -> None:
        """The same for ``def`` workflows."""
        run = blocking_run("sleep_until")
        delay_us, base = _until(run, moment)
        if delay_us > 0:
            run.sleep(delay_us, base, MomentCommand)


def _until(run: WorkflowRun, moment: datetime) -> tuple[int, int]:
    """How long until then, in microseconds, and what the request is known by: the moment itself, so that it does not
    matter when the code came to ask."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise NaiveMoment(f"sleep_until({moment.isoformat()}) names no moment without a time zone; give it a tzinfo")
    moment_us: Microseconds = (moment - UNIX_EPOCH) // timedelta(microseconds=1)
    delay_us = min(moment_us - run.code_time_us(), TIMER_MAX_SECONDS * SECOND_US)
    return delay_us, int(mmh3.hash64(str(moment_us), _UNTIL_SEED)[0])


class WaitUntil:
    """``await wait_until(step, *args, every=...)``; in a ``def`` workflow, ``wait_until.blocking(...)``."""

    __slots__ = ()

    @overload
    def __call__(
        self,
        step: AsyncStep[..., R],
        /,
        *args: Any,
        every: timedelta | float,
        timeout: timedelta | float | None = None,
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def __call__(
        self,
        step: SyncStep[..., R],
        /,
        *args: Any,
        every: timedelta | float,
        timeout: timedelta | float | None = None,
    ) -> Coroutine[Any, Any, R]: ...

    def __call__(
        self,
        step: Any,
        /,
        *args: Any,
        every: timedelta | float,
        timeout: timedelta | float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call ``step(*args)`` again and again, every so many seconds (or ``timedelta``), until its result is true;
        returns that result.

        Between two looks the workflow can be parked, and looks that found nothing leave no history: all of it is one
        row. A look that raises is tried again as the step's ``retry`` says. ``timeout``: for all of it; then it raises
        ``TimeoutError``. Raises :class:`OutsideWorkflow` anywhere but in an async workflow's code.
        """
        return self._wait(step, args, every, timeout)

    async def _wait(
        self, step: Any, args: tuple[Any, ...], every: timedelta | float, limit: timedelta | float | None
    ) -> Any:
        run = async_run("wait_until")
        if run.stopped:
            raise RunDropped
        every_us, base = _sensor(step, args, every)
        future: Future[Any] = Future(loop=run.loop)
        command = SensorCommand(run, step, args, future, every_us, None if limit is None else seconds_of(limit))
        run.issue(command, base)
        if command.phase == ISSUED:
            command.prepare(copy_context())
        try:
            return await future
        except asyncio.CancelledError:
            command.abandon()
            raise

    @overload
    def blocking(
        self,
        step: AsyncStep[..., R],
        /,
        *args: Any,
        every: timedelta | float,
        timeout: timedelta | float | None = None,
    ) -> R: ...
    @overload
    def blocking(
        self,
        step: SyncStep[..., R],
        /,
        *args: Any,
        every: timedelta | float,
        timeout: timedelta | float | None = None,
    ) -> R: ...

    def blocking(
        self,
        step: Any,
        /,
        *args: Any,
        every: timedelta | float,
        timeout: timedelta | float | None = None,
    ) -> Any:
        """The same for ``def`` workflows."""
        run = blocking_run("wait_until")
        every_us, base = _sensor(step, args, every)
        answer = ThreadAnswer()
        command = SensorCommand(run, step, args, answer, every_us, None if timeout is None else seconds_of(timeout))
        return run.ask(command, base)


def _sensor(step: Any, args: tuple[Any, ...], every: timedelta | float) -> tuple[int, int]:
    if not isinstance(step, StepDefinition):
        raise DefinitionError(f"wait_until({step!r}, ...): the condition is a step, so that each look can be recorded")
    if not seconds_of(every) > 0:
        raise DefinitionError(f"wait_until(every={every!r}): more than 0 seconds")
    text = step.arguments.fingerprint_text(args, {})
    return microseconds_of(every), mmh3.hash64(text, step.seed ^ _SENSOR_SEED)[0]


def heartbeat(details: object = None) -> None:
    """In a step with ``heartbeat=...``: it lives, and this is how far it is.

    ``details``, a value with a JSON form, is what the next attempt finds as ``current().last_heartbeat``, also after
    a crash; it is saved at most once a second. Call it as often as you like, also from a ``def`` step.

    In a ``def`` step whose attempt nobody waits for any more (it was silent for too long, or cancelled) it raises
    ``asyncio.CancelledError``, which ends the thread's work. Raises :class:`DefinitionError` if the step was declared
    without ``heartbeat=``, :class:`OutsideWorkflow` anywhere but in a step. In a step that runs outside any workflow it
    does nothing.
    """
    attempt: Any = scope.get(None)
    if type(attempt) is not GuardedAttempt:
        _refuse_heartbeat(attempt)
        return
    encoded = NULL if details is None else _encode(details)
    if attempt.step.is_async:
        attempt.beat(encoded)
    elif attempt.is_current:
        attempt.post(attempt.beat, encoded)
    else:
        raise asyncio.CancelledError(f"nobody waits for this attempt of step {attempt.name!r} any more")


def _refuse_heartbeat(found: Any) -> None:
    context = None if found is None else found.context()
    step = None if context is None else context.step
    if context is None or step is None:
        raise OutsideWorkflow("heartbeat() works only in a step")
    if context.workflow_id:
        raise DefinitionError(
            f"step {step!r} reports heartbeats: declare it as @app.step(heartbeat=seconds), the longest that it may be"
            " silent (math.inf: for ever)"
        )


def _encode(details: object) -> bytes:
    kind: Any = Any if isinstance(details, (dict, list, tuple, set, frozenset)) else type(details)
    return codec_for(kind).encode(details)


sleep_until = SleepUntil()
wait_until = WaitUntil()
