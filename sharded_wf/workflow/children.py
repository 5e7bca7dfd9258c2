"""``start_child``: children that a workflow starts and goes on beside, to await them later, or never."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

import mmh3

from sharded_wf.clock import SECOND_US, Microseconds, microseconds_of, seconds_of
from sharded_wf.errors import LimitExceeded, OutsideWorkflow
from sharded_wf.limits import ID_LENGTH_MAX_BYTES, TIMER_MAX_SECONDS
from sharded_wf.model.checks import check_id, check_priority, check_queue
from sharded_wf.model.workflow import Start
from sharded_wf.serialization.values import ValueCodec
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.bound import Bound, check_bound
from sharded_wf.workflow.child_commands import OutcomeCommand, StartCommand
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.thread_answers import ThreadAnswer
from sharded_wf.workflow.thread_run import ThreadRun, thread_run_here

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
ParentClose = Literal["abandon", "cancel"]
"""What becomes of a child that still runs when its parent ends: it goes on, or it is cancelled."""

_START_SEED = 3
_OUTCOME_SEED = 4


class ChildHandle(Generic[T_co]):
    """A child of an async workflow, made by ``start_child``. Only that workflow's own code can use it."""

    __slots__ = ("_codec", "_command", "_run", "_start", "id")

    def __init__(self, run: AsyncRun, id_: str, start: Start, codec: ValueCodec[T_co]) -> None:
        self._run = run
        self._start = start
        self._codec = codec
        self._command: OutcomeCommand | None = None
        self.id = id_
        """The child's ID."""

    async def result(self) -> T_co:
        """Wait for the child's result; as often as you like.

        Raises what the child raised, as ``Handle.result`` does. Given up (by a timeout, say) it changes nothing for the
        child, and the result can be awaited again.
        """
        command = self._command
        if command is None:
            _check_attached(self._start)
            command = self._command = OutcomeCommand(self._run, self._start, self._codec, self._run.new_future())
            self._run.issue(command, _outcome_base(self.id))
        result: T_co = await asyncio.shield(command.future)
        return result

    async def cancel(self) -> None:
        """Tell the child to end; returns when that is sure to arrive. One that has ended is left alone."""
        future = self._run.new_future()
        self._run.cancel_child(self._start.id, _outcome_base(self.id), future)
        await future

    def __repr__(self) -> str:
        return f"ChildHandle({self.id!r})"


class BlockingChildHandle(Generic[T_co]):
    """A child of a ``def`` workflow, made by ``start_child.blocking``. As ``ChildHandle``; every method waits."""

    __slots__ = ("_answer", "_codec", "_run", "_start", "id")

    def __init__(self, run: ThreadRun, id_: str, start: Start, codec: ValueCodec[T_co]) -> None:
        self._run = run
        self._start = start
        self._codec = codec
        self._answer: ThreadAnswer | None = None
        self.id = id_
        """The child's ID."""

    def result(self, timeout: timedelta | float | None = None) -> T_co:
        """As ``ChildHandle.result``. ``timeout``: seconds or ``timedelta``; then ``TimeoutError`` is raised, and the
        child goes on."""
        if self._answer is None:
            _check_attached(self._start)
            self._answer = ThreadAnswer()
            command = OutcomeCommand(self._run, self._start, self._codec, self._answer)
            self._run.issue(command, _outcome_base(self.id))
        limit_us = None if timeout is None else max(1, microseconds_of(timeout))
        try:
            result: T_co = self._run.await_answer(self._answer, limit_us)
        except TimeoutError:
            if self._answer.done():
                raise  # the child's own
            raise TimeoutError(f"child workflow {self.id!r} had no result in time; it goes on") from None
        return result

    def cancel(self) -> None:
        """As ``ChildHandle.cancel``."""
        answer = ThreadAnswer()
        self._run.cancel_child(self._start.id, _outcome_base(self.id), answer)
        self._run.await_answer(answer, None)

    def __repr__(self) -> str:
        return f"BlockingChildHandle({self.id!r})"


