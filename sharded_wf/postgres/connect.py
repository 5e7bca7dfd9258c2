"""Blocking connections, for what is done now and then: making, checking and migrating shards, status.

(Work on workflows goes through the pipelined sessions of ``session``.) A server can stop answering without closing
anything: a frozen process, a dropped route. Its own timeouts don't fire then, and neither do TCP's while its kernel
still acknowledges. So a connection has a deadline of ours, after which its socket is shut.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.limits import CONNECT_TIMEOUT_SECONDS, STATEMENT_DEADLINE_SECONDS

Connection = psycopg.Connection[tuple[object, ...]]
"""A connection in autocommit mode whose statements take ``$1``, ``$2`` …"""

DEFAULTS: dict[str, str | int] = {
    "connect_timeout": int(CONNECT_TIMEOUT_SECONDS),  # per host of a multi-host DSN
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Connection parameters that make a dead server noticed within seconds; what a DSN itself says wins."""


def conninfo_of(dsn: str, application_name: str) -> str:
    """The DSN with ``DEFAULTS`` for what it leaves open, under this application name. Text is UTF-8, whatever the DSN
    and ``PGCLIENTENCODING`` say: we pack it ourselves."""
    given = conninfo_to_dict(dsn)
    wanted = {key: value for key, value in DEFAULTS.items() if key not in given}
    return make_conninfo(dsn, application_name=application_name, client_encoding="UTF8", **wanted)


@contextmanager
def connection(
    dsn: str, *, purpose: str, deadline_seconds: float | None = STATEMENT_DEADLINE_SECONDS
) -> Generator[Connection]:
    """A connection, closed at the end. ``purpose`` shows in ``pg_stat_activity``.

    ``deadline_seconds`` bounds all that is done on it (``None``: unbounded, for migrations); when it passes, what is
    under way raises ``psycopg.OperationalError``, as does a server that can't be reached.
    """
    conn: Connection = psycopg.connect(
        conninfo_of(dsn, f"sharded_wf {purpose}"),
        autocommit=True,
        prepare_threshold=None,  # a transaction-pooling proxy may stand in between
        cursor_factory=psycopg.RawCursor[tuple[object, ...]],
    )
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    guard = _Deadline(conn)
    timer = threading.Timer(deadline_seconds, guard.cut) if deadline_seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield conn
    finally:
        if timer is not None:
            timer.cancel()
        guard.close()


class _Deadline:
    """Shuts a connection's socket from another thread, unless the connection was closed first: by then the descriptor
    may be somebody else's."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._lock = threading.Lock()
        self._closed = False

    def cut(self) -> None:
        with self._lock:
            if not self._closed and not self._conn.closed:
                with socket.socket(fileno=os.dup(self._conn.fileno())) as twin:
                    twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._conn.close()
