"""A session that is opened when it is first needed, and opened anew, with back-off, whenever it was lost.

A link is also the breaker of its shard: while the back-off runs, callers learn at once that the shard is away, instead
of each waiting for a connection of its own. A caller that must not give up asks again after ``retry_in``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

from sharded_wf.clock import SYSTEM_CLOCK, Clock
from sharded_wf.limits import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, STATEMENT_DEADLINE_SECONDS
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import ConnectionLost, Result, Session, Statement

_END_BACKEND = load("sessions")["end_backend"]


class Link:
    """One connection to one shard, for ever. Transactions of concurrent callers run one after another.

    ``recovers``: after a failure it connects again by itself, as soon as it can, so that ``healthy`` comes true again
    though nobody asks for anything.
    """

    def __init__(self, dsn: str, purpose: str, clock: Clock = SYSTEM_CLOCK, *, recovers: bool = False) -> None:
        self._dsn = dsn
        self._purpose = purpose
        self._clock = clock
        self._session: Session | None = None
        self._lock = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0
        self._failure = ConnectionLost("not connected yet")
        self._closed = False
        self._recovers = recovers
        self._recovery: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to reach the shard succeeded (or none was made yet)."""
        return self._failures == 0

    @property
    def failure(self) -> ConnectionLost | None:
        """Why the shard can't be reached at present."""
        return self._failure if self._failures else None

    @property
    def retry_in(self) -> float:
        """Seconds until the next attempt to connect will be made; 0 if it may be made now."""
        return max(0.0, self._not_before - self._clock.monotonic())

    @property
    def token(self) -> str | None:
        """The token of the session that was used last, by which its backend can be found and ended."""
        return self._session.token if self._session else None

    @property
    def pooled(self) -> bool:
        """Whether a transaction-pooling proxy stands in between (known once connected)."""
        return self._session is not None and self._session.pooled

    async def _open(self) -> Session:
        if self._closed:
            raise ConnectionLost("closed")
        session = self._session
        if session is not None and not session.closed:
            return session
        if self.retry_in > 0:
            raise ConnectionLost(str(self._failure), old_primary=self._failure.old_primary)
        try:
            self._session = session = await Session.connect(self._dsn, purpose=self._purpose)
        except ConnectionLost as error:
            self._note_failure(error)
            raise
        self._failures = 0
        return session

    async def connect(self, *, within: float) -> None:
        """Be connected, within so many seconds (waiting for other callers aside). Raises ``ConnectionLost``."""
        async with self._lock:
            try:
                async with asyncio.timeout(within):
                    await self._open()
            except TimeoutError:
                self._note_failure(ConnectionLost(f"no connection within {within:g} s"))
                raise ConnectionLost(str(self._failure)) from None

    def note_away(self, reason: str) -> None:
        """Somebody else has just found out that the shard can't be reached: for a moment nobody need try here."""
        if self._session is None and self.healthy:
            self._note_failure(ConnectionLost(reason))
            self._not_before = self._clock.monotonic() + BACKOFF_MAX_SECONDS

    def _note_failure(self, failure: ConnectionLost) -> None:
        # Anew: the error that was raised holds on to frames, and these to a connection that is half made.
        self._failure = ConnectionLost(str(failure), old_primary=failure.old_primary)
        pause = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 20)
        # Jitter: executors that lost a shard together must not come back together.
        self._not_before = self._clock.monotonic() + pause * random.uniform(0.5, 1.0)
        if self._recovers and not self._closed and self._recovery is None:
            self._recovery = asyncio.get_running_loop().create_task(self._recover(), name=f"recovery {self._purpose}")

    async def _recover(self) -> None:
        try:
            while not self.healthy and not self._closed:
                await self.pause()
                async with self._lock:
                    with contextlib.suppress(ConnectionLost):
                        await self._open()
        finally:
            self._recovery = None

    async def transact(
        self, statements: Sequence[Statement], *, deadline: float = STATEMENT_DEADLINE_SECONDS
    ) -> list[Result]:
        """As ``Session.transact``. ``ConnectionLost`` if the shard can't be reached now."""
        async with self._lock:
            session = await self._open()
            try:
                return await session.transact(statements, deadline=deadline)
            except ConnectionLost as error:
                self._note_failure(error)
                raise

    async def fetch(self, statement: Statement, *, deadline: float = STATEMENT_DEADLINE_SECONDS) -> Result:
        """As ``Session.fetch``. ``ConnectionLost`` if the shard can't be reached now."""
        async with self._lock:
            session = await self._open()
            try:
                return await session.fetch(statement, deadline=deadline)
            except ConnectionLost as error:
                self._note_failure(error)
                raise

    async def wait_backend_gone(self, token: str | None, *, deadline: float = STATEMENT_DEADLINE_SECONDS) -> None:
        """End the backend of a session that was lost, by its token, and wait until it is gone: it may still be working
        on what it was sent. ``deadline``: of each look, in seconds."""
        while token is not None and len(  # noqa: ASYNC110 - what is waited for is on the server
            await self.fetch(Statement(_END_BACKEND, "", (token.encode(),)), deadline=deadline)
        ):
            await asyncio.sleep(BACKOFF_FIRST_SECONDS)

    async def pause(self) -> None:
        """Wait until another attempt makes sense."""
        await asyncio.sleep(max(self.retry_in, BACKOFF_FIRST_SECONDS))

    def close_idle(self) -> None:
        """End the connection for now; the next use opens another."""
        if self._session is not None and not self._lock.locked():
            self._session.close()
            self._session = None

    def close(self) -> None:
        """End the connection and open no other. Closing twice is fine."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
        if self._session is not None:
            self._session.close()
