"""``send`` and ``receive``: messages between workflows. Recorded like everything else that a workflow asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar, overload

import mmh3

from sharded_wf.clock import microseconds_of, seconds_of
from sharded_wf.errors import OutsideWorkflow
from sharded_wf.model.checks import check_id, check_queue
from sharded_wf.serialization.values import codec_for
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.thread_run import thread_run_here
from sharded_wf.workflow.whose_code import async_run, blocking_run

T = TypeVar("T")

_RECEIVE_SEED = 1
_SEND_SEED = 2


def _receive_base(topic: str) -> int:
    check_queue(topic, "topic")
    return int(mmh3.hash64(topic, _RECEIVE_SEED)[0])


def _send_base(receiver: str, topic: str, payload: bytes) -> int:
    check_id(receiver)
    check_queue(topic, "topic")
    return int(mmh3.hash64(f"{receiver}\0{topic}\0".encode() + payload, _SEND_SEED)[0])


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
        return run.receive(topic, base, codec_for(kind), None if timeout is None else microseconds_of(timeout))


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
    delay_us = microseconds_of(duration)
    if delay_us > 0:
        run.sleep(delay_us)


def _encode(value: object) -> bytes:
    """A message as JSON text. It is checked against its own type; the receiver names the type that it reads."""
    kind: Any = Any if isinstance(value, (dict, list, tuple, set, frozenset)) else type(value)
    return codec_for(kind).encode(value)


receive = Receive()
send = Send()
