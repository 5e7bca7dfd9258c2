"""``send`` and ``receive``: messages between workflows. Recorded like everything else that a workflow asks for."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar, overload

import mmh3

from sharded_wf.clock import SECOND_US, seconds_of
from sharded_wf.errors import LimitExceeded, OutsideWorkflow
from sharded_wf.limits import TIMER_MAX_SECONDS, TOPIC_LENGTH_MAX_BYTES
from sharded_wf.serialization.values import codec_for
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.thread_run import ThreadRun, thread_run_here

T = TypeVar("T")

_RECEIVE_SEED = 1
_SEND_SEED = 2


def _check_topic(topic: str) -> str:
    if not topic or topic.startswith("$") or len(topic.encode()) > TOPIC_LENGTH_MAX_BYTES:
        raise LimitExceeded(
            f"topic {topic!r}: a topic is text of 1 to {TOPIC_LENGTH_MAX_BYTES} bytes that does not begin with '$'"
        )
    return topic


def _receive_base(topic: str) -> int:
    return int(mmh3.hash64(_check_topic(topic), _RECEIVE_SEED)[0])


def _send_base(receiver: str, topic: str, payload: bytes) -> int:
    return int(mmh3.hash64(f"{receiver}\0{_check_topic(topic)}\0".encode() + payload, _SEND_SEED)[0])


def async_run(what: str) -> AsyncRun:
    """The async workflow whose own code this is. Raises :class:`OutsideWorkflow`."""
    loop = _get_running_loop()
    if type(loop) is WorkflowLoop:
        return loop.run
    if thread_run_here() is not None:
        raise OutsideWorkflow(f"{what}(...) in a def workflow: call {what}.blocking(...)")
    raise OutsideWorkflow(f"{what}() works only in a workflow's own code, not in a step or outside")


def blocking_run(what: str) -> ThreadRun:
    """The ``def`` workflow whose own code this is. Raises :class:`OutsideWorkflow`."""
    run = thread_run_here()
    if run is None:
        raise OutsideWorkflow(f"{what}.blocking() works only in a def workflow; in an async one, await {what}(...)")
    return run


class Receive:
    """``await receive(topic, Type, timeout=None)``; in a ``def`` workflow, ``receive.blocking(...)``."""

    __slots__ = ()

    @overload
    def __call__(
        self, topic: str, kind: type[T], *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def __call__(
        self, topic: str, kind: Any = ..., *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, Any]: ...

    def __call__(
        self, topic: str, kind: Any = Any, *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Wait for the next message on ``topic``, sent with ``send`` or by a client, as a value of type ``kind``.

        ``timeout``: seconds or ``timedelta``; ``None`` waits for ever. Each message is received once, in the order in
        which its sender sent them. Raises ``TimeoutError``; :class:`StoredValueMismatch` if the message is no ``kind``;
        :class:`OutsideWorkflow` anywhere but in an async workflow's code.
        """
        return self._receive(async_run("receive"), topic, kind, timeout)

    async def _receive(self, run: AsyncRun, topic: str, kind: Any, limit: timedelta | float | None) -> Any:
        base = _receive_base(topic)
        if limit is None:
            return await self._receive_now(run, topic, base, kind)
        timeout = asyncio.timeout(seconds_of(limit))
        try:
            async with timeout:
                return await self._receive_now(run, topic, base, kind)
        except TimeoutError:
            if timeout.expired():
                raise TimeoutError(f"no message on topic {topic!r} in time") from None
            raise

    @staticmethod
    async def _receive_now(run: AsyncRun, topic: str, base: int, kind: Any) -> Any:
        command = run.issue_receive(topic, base, codec_for(kind))
        try:
            return await command.future
        except asyncio.CancelledError:
            command.abandon()
            raise

    @overload
    def blocking(self, topic: str, kind: type[T], *, timeout: timedelta | float | None = None) -> T: ...
    @overload
    def blocking(self, topic: str, kind: Any = ..., *, timeout: timedelta | float | None = None) -> Any: ...

    def blocking(self, topic: str, kind: Any = Any, *, timeout: timedelta | float | None = None) -> Any:
        """The same for ``def`` workflows."""
        run = blocking_run("receive")
        base = _receive_base(topic)
        return run.receive(topic, base, codec_for(kind), None if timeout is None else _microseconds(timeout))


class Send:
    """``await send(workflow_id, topic, value)``; in a ``def`` workflow, ``send.blocking(...)``."""

    __slots__ = ()

    def __call__(self, receiver: str, topic: str, value: object) -> Coroutine[Any, Any, None]:
        """Send ``value`` to the workflow with the ID ``receiver``; it gets it with ``receive(topic, ...)``.

        Returns when the message is sure to arrive. Raises :class:`UnstorableValue` if the value has no JSON form,
        :class:`OutsideWorkflow` anywhere but in an async workflow's code.
        """
        return self._send(async_run("send"), receiver, topic, value)

    async def _send(self, run: AsyncRun, receiver: str, topic: str, value: object) -> None:
        payload = _encode(value)
        command = run.issue_send(receiver, topic, _send_base(receiver, topic, payload), payload)
        try:
            await command.future
        except asyncio.CancelledError:
            command.abandon()
            raise

    def blocking(self, receiver: str, topic: str, value: object) -> None:
        """The same for ``def`` workflows."""
        run = blocking_run("send")
        payload = _encode(value)
        run.send_message(receiver, topic, _send_base(receiver, topic, payload), payload)


def sleep_blocking(duration: timedelta | float) -> None:
    """Durable sleep for ``def`` workflows, where ``time.sleep`` would be forgotten by a restart. Seconds or
    ``timedelta``.

    Async workflows use ``asyncio.sleep``. Raises :class:`OutsideWorkflow` outside a ``def`` workflow.
    """
    run = thread_run_here()
    if run is None:
        raise OutsideWorkflow(
            "sleep_blocking() works only in a def workflow; in an async one, await asyncio.sleep(...)"
        )
    delay_us = _microseconds(duration)
    if delay_us > 0:
        run.sleep(delay_us)


def _microseconds(duration: timedelta | float) -> int:
    return max(0, round(min(seconds_of(duration), TIMER_MAX_SECONDS) * SECOND_US))


def _encode(value: object) -> bytes:
    """A message as JSON text. It is checked against its own type; the receiver names the type that it reads."""
    kind: Any = Any if isinstance(value, (dict, list, tuple, set, frozenset)) else type(value)
    return codec_for(kind).encode(value)


receive = Receive()
send = Send()
