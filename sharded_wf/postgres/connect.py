"""Opening connections: with deadlines, to the host that is the primary, and to no old one.

Whatever connects to a shard does so here. (``connection`` is for what is done now and then: making, checking and
migrating shards, status. Work on workflows goes through the pipelined sessions of ``session``.) A server can stop
answering without closing anything: a frozen process, a dropped route. Its own timeouts don't fire then, and neither do
TCP's while its kernel still acknowledges. So a connection has a deadline of ours, after which its socket is shut.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import threading
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.limits import (
    CONNECT_TIMEOUT_SECONDS,
    HOST_CONNECT_TIMEOUT_SECONDS,
    LOOK_SECONDS,
    STATEMENT_DEADLINE_SECONDS,
)
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.timeline import OldPrimaryFound, Primary, Reading, Timeline, primary_of, shut

Connection = psycopg.Connection[tuple[object, ...]]
"""A connection in autocommit mode whose statements take ``$1``, ``$2`` …"""
AsyncConnection = psycopg.AsyncConnection[tuple[object, ...]]

Host = tuple[str, str, str]
"""One host of a DSN: its name, its address and its port, each as the DSN has it (empty: not given)."""

DEFAULTS: dict[str, str | int] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Connection parameters that make a dead server noticed within seconds; what a DSN itself says wins."""

# psycopg tells of each host in a line of its own, after the last one's failure.
_EACH_HOST = re.compile(r"^- host: '?(.*?)'?, port: '?(.*?)'?, hostaddr: .*?: (?:.* failed: )?(.*)$", re.MULTILINE)

