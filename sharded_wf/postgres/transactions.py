"""Connections for transactions whose statements somebody else writes: a bounded number of them to one shard.

A connection that was used before is made like new (``discard all``), so that no setting, lock or temporary table of one
body reaches the next. Each has an application name of its own, by which its backend can be found and ended after an
answer that was lost. Blocking connections live on threads of their own, of which there are as many as connections; so a
body that blocks takes no thread from anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from sharded_wf.limits import TRANSACTION_CONNECTIONS_MAX
from sharded_wf.postgres import borrowed
from sharded_wf.postgres.connect import check_again, check_again_async, open_async, open_blocking
from sharded_wf.postgres.refusal import RefusingAsyncCursor, RefusingCursor
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.postgres.statements import guard_of, on_citus
from sharded_wf.postgres.timeline import Primary, Reading, primary_of

T = TypeVar("T")


class OpenTransaction:
    """One connection, and the transaction that it is in. All methods are called on the event loop."""

    def __init__(self, token: str, threads: ThreadPoolExecutor | None) -> None:
        self.token = token
        """The application name of this connection alone."""
        self.pooled = False
        """Whether a transaction-pooling proxy stands between."""
        self.used = False
        self._threads = threads
        self._busy: asyncio.Future[Any] | None = None
        self._unwanted = False
        self._guarded = False
        self._primary: Primary | None = None
        self._block: Any = None
        self.conn: Any = None

    @property
    def is_async(self) -> bool:
        """Whether the connection is a ``psycopg.AsyncConnection``."""
        return self._threads is None

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self.conn is None or bool(self.conn.closed)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        assert self._threads is not None
        self._busy = asyncio.get_running_loop().run_in_executor(self._threads, self._use, function, *args)
        self._busy.add_done_callback(_look_at)  # its waiter may have been cancelled
        return await asyncio.shield(self._busy)

    def _use(self, function: Callable[..., T], *args: Any) -> T:
        """In a thread. Who uses the connection when it is cut also closes it: the loop may be gone by then."""
        try:
            return function(*args)
        finally:
            if self._unwanted and self.conn is not None:
                self.conn.close()

    def _open(self, dsn: str) -> Reading:
        self.conn, reading = open_blocking(dsn, self.token, prepare_threshold=None)
        return reading

    async def connect(self, dsn: str) -> None:
        """Open the connection. Raises ``psycopg.Error``."""
        try:
            if self.is_async:
                self.conn, reading = await open_async(dsn, self.token, prepare_threshold=None)
            else:
                reading = await self._in_thread(self._open, dsn)
        except (OSError, TimeoutError) as error:
            raise psycopg.OperationalError(str(error) or "connecting took too long") from None
        self.pooled = reading.backend_pid != self.conn.info.backend_pid
        self._guarded = reading.guarded
        self._primary = primary_of(dsn) if self.pooled and reading.timeline is not None else None

    async def begin(self, isolation: str, opening: Statement) -> None:
        """Begin a transaction with its first statement. Raises ``psycopg.Error``."""
        conn = self.conn
        if self.is_async:
            if self.used and not self.pooled:
                await psycopg.AsyncCursor(conn).execute("discard all")
            self._make_like_new(RefusingAsyncCursor)
            await conn.set_isolation_level(_LEVELS[isolation])
            self._block = conn.transaction()
            await self._block.__aenter__()
            if self._primary is not None:
                await check_again_async(conn, self._primary)
            await borrowed.run_async(conn, opening)
        else:
            self._make_like_new(RefusingCursor)
            await self._in_thread(self._begin_blocking, isolation, opening)

    def _make_like_new(self, cursor_factory: Any) -> None:
        self.conn.row_factory = tuple_row
        self.conn.cursor_factory = cursor_factory
        self.conn.prepare_threshold = None

    def _begin_blocking(self, isolation: str, opening: Statement) -> None:
        if self.used and not self.pooled:
            psycopg.Cursor(self.conn).execute("discard all")
        self.conn.isolation_level = _LEVELS[isolation]
        self._block = self.conn.transaction()
        self._block.__enter__()
        if self._primary is not None:
            check_again(self.conn, self._primary)
        borrowed.run(self.conn, opening)

    async def call(self, function: Callable[[Any], Any], run_in_context: Callable[..., Any]) -> Any:
        """Call the body with the connection and return what it returns."""
        if self.is_async:
            return await function(self.conn)
        return await self._in_thread(run_in_context, function, self.conn)

    async def write(self, statement: Statement) -> Result:
        """Run the last statement of the transaction. Raises ``psycopg.Error``."""
        if not self._guarded:
            return await self._run(statement)
        answers = {words.query.name: await self._run(words) for words in (*on_citus(statement), *guard_of([statement]))}
        return answers[statement.query.name]

    async def _run(self, statement: Statement) -> Result:
        if self.is_async:
            return await borrowed.run_async(self.conn, statement)
        return await self._in_thread(borrowed.run, self.conn, statement)

    async def commit(self) -> None:
        """Commit. Raises ``psycopg.Error``; if the connection is ``lost`` then, it may have been committed."""
        block, self._block = self._block, None
        if self.is_async:
            await block.__aexit__(None, None, None)
        else:
            await self._in_thread(block.__exit__, None, None, None)
        self.used = True

    async def roll_back(self) -> None:
        """Roll back what was begun. If that fails the connection is closed, which does the same."""
        block, self._block = self._block, None
        self.used = True
        if block is None or self.lost:
            return
        stop = psycopg.Rollback()
        with contextlib.suppress(psycopg.Error):
            if self.is_async:
                await block.__aexit__(type(stop), stop, None)
            else:
                await self._in_thread(block.__exit__, type(stop), stop, None)
        if not self.lost and self.conn.info.transaction_status != pq.TransactionStatus.IDLE:
            self.cut()

    def cut(self) -> None:
        """End the connection, whoever uses it at this moment; a thread that waits for the server comes free."""
        self._unwanted = True
        if self.conn is None or self.conn.closed:
            return
        if self._busy is None or self._busy.done():
            self.conn.pgconn.finish()
            return
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.conn.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)

    def when_free(self, then: Callable[[], None]) -> None:
        """Call ``then`` as soon as no thread uses the connection."""
        if self._busy is None or self._busy.done():
            then()
        else:
            self._busy.add_done_callback(lambda _: then())


class TransactionPool:
    """The connections of one executor to one shard for transactions, both kinds together bounded."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._places = asyncio.Semaphore(TRANSACTION_CONNECTIONS_MAX)
        self._threads: ThreadPoolExecutor | None = None
        self._idle: dict[bool, list[OpenTransaction]] = {True: [], False: []}
        self._taken: set[OpenTransaction] = set()

    async def take(self, is_async: bool) -> OpenTransaction:
        """A connection, when one is free. Raises ``psycopg.Error`` if a new one can't be opened."""
        await self._places.acquire()
        idle = self._idle[is_async]
        while idle:
            found = idle.pop()
            if not found.lost:
                self._taken.add(found)
                return found
        if not is_async and self._threads is None:
            self._threads = ThreadPoolExecutor(TRANSACTION_CONNECTIONS_MAX, "sharded_wf transaction")
        token = f"sharded_wf transaction {uuid.uuid4().hex[:16]}"
        new = OpenTransaction(token, None if is_async else self._threads)
        self._taken.add(new)
        try:
            await new.connect(self._dsn)
        except BaseException:
            self.give_back(new, usable=False)
            raise
        # Of the other kind there may be idle ones: together they stay within the bound.
        others = self._idle[not is_async]
        if others and len(self._taken) + sum(map(len, self._idle.values())) > TRANSACTION_CONNECTIONS_MAX:
            others.pop().cut()
        return new

    def give_back(self, done: OpenTransaction, *, usable: bool) -> None:
        """It is no longer used; unless ``usable``, it is closed."""
        if not usable:
            done.cut()
        done.when_free(lambda: self._free(done, usable))

    def _free(self, done: OpenTransaction, usable: bool) -> None:
        self._taken.discard(done)
        if usable and not done.lost:
            self._idle[done.is_async].append(done)
        else:
            done.cut()
        self._places.release()

    def close(self) -> None:
        """End every connection. Closing twice is fine."""
        for kind in self._idle.values():
            while kind:
                kind.pop().cut()
        for one in list(self._taken):
            one.cut()
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None


def _look_at(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


_LEVELS = {
    "read committed": psycopg.IsolationLevel.READ_COMMITTED,
    "repeatable read": psycopg.IsolationLevel.REPEATABLE_READ,
    "serializable": psycopg.IsolationLevel.SERIALIZABLE,
}
