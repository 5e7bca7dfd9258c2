"""Notifications of one shard: a connection that only listens.

A notification is a hint that saves waiting, never the only word: whoever listens polls as well, slowly. Behind a
transaction-pooling proxy nothing can be heard, and ``works`` says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql

from sharded_wf.limits import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, CONNECT_TIMEOUT_SECONDS
from sharded_wf.postgres.connect import open_async


class Listener:
    """Listens on channels of one shard for ever, reconnecting with back-off; calls ``heard(channel, payload)``, and
    ``heard("", "")`` after each (re)connection, because something may have been missed."""

    def __init__(self, dsn: str, channels: Sequence[str], heard: Callable[[str, str], None]) -> None:
        self._dsn = dsn
        self._channels = channels
        self._heard = heard
        self._task: asyncio.Task[None] | None = None
        self.works = False
        """Whether notifications arrive at present."""
        self.ready = asyncio.Event()
        """Set once the first attempt to listen has ended, either way."""

    def start(self) -> None:
        """Begin to listen, in a task of its own. Starting twice is fine."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen_for_ever(), name="listener")

    async def stop(self) -> None:
        """Stop listening. Stopping twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen_for_ever(self) -> None:
        pause = BACKOFF_FIRST_SECONDS
        while True:
            try:
                pooled = await self._listen()
                if pooled:
                    return
            except (psycopg.Error, OSError, TimeoutError):
                pass
            if self.works:
                pause = BACKOFF_FIRST_SECONDS
            self.works = False
            self.ready.set()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, BACKOFF_MAX_SECONDS)

    async def _listen(self) -> bool:
        """Listen until the connection ends; True at once if a proxy makes it pointless."""
        conn, reading = await open_async(self._dsn, "sharded_wf listener")
        try:
            if reading.backend_pid != conn.info.backend_pid:
                self.ready.set()
                return True
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                for channel in self._channels:
                    await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            self.works = True
            self.ready.set()
            self._heard("", "")
            async for notification in conn.notifies():
                self._heard(notification.channel, notification.payload)
            return False
        finally:
            self.works = False
            conn.pgconn.finish()
