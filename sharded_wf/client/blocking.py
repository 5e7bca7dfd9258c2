"""The client for programs without asyncio: the same methods, which wait.

One thread runs an event loop with an ordinary ``Client``; every call here is handed to it. Any thread may call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, TypeVar, overload

import psycopg

from sharded_wf.client.client import Client, OnConflict
from sharded_wf.client.handle import Handle
from sharded_wf.client.in_transaction import drive
from sharded_wf.client.progress import MapProgress
from sharded_wf.client.repair import Failed, Repaired
from sharded_wf.client.validation import check_conflict_option
from sharded_wf.clock import Microseconds
from sharded_wf.config import ClusterConfig
from sharded_wf.model.attributes import Value, Where
from sharded_wf.model.history import History
from sharded_wf.model.status import Status
from sharded_wf.serialization.histories import StoredHistory
from sharded_wf.store.workflows import Description
from sharded_wf.workflow.bound import Bound

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Call = Callable[[Coroutine[Any, Any, Any]], Any]


class BlockingHandle(Generic[T_co]):
    """As ``Handle``; every method waits."""

    __slots__ = ("_call", "_handle")

    def __init__(self, handle: Handle[T_co], call: Call) -> None:
        self._handle = handle
        self._call = call

    @property
    def id(self) -> str:
        """The workflow's ID."""
        return self._handle.id

    @property
    def created(self) -> bool | None:
        """As ``Handle.created``."""
        return self._handle.created

    def result(self, timeout: timedelta | float | None = None) -> T_co:
        """As ``Handle.result``."""
        found: T_co = self._call(self._handle.result(timeout))
        return found

    @overload
    def event(self, key: str, kind: type[T], *, timeout: timedelta | float | None = None) -> T: ...
    @overload
    def event(self, key: str, kind: Any = ..., *, timeout: timedelta | float | None = None) -> Any: ...

    def event(self, key: str, kind: Any = Any, *, timeout: timedelta | float | None = None) -> Any:
        """As ``Handle.event``."""
        return self._call(self._handle.event(key, kind, timeout=timeout))

    def status(self) -> Status:
        """As ``Handle.status``."""
        found: Status = self._call(self._handle.status())
        return found

    def describe(self) -> Description:
        """As ``Handle.describe``."""
        found: Description = self._call(self._handle.describe())
        return found

    def cancel(self, *, cleanup: timedelta | float | None = None) -> None:
        """As ``Handle.cancel``."""
        self._call(self._handle.cancel(cleanup=cleanup))

    def terminate(self) -> None:
        """As ``Handle.terminate``."""
        self._call(self._handle.terminate())

    def pause(self) -> None:
        """As ``Handle.pause``."""
        self._call(self._handle.pause())

    def unpause(self) -> None:
        """As ``Handle.unpause``."""
        self._call(self._handle.unpause())

    def __repr__(self) -> str:
        return f"BlockingHandle({self.id!r})"


