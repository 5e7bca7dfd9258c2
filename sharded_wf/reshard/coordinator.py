"""What the coordinators of a move and of a split have in common: connections, the copy, the drain.

Both put a slot together under other names while it is in use, and switch in a moment; what they put together, and how
they switch, is their own (``move``, ``split``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from sharded_wf.cluster.fanout import reason_of
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import MoveBlocked, MoveRefused, ShardUnavailable
from sharded_wf.limits import (
    MOVE_DRAIN_SECONDS,
    MOVE_PACE_FACTOR,
    MOVE_PASS_IDLE_SECONDS,
    MOVE_PASSES_MAX,
    MOVE_REST_SECONDS_MAX,
    MOVE_ROW_LOCK_TIMEOUT_SECONDS,
    MOVE_SHORT_PASS_ROWS,
    MOVE_SHORT_PASS_SECONDS,
)
from sharded_wf.postgres.connect import Connection, connection
from sharded_wf.postgres.failures import unavailable
from sharded_wf.postgres.migrate import applied_versions, make_copy
from sharded_wf.reshard.copying import Copier, begin_capture, end_capture
from sharded_wf.reshard.cutover import Cutover, drop, milliseconds, rename
from sharded_wf.reshard.pulse import Pulse, pulse_of
from sharded_wf.reshard.record import Move, Side, find_move, purpose_of
from sharded_wf.reshard.tables import SQL, Part, Table, read_tables
from sharded_wf.reshard.verify import TableCheck, verify_copy

_DRAIN_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a move stands. ``phase``: planned, copying, following, verifying, draining, retired, live, cleaned.
    ``rows`` of about ``total`` are copied."""

    slot: int
    source: str
    target: str
    phase: str
    rows: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that is done. ``pause_seconds``: for how long the slot took no writes; ``None`` if another coordinator
    began the pause. ``untold``: shards that could not be told; they learn of it from the others. ``cleaned``: nothing
    is left behind on the source. ``into``: the slots that it was split into."""

    slot: int
    source: str
    target: str
    rows: int
    pause_seconds: float | None
    untold: tuple[str, ...]
    cleaned: bool
    into: tuple[int, ...] = ()


class Coordinator:
    """Drives one move. ``report`` hears of every state that was reached, after it was made durable."""

    def __init__(
        self,
        config: ClusterConfig,
        move: Move,
        report: Callable[[Progress], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
        *,
        verify: bool = True,
        pace: float = MOVE_PACE_FACTOR,
    ) -> None:
        self._config = config
        self._move = move
        self._token = uuid.uuid4()
        self._report = report
        self._sleep = sleep
        self._verify = verify
        self._pace = pace
        self._rows = 0
        self._total = 0
        self._phase = ""
        self._pulses: list[tuple[str, Pulse]] = []

    def run(self) -> Moved:
        """Begin, or go on wherever it stands, to the end."""
        raise NotImplementedError

    def undo(self) -> None:
        """Take it back: the slot lives where it was."""
        raise NotImplementedError

    def _parts(self, source: Side) -> tuple[Part, ...]:
        """What the slot is to become."""
        raise NotImplementedError

    def _copied_tables(self, tables: tuple[Table, ...]) -> tuple[Table, ...]:
        """Those of the slot's tables that are copied."""
        return tables

    def _copier(self, source: Side, target: Side, schema: str) -> Copier:
        tables = self._copied_tables(read_tables(source.conn, schema))
        return Copier(source, target, self._parts(source), tables, self._copied, self._rest)

    def compare(self) -> list[TableCheck] | None:
        """Compare both sides of a move that stands still, as they are. None: the copy is not complete yet. Raises as
        ``run``; whoever drives the move is replaced."""
        names = self._move.names
        with self._source() as source, self._target() as target:
            source.take()
            target.take()
            schema = names.retired if names.retired in schemas(source.conn, names.slot) else names.slot
            copier = self._copier(source, target, schema)
            known = find_move(target.conn, self._move.slot)
            done = (known.progress or {}).get("done", []) if known is not None else []
            if len(done) < len(copier.labels()):
                return None
            return verify_copy(copier, live=schema == names.slot)

    def _copy(self, source: Side, target: Side) -> Copier:
        """Copy the slot while it is in use, compare, and follow its changes."""
        names, progress = self._move.names, None
        parts = self._parts(source)
        versions = applied_versions(source.conn, names.slot)  # during an upgrade: perhaps not all that we know
        for part in parts:
            make_copy(target.conn, part.names.copy, versions)
        tables = read_tables(source.conn, names.slot)
        if not tables:
            raise MoveRefused(f"slot {self._move.slot} is not on {self._move.source!r}: see sharded-wf shards status")
        if tables != read_tables(target.conn, parts[0].names.copy):
            raise MoveRefused(
                f"{names.slot} has other tables than its migrations make on {self._move.target!r}: somebody changed "
                "them by hand, or is migrating it; see sharded-wf doctor"
            )
        copier = self._copier(source, target, names.slot)
        begin_capture(source, names, copier.tables, self._sleep)
        source.advance("copying", since=("planned", "copying", "draining"))
        known = find_move(target.conn, self._move.slot)
        if known is not None:
            progress = known.progress
        self._total = _estimate(source.conn, names.slot)
        self._rows = sum(_estimate(target.conn, part.names.copy) for part in parts) if progress else 0
        self._say("copying")
        copier.copy_all(progress)
        self._follow(copier)
        copier.analyze()
        if self._verify:
            self._say("verifying")
            wrong = [check for check in verify_copy(copier, live=True) if not check.same]
            if wrong:
                found = ", ".join(f"{c.table} ({c.source_rows} and {c.target_rows} rows)" for c in wrong)
                raise MoveBlocked(
                    f"the copy of slot {self._move.slot} differs from it: {found}. Nothing was switched; undo the move "
                    "(sharded-wf shards move --undo), and report this"
                )
            self._follow(copier)
        return copier

    def _rest(self, worked_seconds: float) -> None:
        self._sleep(min(worked_seconds * self._pace, MOVE_REST_SECONDS_MAX))

    def _copied(self, rows: int) -> None:
        self._rows += rows
        self._say("copying")

    def _follow(self, copier: Copier) -> None:
        """Pass after pass over what has changed, until a pass is short."""
        for _ in range(MOVE_PASSES_MAX):
            begun = time.monotonic()
            rows = copier.catch_up()
            self._say("following")
            if rows <= MOVE_SHORT_PASS_ROWS or time.monotonic() - begun <= MOVE_SHORT_PASS_SECONDS:
                return
        raise MoveBlocked(
            f"slot {self._move.slot} changes faster than it can be copied; try again when there is less load: "
            "sharded-wf shards move --resume"
        )

    def _drain(self, source: Side, copier: Copier) -> None:
        """Ask executors to give back what they hold of the slot, and wait for it, but not for ever: what is left is
        given back for them."""
        source.advance("draining", since=("copying",))
        source.conn.execute(SQL["notify_moves"].on())
        self._say("draining")
        give_up = time.monotonic() + MOVE_DRAIN_SECONDS
        while time.monotonic() < give_up:
            copier.catch_up()
            row = source.conn.execute(SQL["count_claims"].on(self._move.names.slot)).fetchone()
            if row is None or row[0] == 0:
                break
            self._sleep(_DRAIN_POLL_SECONDS)
        self._follow(copier)

    def _retire(self, cutover: Cutover, then: Callable[[], None]) -> float:
        """The transaction after which the slot lives here under its name no more; ``then`` is its last part. Returns
        the monotonic time when the slot was locked."""
        source, target = cutover.source, cutover.target
        copier = self._copier(source, target, self._move.names.slot)
        try:
            return cutover.retire(copier, then)
        except MoveBlocked:
            source.advance("copying", since=("draining",))  # executors may claim there again
            source.conn.execute(SQL["notify_moves"].on())
            raise

    def _clean_source(self) -> bool:
        """Remove what is left of the slot on the source. False if the source is away: a resume does it then."""
        names = self._move.names
        try:
            with self._source() as source:
                drop(source.conn, names.retired)
                drop(source.conn, names.changes)
                source.remove()
        except ShardUnavailable:
            return False
        self._say("cleaned")
        return True

    # --- connections --------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self, shard: str) -> Generator[Connection]:
        """Without a deadline of its own: as long as the server lives."""
        timeouts = milliseconds(MOVE_ROW_LOCK_TIMEOUT_SECONDS), milliseconds(MOVE_PASS_IDLE_SECONDS)
        dsn, purpose = self._config.shard(shard).dsn, purpose_of(self._token)
        opened = False
        try:
            with (
                connection(dsn, purpose=purpose, deadline_seconds=None) as conn,
                pulse_of(dsn, conn, purpose) as pulse,
            ):
                opened = True
                self._pulses.append((shard, pulse))
                try:
                    row = conn.execute(SQL["backend"].on()).fetchone()
                    if row is None or row[0] != conn.info.backend_pid:
                        raise MoveRefused(
                            f"the DSN of shard {shard!r} leads through a transaction-pooling proxy; a move needs "
                            "sessions of its own: name a shards.toml with direct DSNs (--cluster), for this command "
                            "alone"
                        )
                    conn.execute(SQL["set_settings"].on(), timeouts)
                    yield conn
                except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                    self._judge(shard, conn, error)
                    raise
        except psycopg.OperationalError as error:
            if not opened:
                raise self._unavailable(shard, reason_of(error), error) from None
            raise

    def _judge(self, shard: str, conn: Connection, error: Exception) -> None:
        """Two connections are open at a time: which of them broke? Raises ``ShardUnavailable`` if that can be said."""
        self._check_pulses()  # one that stands still may be why the other one's server gave up waiting for us
        if conn.closed:
            raise self._unavailable(shard, reason_of(error), error) from None

    def _check_pulses(self) -> None:
        """Raises ``ShardUnavailable`` if a server shows no life."""
        for name, pulse in self._pulses:
            if (stopped := pulse.stopped) is not None:
                raise self._unavailable(name, stopped) from None

    def _unavailable(self, shard: str, reason: str, error: Exception | None = None) -> ShardUnavailable:
        """What to tell when a shard is away, with what to do about it."""
        move, state = self._move, ""
        if self._phase == "retired":
            state = f", but slot {move.slot} is on no shard until it is finished"
        if self._phase:
            option = "--undo" if self._phase in ("undoing", "unmade") else "--resume"
            command = f"sharded-wf shards {'split' if move.splits else 'move'} {option} {move.slot}"
            reason = f"{reason.rstrip('.')}. Nothing is lost{state}. When {shard!r} answers again, run: {command}"
        return ShardUnavailable(shard, reason) if error is None else unavailable(shard, error, reason)

    @contextmanager
    def _source(self) -> Generator[Side]:
        with self._connection(self._move.source) as conn:
            yield Side(conn, self._move, self._token)

    @contextmanager
    def _target(self) -> Generator[Side]:
        with self._connection(self._move.target) as conn:
            yield Side(conn, self._move, self._token)

    def _say(self, phase: str) -> None:
        move = self._move
        self._phase = phase
        self._report(Progress(move.slot, move.source, move.target, phase, self._rows, max(self._total, self._rows)))


def restore(source: Side) -> None:
    """The last part of an undo, on the source: the slot has its name and its fence again, and its changes are noted no
    more."""
    conn, names = source.conn, source.move.names
    with conn.transaction():
        source.hold()
        if names.retired in schemas(conn, names.slot):
            rename(conn, names.retired, names.slot)
            conn.execute(SQL["lower_fence"].on(names.slot), (True, source.move.epoch))
    end_capture(conn, names, read_tables(conn, names.slot), names.slot)
    source.remove()
    conn.execute(SQL["notify_moves"].on())


def schemas(conn: Connection, slot: str) -> set[str]:
    """Every schema here whose name begins with that of the slot."""
    return {str(name) for (name,) in conn.execute(SQL["read_schemas"].on(), (slot,)).fetchall()}


def _estimate(conn: Connection, schema: str) -> int:
    row = conn.execute(SQL["estimate_rows"].on(), (schema,)).fetchone()
    return int(str(row[0])) if row else 0
