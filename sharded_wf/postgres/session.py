"""One connection to one shard, on which a whole transaction is one round trip.

psycopg opens the connection; from then on we drive libpq's pipeline mode ourselves: every statement of a transaction is
sent at once, prepared under a name of its own, with binary parameters (``binary``), and the answers are read when they
are all there. A transaction is explicit (``begin isolation level read committed`` … ``commit``), so its isolation never
depends on a server's default.

What a caller must know about failure:

* a statement that Postgres refuses raises ``psycopg.Error``'s subclass of its SQLSTATE; the transaction is rolled back
  and the session goes on;
* when the connection ends, or the deadline passes (a hung server must not hang us; the socket is closed),
  ``ConnectionLost`` is raised. If anything had been sent, nobody knows whether it was committed: the caller must make
  that sure (``end_backend``), then look.

Behind a transaction-pooling proxy (PgBouncer) a session is not a backend: we notice that the backend's process ID is
not the one that the handshake gave, and then prepare nothing and repeat the settings in every transaction. The proxy
may also lead to another server from one transaction to the next; so each makes itself read-only on an old primary.

On a node of a Citus cluster every transaction on slots ends with a question: whether this node serves them. Elsewhere a
slot that is not here has no tables here, and nothing need be asked.

https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import psycopg
from psycopg import pq

from sharded_wf.limits import (
    CONNECT_TIMEOUT_SECONDS,
    FLUSH_LOCK_TIMEOUT_SECONDS,
    STATEMENT_DEADLINE_SECONDS,
)
from sharded_wf.postgres.connect import open_async
from sharded_wf.postgres.queries import Query
from sharded_wf.postgres.statements import Joined, Result, Statement, guard_of, on_citus
from sharded_wf.postgres.timeline import OldPrimaryFound, Primary, primary_of

__all__ = ["SETTINGS", "ConnectionLost", "Result", "Session", "Statement", "error_of"]

_BINARY = pq.Format.BINARY
_OK = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)

SETTINGS: dict[str, str] = {
    # Plans are made on empty tables and kept: only index plans stay right as the tables fill.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "default_transaction_isolation": "read committed",
    "lock_timeout": f"{int(FLUSH_LOCK_TIMEOUT_SECONDS * 1000)}",
    "statement_timeout": f"{int(STATEMENT_DEADLINE_SECONDS * 1000)}",
    "idle_in_transaction_session_timeout": f"{int(STATEMENT_DEADLINE_SECONDS * 1000)}",
}


class ConnectionLost(Exception):
    """The connection ended. ``commit_unknown``: a transaction was under way, and whether it was committed is
    unknown. ``old_primary``: a server answers, but it must not be used."""

    def __init__(self, reason: str, *, commit_unknown: bool = False, old_primary: bool = False) -> None:
        super().__init__(reason)
        self.commit_unknown = commit_unknown
        self.old_primary = old_primary


_BEGIN = Query("begin", "begin isolation level read committed")
_COMMIT = Query("commit", "commit")
_ROLLBACK = Query("rollback", "rollback")
_SET_LOCAL_TEXT = "select " + ", ".join(
    f"set_config('{name}', '{value}', true)"
    for name, value in SETTINGS.items()
    if name != "default_transaction_isolation"
)
_SET_LOCAL = Query("set_local", _SET_LOCAL_TEXT)
# $1: the latest timeline that was seen, as Postgres writes it in names of WAL files. On an earlier one nothing can be
# written from here to the end of the transaction.
_SET_LOCAL_GUARDED = Query(
    "set_local_guarded",
    f"{_SET_LOCAL_TEXT}, "
    "case when number collate \"C\" < $1::text then set_config('transaction_read_only', 'on', true) end "
    "from substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) number",
)
_BEGIN_STATEMENT = Statement(_BEGIN, "")
_COMMIT_STATEMENT = Statement(_COMMIT, "")
_SET_LOCAL_STATEMENT = Statement(_SET_LOCAL, "")
_READ_ONLY_SQLSTATE = "25006"


def _settings_for(server_version: int, *, guarded: bool) -> dict[str, str]:
    # PG 17 ends a frozen executor's half-sent transaction by itself; before that a takeover has to.
    timeout = {"transaction_timeout": SETTINGS["statement_timeout"]} if server_version >= 170000 else {}
    # Citus plans some statements only when it sees their parameters.
    planning = {"plan_cache_mode": "auto"} if guarded else {}
    return SETTINGS | timeout | planning


class Session:
    """One connection in pipeline mode. Not for concurrent use: one transaction at a time."""

    def __init__(
        self,
        conn: psycopg.AsyncConnection[tuple[object, ...]],
        token: str,
        *,
        pooled: bool,
        primary: Primary | None = None,
        guarded: bool = False,
    ) -> None:
        self._conn = conn
        self._primary = primary
        self._guarded = guarded
        self._pgconn = conn.pgconn
        self._loop = asyncio.get_running_loop()
        self._fd = self._pgconn.socket
        self._prepared: set[bytes] = set()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self.token = token
        """The application name of this session alone, by which another session can find and end its backend."""
        self.pooled = pooled
        """Whether a transaction-pooling proxy stands between us and the server (a pooler in session mode looks the
        same from here, and is treated alike)."""

    @classmethod
    async def connect(cls, dsn: str, *, purpose: str) -> Session:
        """Open a session; ``purpose`` shows in ``pg_stat_activity``. Raises ``ConnectionLost``."""
        token = f"sharded_wf {purpose} {uuid.uuid4().hex[:16]}"
        try:
            conn, reading = await open_async(dsn, token)
        except OldPrimaryFound as error:
            raise ConnectionLost(str(error), old_primary=True) from None
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise ConnectionLost(str(error).strip() or "connecting took too long") from None
        pooled = reading.backend_pid != conn.info.backend_pid
        settings = {} if pooled else _settings_for(conn.info.server_version, guarded=reading.guarded)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                for name, value in settings.items():
                    await conn.execute("select set_config(%s, %s, false)", (name, value), prepare=False)
        except (psycopg.Error, OSError, TimeoutError) as error:
            conn.pgconn.finish()
            raise ConnectionLost(str(error).strip() or "the server did not answer") from None
        except BaseException:  # cancelled: nobody else knows of this connection
            conn.pgconn.finish()
            raise
        primary = primary_of(dsn) if reading.timeline else None
        session = cls(conn, token, pooled=pooled, primary=primary, guarded=reading.guarded)
        session._enter()
        return session

    def _enter(self) -> None:
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._loop.add_reader(self._fd, self._readable)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._lost is not None

    def close(self) -> None:
        """End the connection; the server rolls back what was under way. Closing twice is fine."""
        self._fail("closed")

    def _fail(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._pgconn.finish()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            self._fail(str(error).strip() or "the server closed the connection")
            return
        if self._waiter is None:
            # Nothing is expected: a notice, or the server going away, which is_busy notices and status tells.
            self._pgconn.is_busy()
            if self._pgconn.status == pq.ConnStatus.BAD:
                self._fail("the server closed the connection")
        elif not self._waiter.done() and not self._pgconn.is_busy():
            self._waiter.set_result(None)

    def _writable(self) -> None:
        try:
            done = self._pgconn.flush() == 0
        except psycopg.Error as error:
            self._fail(str(error).strip() or "the server closed the connection")
            return
        if done:
            self._loop.remove_writer(self._fd)

    def _send(self, statement: Statement, sent: set[bytes]) -> bytes | None:
        """Queue one statement; returns the name under which it was prepared just now, if it was. ``sent``: the names
        that this round trip prepares, which are not known to have succeeded yet."""
        query, params = statement.query, statement.params
        if self.pooled:
            self._pgconn.send_query_params(
                query.on(statement.schema).encode(), params, None, [_BINARY] * len(params), _BINARY
            )
            return None
        name = f"{query.name}.{statement.schema}".encode()
        new = name not in self._prepared and name not in sent
        if new:
            sent.add(name)
            self._pgconn.send_prepare(name, query.on(statement.schema).encode())
        self._pgconn.send_query_prepared(name, params, [_BINARY] * len(params), _BINARY)
        return name if new else None

    async def _round_trip(self, statements: Sequence[Statement], deadline: float) -> list[Result]:
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        pgconn = self._pgconn
        timer = self._loop.call_later(deadline, self._fail, f"no answer within {deadline:g} s")
        try:
            sent: set[bytes] = set()
            prepared = [self._send(statement, sent) for statement in statements]
            pgconn.pipeline_sync()
            if pgconn.flush():
                self._loop.add_writer(self._fd, self._writable)
            results, error = await self._collect(prepared)
        except psycopg.OperationalError as failure:
            self._fail(str(failure).strip())
            raise ConnectionLost(str(failure).strip(), commit_unknown=True) from None
        except asyncio.CancelledError:
            # The answers are on their way to nobody: the session can't be used again.
            self._fail("cancelled")
            raise
        finally:
            timer.cancel()
        if error is not None:
            if error.sqlstate == _READ_ONLY_SQLSTATE:
                # No primary (any more); nothing was written. The next connection looks for the one that is.
                self._fail(str(error))
                raise ConnectionLost(str(error))
            raise error
        return results

    async def _collect(self, prepared: list[bytes | None]) -> tuple[list[Result], psycopg.Error | None]:
        pgconn = self._pgconn
        results: list[Result] = []
        error: psycopg.Error | None = None
        # The server answers each prepare and each execution in turn, then the sync.
        steps = [(name, is_prepare) for name in prepared for is_prepare in ((True, False) if name else (False,))]
        at = 0
        while True:
            while pgconn.is_busy():
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
                if self._lost is not None:
                    raise ConnectionLost(self._lost, commit_unknown=True)
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == pq.ConnStatus.BAD:
                    self._fail("the server closed the connection")
                    raise ConnectionLost("the server closed the connection", commit_unknown=True)
                continue
            status = result.status
            if status in _OK:
                name, is_prepare = steps[at]
                at += 1
                if is_prepare and name:
                    self._prepared.add(name)
                elif error is None:
                    results.append(Result(result))
            elif status == pq.ExecStatus.PIPELINE_SYNC:
                return results, error
            elif status == pq.ExecStatus.PIPELINE_ABORTED:
                at += 1
            else:
                at += 1
                if error is None:
                    error = error_of(result)

    async def transact(
        self, statements: Sequence[Statement], *, deadline: float = STATEMENT_DEADLINE_SECONDS
    ) -> list[Result]:
        """Run the statements as one transaction in one round trip; return a result for each. ``deadline`` in seconds.

        Raises ``psycopg.Error`` (rolled back) or ``ConnectionLost``.
        """
        opening = [_BEGIN_STATEMENT, self._settings()] if self.pooled else [_BEGIN_STATEMENT]
        if self._guarded:
            return await self._transact_on_citus(opening, statements, deadline)
        return await self._transact(opening, statements, [_COMMIT_STATEMENT], deadline)

    async def _transact_on_citus(
        self, opening: list[Statement], statements: Sequence[Statement], deadline: float
    ) -> list[Result]:
        """Other words, and the question at the end."""
        said = [words for statement in statements for words in on_citus(statement)]
        results = await self._transact(opening, said, [*guard_of(statements), _COMMIT_STATEMENT], deadline)
        return [result for words, result in zip(said, results, strict=True) if "__" not in words.query.name]

    async def _transact(
        self, opening: list[Statement], statements: Sequence[Statement], closing: list[Statement], deadline: float
    ) -> list[Result]:
        try:
            results = await self._round_trip([*opening, *statements, *closing], deadline)
        except psycopg.Error:
            if self._pgconn.transaction_status != pq.TransactionStatus.IDLE:
                await self._round_trip([Statement(_ROLLBACK, "")], deadline)
            raise
        if self.pooled and results[1].rows()[0][-1] == b"on":
            self._fail("the proxy leads to an old primary")
            raise ConnectionLost("the proxy leads to an old primary", old_primary=True)
        return results[len(opening) : -len(closing)]

    def _settings(self) -> Statement:
        if self._primary is None or self._primary.known is None:
            return _SET_LOCAL_STATEMENT
        return Statement(_SET_LOCAL_GUARDED, "", (b"%08X" % self._primary.known.number,))

    async def fetch(self, statement: Statement, *, deadline: float = STATEMENT_DEADLINE_SECONDS) -> Result:
        """Run one statement in a transaction of its own. ``deadline`` in seconds."""
        if self._guarded and statement.parts:
            return Joined(await self.transact(statement.parts, deadline=deadline))
        if self.pooled or (self._guarded and guard_of([statement])):
            return (await self.transact([statement], deadline=deadline))[0]
        return (await self._round_trip([statement], deadline))[0]


def error_of(result: pq.abc.PGresult) -> psycopg.Error:
    """The psycopg exception for an error that the server reported, with its SQLSTATE in ``sqlstate``."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"unknown error").decode("utf-8", "replace")
    detail = result.error_field(pq.DiagnosticField.MESSAGE_DETAIL)
    if detail:
        message = f"{message} ({detail.decode('utf-8', 'replace')})"
    try:
        error = psycopg.errors.lookup(state)(message)
    except KeyError:
        error = psycopg.DatabaseError(message)
    error.sqlstate = state
    return error
