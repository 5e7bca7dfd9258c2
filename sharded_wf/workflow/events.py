"""``set_event`` and ``wait_event``: what a workflow shows to others, its latest value under a key.

Setting is an entry of the history, and a row that others read. Waiting asks the host to look; if the event is not set
the workflow is told by a message when it is, and looks again. So the message carries nothing, and whatever a look finds
is the latest.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

import mmh3

from sharded_wf.clock import Microseconds, microseconds_of, seconds_of
from sharded_wf.limits import EVENT_KEY_LENGTH_MAX_BYTES
from sharded_wf.model.checks import check_text
from sharded_wf.model.history import Entry, EntryKind
from sharded_wf.model.workflow import EVENT_TOPIC, Event, Message
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.serialization.values import ValueCodec, codec_for
from sharded_wf.workflow.commands import NULL, Answer, deliver_recorded
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, RECORDING
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.thread_answers import ThreadAnswer
from sharded_wf.workflow.whose_code import async_run, blocking_run

if TYPE_CHECKING:
    from sharded_wf.workflow.run import WorkflowRun

T = TypeVar("T")
_SET_SEED = 5
_WAIT_SEED = 6


class SetEventCommand:
    """An event to set. Once it has its number it is set even if the code gave it up."""

    __slots__ = ("fingerprint", "future", "name", "payload", "phase", "place", "run")
    kind = EntryKind.EVENT
    place: int
    fingerprint: int
    phase: int

    def __init__(self, run: WorkflowRun, key: str, payload: bytes, future: Answer) -> None:
        self.run = run
        self.name = key
        self.payload = payload
        self.future: Any = future

    def describe(self) -> str:
        return f"setting event {self.name!r}"

    def begin(self) -> None:
        self.phase = RECORDING
        run = self.run
        now_us = run.host.clock.now_us()
        run.host.set_event(run, Event(self.name, self.payload, now_us))
        # Goes to this workflow's own outbox, where the relay finds it after the commit, and tells those who wait.
        notice = Message(run.id, EVENT_TOPIC, self.name, 1, NULL, now_us)
        run.record(self, self.payload, None, now_us, now_us, None, notice)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        if not self.future.done():
            self.future.set_result(None)

    def abandon(self) -> None:
        if self.phase == ISSUED:
            self.run.forget(self)


class WaitEventCommand:
    """An event of another workflow to wait for."""

    __slots__ = ("codec", "fingerprint", "future", "message", "name", "phase", "place", "run", "started_at", "target")
    kind = EntryKind.EVENT_WAIT
    place: int
    fingerprint: int
    phase: int
    started_at: Microseconds

    def __init__(self, run: WorkflowRun, target: str, key: str, codec: ValueCodec[Any], future: Answer) -> None:
        self.run = run
        self.target = target
        self.name = key
        self.codec = codec
        self.future: Any = future
        self.message: Message | None = None

    def describe(self) -> str:
        return f"event {self.name!r} of workflow {self.target!r}"

    def begin(self) -> None:
        self.phase = LIVE
        self.started_at = self.run.host.clock.now_us()
        self.run.some_events().waiting.setdefault((self.target, self.name), []).append(self)
        self.run.look_for_event(self.target, self.name)

    def take(self, value: bytes | None, error: BaseException | None) -> None:
        """This is its value, or why there is none."""
        self.phase = RECORDING
        now_us = self.run.host.clock.now_us()
        text = None if error is None else encode_error(error)
        self.run.record(self, None if text is not None else value, text, self.started_at, now_us, self.message)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        deliver_recorded(self.future, self.codec, entry)

    def abandon(self) -> None:
        """The other workflow's row of who waits stays until the event is set, or can't come any more."""
        if self.phase == ISSUED or self.phase == LIVE:
            self.run.forget(self)


def check_key(key: str) -> str:
    """The key of an event. Raises :class:`LimitExceeded`."""
    check_text(key, "event's key", EVENT_KEY_LENGTH_MAX_BYTES)
    return key


class SetEvent:
    """``await set_event(key, value)``; in a ``def`` workflow, ``set_event.blocking(key, value)``."""

    __slots__ = ()

    def __call__(self, key: str, value: object) -> Coroutine[Any, Any, None]:
        """Show ``value`` to others under ``key``, in place of what was there; when this returns, it is durable.

        Others read it with ``wait_event`` or ``handle.event``, also after this workflow has ended. Raises
        :class:`UnstorableValue` if the value has no JSON form, :class:`OutsideWorkflow` anywhere but in an async
        workflow's code.
        """
        return self._set(key, value)

    async def _set(self, key: str, value: object) -> None:
        run = async_run("set_event")
        if run.stopped:
            raise RunDropped
        payload, base = _to_set(key, value)
        future: Future[None] = Future(loop=run.loop)
        command = SetEventCommand(run, key, payload, future)
        run.issue(command, base)
        try:
            await future
        except asyncio.CancelledError:
            command.abandon()
            raise

    def blocking(self, key: str, value: object) -> None:
        """The same for ``def`` workflows."""
        run = blocking_run("set_event")
        payload, base = _to_set(key, value)
        run.ask(SetEventCommand(run, key, payload, ThreadAnswer()), base)


def _to_set(key: str, value: object) -> tuple[bytes, int]:
    kind: Any = Any if isinstance(value, (dict, list, tuple, set, frozenset)) else type(value)
    payload = codec_for(kind).encode(value)
    return payload, int(mmh3.hash64(f"{check_key(key)}\0".encode() + payload, _SET_SEED)[0])


class WaitEvent:
    """``await wait_event(workflow_id, key, Type)``; in a ``def`` workflow, ``wait_event.blocking(...)``."""

    __slots__ = ()

    @overload
    def __call__(
        self, workflow_id: str, key: str, kind: type[T], *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def __call__(
        self, workflow_id: str, key: str, kind: Any = ..., *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, Any]: ...

    def __call__(
        self, workflow_id: str, key: str, kind: Any = Any, *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, Any]:
        """The latest value that another workflow has set under ``key``, as a value of type ``kind``; waits until there
        is one, ``timeout`` at most (seconds or ``timedelta``; ``None``: as long as it takes).

        Raises ``TimeoutError``; :class:`EventNeverSet` if that workflow ended without it; :class:`WorkflowNotFound`;
        :class:`StoredValueMismatch` if the value is no ``kind``; :class:`OutsideWorkflow` anywhere but in an async
        workflow's code.
        """
        return self._wait_in_time(workflow_id, key, kind, timeout)

    async def _wait_in_time(self, target: str, key: str, kind: Any, limit: timedelta | float | None) -> Any:
        if limit is None:
            return await self._wait(target, key, kind)
        timeout = asyncio.timeout(seconds_of(limit))
        try:
            async with timeout:
                return await self._wait(target, key, kind)
        except TimeoutError:
            if timeout.expired():
                raise TimeoutError(_late(target, key)) from None
            raise

    async def _wait(self, target: str, key: str, kind: Any) -> Any:
        run = async_run("wait_event")
        if run.stopped:
            raise RunDropped
        future: Future[Any] = Future(loop=run.loop)
        command = WaitEventCommand(run, target, check_key(key), codec_for(kind), future)
        run.issue(command, _wait_base(target, key))
        try:
            return await future
        except asyncio.CancelledError:
            command.abandon()
            raise

    @overload
    def blocking(self, workflow_id: str, key: str, kind: type[T], *, timeout: timedelta | float | None = None) -> T: ...
    @overload
    def blocking(
        self, workflow_id: str, key: str, kind: Any = ..., *, timeout: timedelta | float | None = None
    ) -> Any: ...

    def blocking(self, workflow_id: str, key: str, kind: Any = Any, *, timeout: timedelta | float | None = None) -> Any:
        """The same for ``def`` workflows."""
        run = blocking_run("wait_event")
        command = WaitEventCommand(run, workflow_id, check_key(key), codec_for(kind), ThreadAnswer())
        timeout_us = None if timeout is None else microseconds_of(timeout)
        return run.ask(command, _wait_base(workflow_id, key), timeout_us, _late(workflow_id, key))


def _wait_base(target: str, key: str) -> int:
    return int(mmh3.hash64(f"{target}\0{key}", _WAIT_SEED)[0])


def _late(target: str, key: str) -> str:
    return f"workflow {target!r} did not set event {key!r} in time"


set_event = SetEvent()
wait_event = WaitEvent()