class StartChild:
    """``handle = await start_child(fn.bind(...))``; in a ``def`` workflow, ``start_child.blocking(...)``."""

    __slots__ = ()

    def __call__(
        self,
        bound: Bound[T],
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
        parent_close: ParentClose = "abandon",
        detached: bool = False,
    ) -> Coroutine[Any, Any, ChildHandle[T]]:
        """Start a child workflow and go on beside it. It exists when this returns.

        ``bound``: what to run, made by ``function.bind(...)``. ``id``: yours, or made of this workflow's own ID, the
        function's name and a number: the same on every replay. ``queue``, ``priority``, ``delay``,
        ``timeout``: as for ``client.start``; a child that can't outlive this workflow has no more time than this one.
        ``parent_close``: what becomes of it if it still runs when this workflow ends, however that
        ends: "abandon" lets it go on, "cancel" cancels it. ``detached``: it is nobody's child: its result can't be
        awaited here, and retention does not keep it for this workflow; an existing workflow with the same ``id``, name
        and arguments will do.

        Raises ``IdConflict`` if the ID is taken, ``LimitExceeded``, ``ValueError`` for options that contradict each
        other; ``OutsideWorkflow`` anywhere but in an async workflow's code.
        """
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            form = "start_child.blocking(...)" if thread_run_here() is not None else "client.start(...)"
            raise OutsideWorkflow(f"start_child(...) works only in an async workflow's own code; here, call {form}")
        run: AsyncRun = loop.run
        _check(id, queue, priority, timeout, parent_close, detached)
        return _start(run, bound, id, queue, priority, delay, timeout, parent_close, detached)

    def blocking(
        self,
        bound: Bound[T],
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
        parent_close: ParentClose = "abandon",
        detached: bool = False,
    ) -> BlockingChildHandle[T]:
        """The same for ``def`` workflows."""
        run = thread_run_here()
        if run is None:
            raise OutsideWorkflow(
                "start_child.blocking() works only in a def workflow; in an async one, await start_child(...)"
            )
        _check(id, queue, priority, timeout, parent_close, detached)
        start, base = child_start(run, bound, id, queue, priority, delay, timeout, detached)
        child_id = run.ask(StartCommand(run, start, parent_close == "cancel", ThreadAnswer()), base)
        return BlockingChildHandle(run, child_id, start, bound.result)


async def _start(
    run: AsyncRun,
    bound: Bound[T],
    id_: str | None,
    queue: str | None,
    priority: int,
    delay: timedelta | float | None,
    timeout: timedelta | float | None,  # noqa: ASYNC109 - of the child
    parent_close: ParentClose,
    detached: bool,
) -> ChildHandle[T]:
    future = run.new_future()
    start, base = child_start(run, bound, id_, queue, priority, delay, timeout, detached)
    command = StartCommand(run, start, parent_close == "cancel", future)
    run.issue(command, base)
    try:
        child_id = await future
    except asyncio.CancelledError:
        command.abandon()
        raise
    return ChildHandle(run, child_id, start, bound.result)


def child_start(
    run: AsyncRun | ThreadRun,
    bound: Bound[Any],
    id_: str | None,
    queue: str | None,
    priority: int,
    delay: timedelta | float | None,
    timeout: timedelta | float | None,
    detached: bool,
) -> tuple[Start, int]:
    """The child as it is to be started, and what its request's fingerprint is made of."""
    check_bound(bound)
    child_id = next_child_id(run, bound.name) if id_ is None else id_
    not_before: Microseconds | None = None
    if delay is not None and (wait_us := microseconds_of(delay)) > 0:
        not_before = run.host.clock.now_us() + wait_us
    start = Start(
        child_id, bound.name, bound.capability, bound.queue if queue is None else queue, priority, bound.input,
        not_before, None if detached else run.id,
        deadline=child_deadline(run, bound.timeout_seconds if timeout is None else seconds_of(timeout), not_before),
    )  # fmt: skip
    asked = f"{bound.name}\0{id_ or ''}\0".encode() + bound.input
    return start, mmh3.hash64(asked, _START_SEED)[0]


def next_child_id(run: AsyncRun | ThreadRun, name: str) -> str:
    """The ID of the next child of this name: it extends the parent's. Raises :class:`LimitExceeded`."""
    short_name = name.partition("/")[2]
    counts = run.some_waits().child_counts
    counts[short_name] = number = counts.get(short_name, 0) + 1
    child_id = f"{run.id}/{short_name}-{number}"
    if len(child_id.encode()) > ID_LENGTH_MAX_BYTES:
        raise LimitExceeded(f"the child's ID {child_id!r} is longer than {ID_LENGTH_MAX_BYTES} bytes")
    return child_id


def child_deadline(
    run: AsyncRun | ThreadRun, timeout_seconds: float | None, not_before: Microseconds | None = None
) -> Microseconds | None:
    """When the time of a child is over that is started now, for its own part."""
    if timeout_seconds is None:
        return None
    return (not_before or run.code_time_us()) + round(min(timeout_seconds, TIMER_MAX_SECONDS) * SECOND_US)


def _check(
    id_: str | None,
    queue: str | None,
    priority: int,
    timeout: timedelta | float | None,
    parent_close: str,
    detached: bool,
) -> None:
    if parent_close not in ("abandon", "cancel"):
        raise ValueError(f'parent_close={parent_close!r}: write "abandon" or "cancel"')
    if detached and parent_close == "cancel":
        raise ValueError('a detached child can\'t have parent_close="cancel": leave one of the two out')
    if id_ is not None:
        check_id(id_)
    if queue is not None:
        check_queue(queue)
    check_priority(priority)
    if timeout is not None and not seconds_of(timeout) > 0:
        raise LimitExceeded(f"timeout={timeout!r}: more than 0 seconds, or None")


def _check_attached(start: Start) -> None:
    if start.parent_id is None:
        raise ValueError(f"workflow {start.id!r} was started detached: it tells its result to clients only")


def _outcome_base(child_id: str) -> int:
    return int(mmh3.hash64(child_id, _OUTCOME_SEED)[0])


start_child = StartChild()
