"""One move of one slot, from its first row to its last: a state machine that any process can go on with, or undo.

    planned -> copying -> draining -> retired -> live -> (no rows)

The states are the source's, to ``retired``; ``live`` is the target's. Everything that is done in a state can be done
again, so a coordinator that dies anywhere leaves nothing but a move that is resumed.
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
    MOVE_CUTOVER_DEADLINE_SECONDS,
    MOVE_DEPARTED_ATTEMPTS,
    MOVE_DRAIN_SECONDS,
    MOVE_IDLE_SECONDS,
    MOVE_LOCK_PAUSE_SECONDS,
    MOVE_LOCK_TIMEOUT_SECONDS,
    MOVE_PACE_FACTOR,
    MOVE_PASS_IDLE_SECONDS,
    MOVE_PASSES_MAX,
    MOVE_ROW_LOCK_TIMEOUT_SECONDS,
    MOVE_SHORT_PASS_SECONDS,
)
from sharded_wf.postgres.connect import Connection, connection
from sharded_wf.postgres.failures import unavailable
from sharded_wf.postgres.migrate import make_copy
from sharded_wf.reshard.copying import Copier, begin_capture, end_capture
from sharded_wf.reshard.cutover import Cutover, drop, milliseconds, rename, tell
from sharded_wf.reshard.record import Move, Side, find_move, purpose_of
from sharded_wf.reshard.tables import SQL, read_tables
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
    is left behind on the source."""

    slot: int
    source: str
    target: str
    rows: int
    pause_seconds: float | None
    untold: tuple[str, ...]
    cleaned: bool


