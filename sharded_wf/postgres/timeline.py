"""Which server is a shard's primary, as far as this process has seen.

When a standby is promoted, Postgres begins a new *timeline*, whose number is higher than any before. So a server that
takes writes on a lower one than was seen is an *old primary*: it came back, nobody fenced it, and what it is told is
lost. Each process remembers, for each DSN, the highest timeline it has seen, and refuses a server on a lower one; among
the hosts of a DSN it goes on to the next. When it sees a higher one, it cuts its connections to the server before.

(Processes that start later learn it from the other shards: see ``cluster.timelines``. A timeline counts within one
database system, which has an identifier of its own; another system is taken for this shard's only after a person said
so, which raises the *term*: see ``sharded-wf shards accept``.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg


class OldPrimaryFound(psycopg.OperationalError):
    """The server that answered must not be used for this shard: it is an old primary, a standby, or another system."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Which history a server writes. ``system``: the identifier of the database system. ``term``: how often a person
    has said that this shard goes on with another system or an earlier timeline; 0: no shard's memory was asked yet."""

    system: int
    number: int
    term: int = 0

    def __str__(self) -> str:
        return f"timeline {self.number} of system {self.system}"


def latest(first: Timeline, second: Timeline) -> Timeline:
    """The later of two: a higher term decides, then the number. Two systems in one term: the first stays."""
    if first.term and second.term and first.term != second.term:
        return max(first, second, key=lambda one: one.term)
    if first.system != second.system:
        return second if not first.term and second.term else first
    return Timeline(first.system, max(first.number, second.number), max(first.term, second.term))


class Reading(NamedTuple):
    """What a server says of itself. ``timeline`` is None where it can't say; ``guarded``: transactions on slots end
    with a question there (``postgres.guard``)."""

    backend_pid: int
    standby: bool
    timeline: Timeline | None
    guarded: bool = False


_Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Primary:
    """The primary behind one DSN, as this process knows it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakKeyDictionary[_Connection, asyncio.AbstractEventLoop | None] = (
            weakref.WeakKeyDictionary()
        )
        self._listeners: list[Callable[[], None]] = []
        self.known: Timeline | None = None
        """The latest timeline that was seen, or heard of."""
        self.host: tuple[str, str, str] | None = None
        """Which of the DSN's hosts answered last, as ``connect`` writes hosts: the one to ask first."""

    def refusal(self, reading: Reading) -> str | None:
        """Why a server that says this of itself must not be used; None: it may."""
        known = self.known
        if reading.standby:
            return "it is a standby, which takes no writes: name the primary, or all hosts, in the DSN"
        if known is None or reading.timeline is None:
            return None
        if reading.timeline.system != known.system:
            return (
                f"it is another database system ({reading.timeline.system}) than this shard was on ({known.system}): "
                "see docs/runbooks/failover.md, and `sharded-wf shards accept`"
            )
        if reading.timeline.number < known.number:
            return (
                f"it is an old primary, on timeline {reading.timeline.number}; timeline {known.number} was seen: "
                "stop it, and make it a standby of the new primary (docs/runbooks/failover.md)"
            )
        return None

    def admit(self, reading: Reading, connection: _Connection, loop: asyncio.AbstractEventLoop | None) -> None:
        """A connection is about to be used; it is cut when a later timeline is seen. ``loop``: the one that it belongs
        to, if it is asynchronous. Raises ``OldPrimaryFound``."""
        with self._lock:
            if reason := self.refusal(reading):
                raise OldPrimaryFound(reason)
            tell = self._learn(reading.timeline)
            self._open[connection] = loop
        tell()

    def learn(self, timeline: Timeline) -> None:
        """Somebody has seen this timeline."""
        with self._lock:
            tell = self._learn(timeline)
        tell()

    def forget(self, connection: _Connection) -> None:
        """The connection is about to be closed."""
        with self._lock:
            self._open.pop(connection, None)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener``, from any thread, whenever another server has become the primary; returns what ends
        that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _learn(self, timeline: Timeline | None) -> Callable[[], None]:
        """Under the lock. Returns whom to tell, without it."""
        before = self.known
        if timeline is None:
            return _nobody
        self.known = after = timeline if before is None else latest(before, timeline)
        if before is None or (before.system, before.number) == (after.system, after.number):
            return _nobody
        for connection, loop in list(self._open.items()):
            if loop is None:
                shut(connection)  # under the lock: whoever closes it forgets it first
            else:
                with contextlib.suppress(RuntimeError):  # its loop is closed, and so will the connection be
                    loop.call_soon_threadsafe(shut, connection)
        self._open.clear()
        return self._tell

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


def _nobody() -> None:
    pass


def shut(connection: _Connection) -> None:
    """Shut the connection's socket: whoever uses it learns at once that it is lost."""
    if not connection.closed:
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)


_primaries: dict[str, Primary] = {}
_primaries_lock = threading.Lock()


def primary_of(dsn: str) -> Primary:
    """What this process knows of the primary behind a DSN. Of the process, not of one client or executor in it: it is a
    fact of the world outside, and whoever learns of it must not keep it to himself."""
    with _primaries_lock:
        return _primaries.setdefault(dsn, Primary())