class BlockingClient:
    """As ``Client``; every method waits. Made by ``BlockingClient.connect`` or ``app.connect_blocking``."""

    def __init__(self, client: Client, call: Call) -> None:
        self._client = client
        self._call = call

    @classmethod
    @contextmanager
    def connect(cls, config: ClusterConfig) -> Generator[BlockingClient]:
        """Connect to a cluster for as long as the ``with`` block runs."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="sharded_wf client", daemon=True)
        thread.start()

        def call(work: Coroutine[Any, Any, T]) -> T:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        connecting = Client.connect(config)
        try:
            client = call(connecting.__aenter__())
            try:
                yield cls(client, call)
            finally:
                call(connecting.__aexit__(None, None, None))
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def start(
        self,
        bound: Bound[T],
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
        attributes: Mapping[str, Value] | None = None,
        on_conflict: OnConflict = "error",
        message: tuple[str, object] | None = None,
        idempotency_key: str | None = None,
        wait_seconds: float | None = None,
    ) -> BlockingHandle[T]:
        """As ``Client.start``."""
        starting = self._client.start(
            bound,
            id=id,
            queue=queue,
            priority=priority,
            delay=delay,
            timeout=timeout,
            attributes=attributes,
            on_conflict=on_conflict,
            message=message,
            idempotency_key=idempotency_key,
            wait_seconds=wait_seconds,
        )
        return BlockingHandle(self._call(starting), self._call)

    def start_in(
        self,
        connection: psycopg.Connection[Any],
        bound: Bound[T],
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
        attributes: Mapping[str, Value] | None = None,
        on_conflict: OnConflict = "error",
    ) -> BlockingHandle[T]:
        """As ``Client.start_in``."""
        client = self._client
        check_conflict_option(on_conflict)
        start = client.prepare_start(bound, id, queue, priority, delay, attributes, timeout)
        found = drive(connection, client.in_transaction.start(start, same=on_conflict == "error"), "start_in")
        return BlockingHandle(client.handle_of(bound, start, found, on_conflict), self._call)

    def send_in(
        self,
        connection: psycopg.Connection[Any],
        id: str,
        topic: str,
        value: object,
        *,
        idempotency_key: str | None = None,
    ) -> None:
        """As ``Client.send_in``."""
        message = self._client.message_of(id, topic, value, idempotency_key)
        drive(connection, self._client.in_transaction.send(message), "send_in")

    def start_many(
        self,
        bound: Iterable[Bound[T] | tuple[str, Bound[T]]],
        *,
        queue: str | None = None,
        priority: int = 0,
        attributes: Mapping[str, Value] | None = None,
        on_conflict: OnConflict = "error",
        wait_seconds: float | None = None,
    ) -> list[BlockingHandle[T]]:
        """As ``Client.start_many``."""
        starting = self._client.start_many(
            bound,
            queue=queue,
            priority=priority,
            attributes=attributes,
            on_conflict=on_conflict,
            wait_seconds=wait_seconds,
        )
        return [BlockingHandle(handle, self._call) for handle in self._call(starting)]

    @overload
    def get_handle(self, id: str) -> BlockingHandle[Any]: ...
    @overload
    def get_handle(self, id: str, result_type: type[T]) -> BlockingHandle[T]: ...

    def get_handle(self, id: str, result_type: Any = Any) -> BlockingHandle[Any]:
        """As ``Client.get_handle``."""
        return BlockingHandle(self._client.get_handle(id, result_type), self._call)

    def send(self, id: str, topic: str, value: object, *, idempotency_key: str | None = None) -> None:
        """As ``Client.send``."""
        self._call(self._client.send(id, topic, value, idempotency_key=idempotency_key))

    def cancel(self, id: str, *, cleanup: timedelta | float | None = None) -> None:
        """As ``Client.cancel``."""
        self._call(self._client.cancel(id, cleanup=cleanup))

    def terminate(self, id: str) -> None:
        """As ``Client.terminate``."""
        self._call(self._client.terminate(id))

    def pause(self, id: str) -> None:
        """As ``Client.pause``."""
        self._call(self._client.pause(id))

    def unpause(self, id: str) -> None:
        """As ``Client.unpause``."""
        self._call(self._client.unpause(id))

    def resume(self, id: str) -> bool:
        """As ``Client.resume``."""
        resumed: bool = self._call(self._client.resume(id))
        return resumed

    def resume_many(
        self, wanted: Failed, *, dry_run: bool = False, progress: Callable[[Repaired], None] | None = None
    ) -> Repaired:
        """As ``Client.resume_many``; ``progress`` is called in the client's thread."""
        total: Repaired = self._call(self._client.resume_many(wanted, dry_run=dry_run, progress=progress))
        return total

    def fork(self, id: str, *, from_step: int | str, new_id: str | None = None) -> BlockingHandle[Any]:
        """As ``Client.fork``."""
        return BlockingHandle(self._call(self._client.fork(id, from_step=from_step, new_id=new_id)), self._call)

    def fork_many(
        self,
        wanted: Failed,
        *,
        from_step: int | str,
        suffix: str = "-fork",
        dry_run: bool = False,
        progress: Callable[[Repaired], None] | None = None,
    ) -> Repaired:
        """As ``Client.fork_many``; ``progress`` is called in the client's thread."""
        forking = self._client.fork_many(wanted, from_step=from_step, suffix=suffix, dry_run=dry_run, progress=progress)
        total: Repaired = self._call(forking)
        return total

    def locate(self, id: str) -> tuple[int, str]:
        """As ``Client.locate``."""
        return self._client.locate(id)

    def describe(self, id: str) -> Description | None:
        """As ``Client.describe``."""
        found: Description | None = self._call(self._client.describe(id))
        return found

    def history(self, id: str) -> History:
        """As ``Client.history``."""
        found: History = self._call(self._client.history(id))
        return found

    def map_progress(self, id: str) -> MapProgress:
        """As ``Client.map_progress``."""
        found: MapProgress = self._call(self._client.map_progress(id))
        return found

    def export(self, id: str) -> StoredHistory:
        """As ``Client.export``."""
        found: StoredHistory = self._call(self._client.export(id))
        return found

    def attributes(self, id: str) -> dict[str, Value]:
        """As ``Client.attributes``."""
        found: dict[str, Value] = self._call(self._client.attributes(id))
        return found

    def list(
        self,
        *,
        where: Where | None = None,
        name: str | None = None,
        status: Status | None = None,
        queue: str | None = None,
        limit: int = 100,
        before: Microseconds | Description | None = None,
        away: dict[str, str] | None = None,
    ) -> list[Description]:
        """As ``Client.list``."""
        found: list[Description] = self._call(
            self._client.list(where=where, name=name, status=status, queue=queue, limit=limit, before=before, away=away)
        )
        return found