_SQL = load("sessions")
_CANT_SAY = (
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
"""Some services are no plain Postgres here: their primary is what their DSN leads to, and their business."""


def hosts_of(dsn: str) -> list[Host]:
    """The hosts of a DSN, in its order; one without a name where it names none."""
    given = conninfo_to_dict(dsn)
    names, addresses = (str(given.get(key) or "").split(",") for key in ("host", "hostaddr"))
    count = max(len(names), len(addresses))
    ports = str(given.get("port") or "").split(",")
    ports = ports * count if len(ports) == 1 else ports
    names, addresses = (part if len(part) == count else [""] * count for part in (names, addresses))
    return list(zip(names, addresses, ports, strict=False))


def conninfo_of(dsn: str, application_name: str, hosts: Sequence[Host] = ()) -> str:
    """The DSN with our defaults for what it leaves open, under this application name; if given, with these of its
    hosts, in this order. Text is UTF-8, whatever the DSN and ``PGCLIENTENCODING`` say: we pack it ourselves."""
    given = conninfo_to_dict(dsn)
    several = len(hosts_of(dsn)) > 1
    defaults = {"connect_timeout": _patience(several=several), **DEFAULTS}
    wanted = {key: value for key, value in defaults.items() if key not in given}
    for key, values in zip(("host", "hostaddr", "port"), zip(*hosts, strict=True), strict=False):
        if any(values) or key in given:  # a URI of several hosts has as many ports, be they empty
            wanted[key] = ",".join(values)
    return make_conninfo(dsn, application_name=application_name, client_encoding="UTF8", **wanted)


def connect_seconds(dsn: str) -> float:
    """How long connecting may take in all: the patience with each host, and a margin."""
    given = conninfo_to_dict(dsn).get("connect_timeout")
    count = len(hosts_of(dsn))
    return float(given or _patience(several=count > 1)) * count + CONNECT_TIMEOUT_SECONDS


def look_seconds(dsn: str) -> float:
    """How long whoever has other shards to ask waits for a connection to this one: ``LOOK_SECONDS``, and more for each
    further host, as one that is down must not hide the one that was promoted."""
    return LOOK_SECONDS + (len(hosts_of(dsn)) - 1) * HOST_CONNECT_TIMEOUT_SECONDS


def _patience(*, several: bool) -> int:
    return int(HOST_CONNECT_TIMEOUT_SECONDS if several else CONNECT_TIMEOUT_SECONDS)


class _Search:
    """The search for the primary among the hosts of a DSN: who answered last is asked first, and who turns out not to
    be the primary is left out."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self.primary = primary_of(dsn)
        self._dsn = dsn
        self._name = application_name
        self._hosts = sorted(hosts_of(dsn), key=lambda host: host != self.primary.host)
        self._refusal: OldPrimaryFound | None = None

    def conninfo(self) -> str:
        return conninfo_of(self._dsn, self._name, self._hosts if len(self._hosts) > 1 or self._refusal else ())

    def failed(self, error: psycopg.OperationalError) -> psycopg.OperationalError:
        """What to raise when none of the hosts that are left can be reached: a line that says so of each."""
        _let_go(error)
        each = "; ".join(_said(*of_host) for of_host in _EACH_HOST.findall(str(error)))
        if self._refusal is not None:
            return OldPrimaryFound(f"{self._refusal}. And the other hosts: {each or error}")
        return psycopg.OperationalError(each) if each else error

    def found(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        self.primary.host = self._asked(conn)

    def refused(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], error: OldPrimaryFound) -> None:
        """Go on without this host; raises if it was the last."""
        host = self._asked(conn)
        self._refusal = self._refusal or OldPrimaryFound(f"{conn.info.host}:{conn.info.port}: {error}")
        conn.pgconn.finish()
        self._hosts = [one for one in self._hosts if one != host]
        if host is None or not self._hosts:
            raise self._refusal

    def _asked(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> Host | None:
        name, port = conn.info.host, str(conn.info.port)
        for host in self._hosts:
            if name in host[:2] and (host[2] or port) == port:
                return host
        return None


def _said(host: str, port: str, reason: str) -> str:
    """A line about one host. A port that the DSN leaves open is not named; libpq's words for a standby say what is."""
    what = "it is a standby, or read-only" if reason == "session is read-only" else reason
    return f"{host}:{port}: {what}" if port else f"{host}: {what}"


def _let_go(error: BaseException) -> None:
    """The frames that the error passed know the connection that was being made, and the error knows them: a cycle. Till
    the garbage collector came by, a frozen server would gather connections that nobody uses."""
    traceback.clear_frames(error.__traceback__)


async def open_async(dsn: str, application_name: str, **options: Any) -> tuple[AsyncConnection, Reading]:
    """A connection in autocommit mode to the primary, and what that says of itself. ``options``: of
    ``psycopg.AsyncConnection.connect``.

    Raises ``OldPrimaryFound`` if only other servers answer, ``psycopg.Error``, ``OSError``, ``TimeoutError``.
    """
    search = _Search(dsn, application_name)
    async with asyncio.timeout(connect_seconds(dsn)):
        while True:
            try:
                conn: AsyncConnection = await psycopg.AsyncConnection.connect(
                    search.conninfo(), autocommit=True, **options
                )
            except psycopg.OperationalError as error:
                raise search.failed(error) from None
            except asyncio.CancelledError as error:
                _let_go(error)
                raise
            try:
                reading = await _read_async(conn, search.primary)
                search.primary.admit(reading, conn, asyncio.get_running_loop())
            except OldPrimaryFound as error:
                search.refused(conn, error)
                continue
            except BaseException:  # cancelled, perhaps: nobody else knows of this connection
                conn.pgconn.finish()
                raise
            search.found(conn)
            return conn, reading


def open_blocking(
    dsn: str, application_name: str, *, accept_any: bool = False, **options: Any
) -> tuple[psycopg.Connection[Any], Reading]:
    """As ``open_async``, with the options of ``psycopg.connect``. ``accept_any``: also a server that would be refused
    (for whoever tells us that it is right)."""
    search = _Search(dsn, application_name)
    while True:
        try:
            conn = psycopg.connect(search.conninfo(), autocommit=True, **options)
        except psycopg.OperationalError as error:
            raise search.failed(error) from None
        try:
            with Deadline(conn, CONNECT_TIMEOUT_SECONDS):
                reading = _read_blocking(conn, search.primary)
            if not accept_any:
                search.primary.admit(reading, conn, None)
        except OldPrimaryFound as error:
            search.refused(conn, error)
            continue
        except BaseException:
            conn.close()
            raise
        search.found(conn)
        return conn, reading


async def check_again_async(conn: psycopg.AsyncConnection[Any], primary: Primary) -> None:
    """Within a transaction behind a pooler, which may lead to another server than before. Raises
    ``OldPrimaryFound``."""
    cursor = await psycopg.AsyncCursor(conn).execute(_SQL["read_server"].on(), prepare=False)
    _check(primary, _reading_of(await cursor.fetchone()))


def check_again(conn: psycopg.Connection[Any], primary: Primary) -> None:
    """As ``check_again_async``."""
    _check(primary, _reading_of(psycopg.Cursor(conn).execute(_SQL["read_server"].on(), prepare=False).fetchone()))


def read_server(conn: psycopg.Connection[Any]) -> Reading:
    """What the server says of itself."""
    try:
        return _reading_of(conn.execute(_SQL["read_server"].on(), prepare=False).fetchone())
    except _CANT_SAY:
        return _reading_of(conn.execute(_SQL["read_backend"].on(), prepare=False).fetchone())


def _check(primary: Primary, reading: Reading) -> None:
    if reason := primary.refusal(reading):
        raise OldPrimaryFound(reason)


async def _read_async(conn: AsyncConnection, primary: Primary) -> Reading:
    try:
        row = await (await conn.execute(_SQL["read_server"].on(), prepare=False)).fetchone()
    except _CANT_SAY:
        row = await (await conn.execute(_SQL["read_backend"].on(), prepare=False)).fetchone()
    reading = _reading_of(row)
    if _may_be_accepted(primary, reading):
        with contextlib.suppress(psycopg.ProgrammingError):  # it has no such table
            own = await conn.execute(_SQL["read_own_timeline"].on(), prepare=False)
            _learn_accepted(primary, await own.fetchone())
    return reading


def _read_blocking(conn: psycopg.Connection[Any], primary: Primary) -> Reading:
    reading = read_server(conn)
    if _may_be_accepted(primary, reading):
        with contextlib.suppress(psycopg.ProgrammingError):
            _learn_accepted(primary, conn.execute(_SQL["read_own_timeline"].on(), prepare=False).fetchone())
    return reading


def _reading_of(row: Any) -> Reading:
    pid, standby, system, number, guarded = row
    return Reading(pid, standby, None if number is None else Timeline(int(system), int(number, 16)), guarded)


def _may_be_accepted(primary: Primary, reading: Reading) -> bool:
    return not reading.standby and primary.refusal(reading) is not None


def _learn_accepted(primary: Primary, row: Any) -> None:
    """A server that was accepted by a person says so itself, with a higher term."""
    if row is not None and primary.known is not None and row[2] > primary.known.term:
        primary.learn(Timeline(*row))


@contextmanager
def connection(
    dsn: str,
    *,
    purpose: str,
    deadline_seconds: float | None = STATEMENT_DEADLINE_SECONDS,
    accept_any: bool = False,
) -> Generator[Connection]:
    """A connection, closed at the end. ``purpose`` shows in ``pg_stat_activity``.

    ``deadline_seconds`` bounds all that is done on it (``None``: unbounded, for migrations); when it passes, what is
    under way raises ``psycopg.OperationalError``, as does a server that can't be reached; one that must not be used
    raises its subclass ``OldPrimaryFound``, unless ``accept_any``.
    """
    opened, _ = open_blocking(
        dsn,
        f"sharded_wf {purpose}",
        accept_any=accept_any,
        prepare_threshold=None,  # a transaction-pooling proxy may stand in between
        cursor_factory=psycopg.RawCursor[tuple[object, ...]],
    )
    conn = cast(Connection, opened)
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    try:
        with Deadline(conn, deadline_seconds):
            yield conn
    finally:
        primary_of(dsn).forget(conn)
        conn.close()


class Deadline:
    """Shuts a connection's socket if the block is not left in time: from another thread, and never after it. What is
    under way on it then raises ``psycopg.OperationalError``. ``seconds``: from the block's begin, or from when it was
    put off the last time; ``None``: no bound."""

    def __init__(self, conn: psycopg.Connection[Any], seconds: float | None) -> None:
        self._conn = conn
        self._seconds = seconds
        self._due = math.inf
        self._over = False
        self._changed = threading.Condition()
        self.passed = False
        """Whether the connection was shut for it."""

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._due = time.monotonic() + self._seconds
            threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:  # from here on the descriptor may be somebody else's
            self._over = True
            self._changed.notify()

    def put_off(self) -> None:
        """Begin to count anew."""
        if self._seconds is not None:
            self._due = time.monotonic() + self._seconds

    def end(self) -> None:
        """It passes now."""
        with self._changed:
            self._due = -math.inf
            self._changed.notify()

    def _wait(self) -> None:
        with self._changed:
            while not self._over:
                left = self._due - time.monotonic()
                if left <= 0:
                    self.passed = True
                    shut(self._conn)
                    return
                self._changed.wait(left)