class Mover:
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

    # --- the whole way ------------------------------------------------------------------------------------------

    def run(self) -> Moved:
        """Begin the move, or go on with it wherever it stands, to its end.

        Raises ``MoveRefused``, ``MoveBlocked`` (the slot is as it was), ``MoveTakenOver``, ``ShardUnavailable`` (resume
        it when the shard is back)."""
        pause: float | None = None
        with self._target() as target:
            arrived = self._arrived(target)
            if not arrived:
                with self._source() as source:
                    self._become_coordinator(source, target)
                    arrived = self._arrived(target)  # an old coordinator may have been faster, up to that moment
                    if not arrived and source.hold() != "retired":
                        if source.hold() == "undoing":
                            raise MoveRefused(f"the move of slot {self._move.slot} is being undone: use --undo")
                        copier = self._copy(source, target)
                        self._end_departed(source, target)
                        self._drain(source, copier)
        if not arrived:
            pause = self._cut_over()
        self._say("live")
        untold = tell(self._config, self._move)
        self._say("told")
        cleaned = self._clean()
        return Moved(self._move.slot, self._move.source, self._move.target, self._rows, pause, tuple(untold), cleaned)

    def undo(self) -> None:
        """Take the move back: the slot lives where it was. Raises ``MoveRefused`` if it is live on the target already,
        or if that can't be known."""
        move, names = self._move, self._move.names
        with self._source() as source:
            try:
                with self._target() as target:
                    self._become_coordinator(source, target, undo=True)
                    if self._arrived(target):
                        raise MoveRefused(
                            f"slot {move.slot} is live on {move.target!r} already: use --resume, or move it back"
                        )
                    source.advance("undoing", since=("planned", "copying", "draining", "retired", "undoing"))
                    self._say("undoing")
                    drop(target.conn, names.copy)
                    target.remove()
            except ShardUnavailable as error:
                source.take()
                if error.shard != move.target or names.retired in _schemas(source.conn, names.slot):
                    raise
                # Nothing can go live there without the source's consent, which it loses now.
            self._say("unmade")
            _restore(source)
        self._say("undone")

    def compare(self) -> list[TableCheck] | None:
        """Compare both sides of a move that stands still, as they are. None: the copy is not complete yet. Raises as
        ``run``; whoever drives the move is replaced."""
        with self._source() as source, self._target() as target:
            source.take()
            target.take()
            tables = read_tables(source.conn, self._slot_name(source))
            known = find_move(target.conn, self._move.slot)
            done = (known.progress or {}).get("done", []) if known is not None else []
            if len(done) < len(tables):
                return None
            copier = Copier(source, target, self._move.names, tables, self._copied)
            return verify_copy(copier, live=self._slot_name(source) == self._move.names.slot)

    def _slot_name(self, source: Side) -> str:
        names = self._move.names
        return names.retired if names.retired in _schemas(source.conn, names.slot) else names.slot

    # --- its parts ----------------------------------------------------------------------------------------------

    def _become_coordinator(self, source: Side, target: Side, *, undo: bool = False) -> None:
        slot = self._move.slot
        if find_move(source.conn, slot) is None:
            if not undo and find_move(target.conn, slot) is not None:
                raise MoveRefused(
                    f"a move of slot {slot} to {self._move.target!r} was undone while that shard was away, and has "
                    f"left rows there; run: sharded-wf shards move --undo {slot}"
                )
            if not source.plan("planned"):
                raise MoveRefused(f"slot {self._move.slot} is being moved already: sharded-wf shards move --resume")
            self._say("planned")
        source.take()
        if not target.plan("copying"):
            target.take()

    def _arrived(self, target: Side) -> bool:
        known = find_move(target.conn, self._move.slot)
        return known is not None and known.id == self._move.id and known.state == "live"

    def _copy(self, source: Side, target: Side) -> Copier:
        names, progress = self._move.names, None
        make_copy(target.conn, names.copy)
        tables = read_tables(source.conn, names.slot)
        if not tables:
            raise MoveRefused(f"slot {self._move.slot} is not on {self._move.source!r}: see sharded-wf shards status")
        if tables != read_tables(target.conn, names.copy):
            raise MoveRefused(
                f"{names.slot} has other tables than a new slot on {self._move.target!r}; "
                "run: sharded-wf shards migrate"
            )
        begin_capture(source, names, tables, self._sleep)
        source.advance("copying", since=("planned", "copying", "draining"))
        known = find_move(target.conn, self._move.slot)
        if known is not None:
            progress = known.progress
        self._total = _estimate(source.conn, names.slot)
        self._rows = _estimate(target.conn, names.copy) if progress else 0
        self._say("copying")
        copier = Copier(source, target, names, tables, self._copied, self._rest)
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
        self._sleep(worked_seconds * self._pace)

    def _copied(self, rows: int) -> None:
        self._rows += rows
        self._say("copying")

    def _follow(self, copier: Copier) -> None:
        """Pass after pass over what has changed, until a pass is short."""
        for _ in range(MOVE_PASSES_MAX):
            begun = time.monotonic()
            copier.catch_up()
            self._say("following")
            if time.monotonic() - begun <= MOVE_SHORT_PASS_SECONDS:
                return
        raise MoveBlocked(
            f"slot {self._move.slot} changes faster than it can be copied; try again when there is less load: "
            "sharded-wf shards move --resume"
        )

    def _end_departed(self, source: Side, target: Side) -> None:
        """What ``Cutover.go_live`` does once more, for nothing: to end a lease may take as long as a user's transaction
        under it does, and that must not be waited for while the slot lives nowhere."""
        timeouts = (milliseconds(MOVE_LOCK_TIMEOUT_SECONDS), milliseconds(MOVE_IDLE_SECONDS))
        for _ in range(MOVE_DEPARTED_ATTEMPTS):
            try:
                with target.conn.transaction():
                    target.hold()
                    target.conn.execute(SQL["set_local_timeouts"].on(), timeouts)
                    target.conn.execute(SQL["end_departed"].on(), (self._move.slot,))
                return
            except psycopg.errors.LockNotAvailable:
                source.beat()
                self._sleep(MOVE_LOCK_PAUSE_SECONDS)
        raise MoveBlocked(
            f"an executor that held workflows of slot {self._move.slot} on {self._move.target!r} before has a "
            "transaction open there. The slot works as before. When it has ended, run: sharded-wf shards move --resume"
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

    def _cut_over(self) -> float | None:
        """Retire, go live. On connections with a deadline: a shard that hangs must not keep the slot locked."""
        begun: float | None = None
        with (
            self._source(MOVE_CUTOVER_DEADLINE_SECONDS) as source,
            self._target(MOVE_CUTOVER_DEADLINE_SECONDS) as target,
        ):
            cutover = Cutover(self._move, source, target, self._sleep)
            if source.hold() != "retired":
                tables = read_tables(source.conn, self._move.names.slot)
                copier = Copier(source, target, self._move.names, tables, self._copied)
                copier.prepare()
                try:
                    begun = cutover.retire(copier)
                except MoveBlocked:
                    source.advance("copying", since=("draining",))  # executors may claim there again
                    source.conn.execute(SQL["notify_moves"].on())
                    raise
                self._say("retired")
            cutover.go_live()
        return None if begun is None else time.monotonic() - begun

    def _clean(self) -> bool:
        """Remove what the move leaves behind: on the source first, the target's row last, since it is what says that
        all is well. False if the source is away: a resume does it then."""
        names = self._move.names
        try:
            with self._source() as source:
                drop(source.conn, names.retired)
                drop(source.conn, names.changes)
                source.remove()
        except ShardUnavailable:
            return False
        self._say("cleaned")
        with self._target() as target:
            target.remove()
        return True

    # --- connections --------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self, shard: str, deadline: float | None = None) -> Generator[Connection]:
        timeouts = milliseconds(MOVE_ROW_LOCK_TIMEOUT_SECONDS), milliseconds(MOVE_PASS_IDLE_SECONDS)
        conn: Connection | None = None
        purpose = purpose_of(self._token)
        try:
            with connection(self._config.shard(shard).dsn, purpose=purpose, deadline_seconds=deadline) as conn:
                row = conn.execute(SQL["backend"].on()).fetchone()
                if row is None or row[0] != conn.info.backend_pid:
                    raise MoveRefused(
                        f"the DSN of shard {shard!r} leads through a transaction-pooling proxy; a move needs "
                        "sessions of its own: name a shards.toml with direct DSNs (--cluster), for this command alone"
                    )
                conn.execute(SQL["set_settings"].on(), timeouts)
                try:
                    yield conn
                except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                    # Two connections are open at a time: which of them broke?
                    if conn.closed:
                        raise unavailable(shard, error, reason_of(error)) from None
                    raise
        except psycopg.OperationalError as error:
            if conn is None:
                raise unavailable(shard, error, reason_of(error)) from None
            raise

    @contextmanager
    def _source(self, deadline: float | None = None) -> Generator[Side]:
        with self._connection(self._move.source, deadline) as conn:
            yield Side(conn, self._move, self._token)

    @contextmanager
    def _target(self, deadline: float | None = None) -> Generator[Side]:
        with self._connection(self._move.target, deadline) as conn:
            yield Side(conn, self._move, self._token)

    def _say(self, phase: str) -> None:
        move = self._move
        self._report(Progress(move.slot, move.source, move.target, phase, self._rows, max(self._total, self._rows)))


def _restore(source: Side) -> None:
    """Undo a move on the source: the slot has its name and its fence again, and its changes are noted no more."""
    conn, names = source.conn, source.move.names
    with conn.transaction():
        source.hold()
        if names.retired in _schemas(conn, names.slot):
            rename(conn, names.retired, names.slot)
            conn.execute(SQL["lower_fence"].on(names.slot), (True, source.move.epoch))
    end_capture(conn, names, read_tables(conn, names.slot), names.slot)
    source.remove()
    conn.execute(SQL["notify_moves"].on())


def _schemas(conn: Connection, slot: str) -> set[str]:
    return {str(name) for (name,) in conn.execute(SQL["read_schemas"].on(), (slot,)).fetchall()}


def _estimate(conn: Connection, schema: str) -> int:
    row = conn.execute(SQL["estimate_rows"].on(), (schema,)).fetchone()
    return int(str(row[0])) if row else 0
