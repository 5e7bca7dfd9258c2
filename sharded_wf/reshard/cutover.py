"""The cut-over: the slot stops living on the source, then begins to live on the target. Never the other way round.

1. *Retire* (one transaction on the source, with every table of the slot locked): what executors still hold is given
   back, the last changes are copied and committed on the target, the fence falls, the schema gets another name. Its
   commit is the point of no return: from then on whoever comes with an old map meets "relation does not exist".
2. *Go live* (one transaction on the target): the copy gets the slot's name, the fence rises at the new epoch, and the
   target's copy of the map says so.
3. *Tell*: the other shards' copies of the map. Whoever has an old one loses
   nothing but a round trip.

A crash between 1 and 2 leaves the slot nowhere, until any process finishes the move or undoes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psycopg

from sharded_wf.cluster.fanout import ask_each
from sharded_wf.cluster.shard_map import Placement, read_record, write_placements
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import MoveBlocked, MoveRefused
from sharded_wf.limits import (
    MOVE_IDLE_SECONDS,
    MOVE_LAST_PASSES_MAX,
    MOVE_LOCK_ATTEMPTS,
    MOVE_LOCK_PAUSE_SECONDS,
    MOVE_LOCK_TIMEOUT_SECONDS,
    MOVE_ROW_LOCK_TIMEOUT_SECONDS,
    MOVE_SHORT_PASS_ROWS,
    MOVE_SWITCH_GROWTH,
    MOVE_SWITCH_KEYS_MAX,
    MOVE_SWITCH_SECONDS,
    STATUS_DEADLINE_SECONDS,
)
from sharded_wf.postgres.connect import Connection
from sharded_wf.reshard.copying import Copier, blocked_by
from sharded_wf.reshard.record import Move, Side
from sharded_wf.reshard.tables import CLAIM, FENCE, SQL, Names, Table, text_of


def milliseconds(seconds: float) -> str:
    """A duration as Postgres's settings take it."""
    return f"{int(seconds * 1000)}ms"


class _TooMuch(Exception):
    """More has changed since the last pass than the slot should stay locked for."""


_AGAIN = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.QueryCanceled, _TooMuch)


@dataclass(slots=True)
class Cutover:
    """The cut-over of one move."""

    move: Move
    source: Side
    target: Side
    sleep: Callable[[float], None]
    locked_seconds: float = 0.0
    """The longest time for which an attempt that was given up had locked the slot, or stood in line for it."""

    def retire(self, copier: Copier, then: Callable[[], None]) -> float:
        """Retire the slot on the source, all of it copied, and do ``then`` in the same transaction, whose last
        statement is its. Returns the monotonic time when it was locked.

        An attempt that waits for locks, or has to copy more than can be copied soon, is given up, so that nobody waits
        for long; then the changes are copied up to date, and the next one has more time. Raises ``MoveBlocked`` if it
        can't be done: the slot is as it was."""
        seconds = MOVE_SWITCH_SECONDS
        for attempt in range(1, MOVE_LOCK_ATTEMPTS + 1):
            self._catch_up(copier)
            begun = time.monotonic()
            try:
                return self._retire(copier, then, seconds)
            except _AGAIN as error:
                self.locked_seconds = max(self.locked_seconds, time.monotonic() - begun)
                if attempt == MOVE_LOCK_ATTEMPTS:
                    raise MoveBlocked(blocked_by(self.source.conn, self.move.names)) from None
                if not isinstance(error, psycopg.errors.LockNotAvailable):
                    seconds = min(seconds * MOVE_SWITCH_GROWTH, MOVE_IDLE_SECONDS)
            self.source.beat()
            self.sleep(MOVE_LOCK_PAUSE_SECONDS)
        raise AssertionError

    def _catch_up(self, copier: Copier) -> None:
        """So that little is left for the time when the slot is locked."""
        for _ in range(MOVE_LAST_PASSES_MAX):
            if copier.catch_up() <= MOVE_SHORT_PASS_ROWS:
                return

    def _retire(self, copier: Copier, then: Callable[[], None], seconds: float) -> float:
        conn, names, slot = self.source.conn, self.move.names, self.move.slot
        # A frozen coordinator, or one whose network is gone, must not keep the slot locked. (Postgres starts this clock
        # after a plain statement; not after a pipeline of psycopg, which ends with a flush. So none is the last.)
        idle = milliseconds(MOVE_IDLE_SECONDS + seconds)
        patience, lock = milliseconds(MOVE_LOCK_TIMEOUT_SECONDS), _every_table(names, copier.tables)
        with conn.transaction():
            self.source.hold()
            conn.execute(SQL["set_switch_timeouts"].on(), (patience, patience, idle))
            with self.target.conn.transaction():
                self.target.hold()
                there = [read_versions(self.target.conn, part.names.copy) for part in copier.parts]
                begun = time.monotonic()
                try:
                    conn.execute(text_of(SQL["lock_slot"], names, list=lock))
                except psycopg.errors.QueryCanceled:
                    raise psycopg.errors.LockNotAvailable from None
                rows = milliseconds(MOVE_ROW_LOCK_TIMEOUT_SECONDS)
                with conn.pipeline():
                    conn.execute(SQL["set_switch_timeouts"].on(), (rows, milliseconds(seconds), idle))
                    here = conn.execute(SQL["read_versions"].on(), (names.slot,))
                    conn.execute(SQL["note_departures"].on(names.slot), (slot,))
                    conn.execute(SQL["give_back_all"].on(names.slot))
                    lowered = conn.execute(SQL["lower_fence"].on(names.slot), (False, self.move.epoch))
                asked = copier.ask_changes()
                versions = here.fetchone()
                if any(versions != of_part for of_part in there):
                    raise MoveRefused(
                        f"{names.slot} was migrated while it was copied; undo it, then begin anew: "
                        "sharded-wf shards move --undo (or split --undo)"
                    )
                if lowered.rowcount != 1:
                    raise MoveRefused(
                        f"slot {slot} has moved since this move was planned; run: sharded-wf shards move --undo"
                    )
                changes = copier.changes_of(asked)
                most = MOVE_SWITCH_KEYS_MAX * seconds / MOVE_SWITCH_SECONDS
                if sum(map(len, changes.values())) > most or time.monotonic() - begun > seconds:
                    raise _TooMuch
                copier.apply(changes)
            with conn.pipeline():
                rename(conn, names.slot, names.retired)
            then()
        return begun

    def go_live(self) -> None:
        """The slot begins to live on the target. Only after ``retire``. Raises ``MoveTakenOver``."""
        conn, move, names = self.target.conn, self.move, self.move.names
        with conn.transaction():
            self.target.hold()
            with conn.pipeline():
                # Whoever held workflows here when the slot left the last time, and has not noticed since, is fenced.
                conn.execute(SQL["end_departed"].on(), (move.slot,))
                conn.execute(SQL["forget_departures"].on(), (move.slot,))
                rename(conn, names.copy, names.slot)
                conn.execute(SQL["rise_fence"].on(names.slot), (move.slot, move.target, move.epoch))
                write_placements(conn, [Placement(move.slot, move.target, move.epoch)])
                conn.execute(SQL["notify_moves"].on())
            self.target.advance("live", since=("copying",))


def tell(config: ClusterConfig, move: Move, slots: Iterable[int]) -> list[str]:
    """Say on every shard that can be reached that these slots are on the target, since the move's epoch. Returns those
    that could not be reached."""
    placements = [Placement(slot, move.target, move.epoch) for slot in slots]

    def raise_epoch(_shard: ShardConfig, conn: Connection) -> None:
        if read_record(conn).identity is None:
            return  # not part of the cluster yet
        with conn.transaction():
            write_placements(conn, placements)
            conn.execute(SQL["notify_moves"].on())

    answers = ask_each(config.shards, raise_epoch, purpose="move", deadline_seconds=STATUS_DEADLINE_SECONDS)
    return sorted(answers.failed)


def _every_table(names: Names, tables: tuple[Table, ...]) -> str:
    every = dict.fromkeys((*(table.name for table in tables), CLAIM, FENCE))
    return ", ".join(f"{names.slot}.{name}" for name in every)


def rename(conn: Connection, old: str, new: str) -> None:
    """Give a schema another name, and its migrations with it. Within a transaction."""
    conn.execute(SQL["rename_schema"].text.replace("{schema}", old).replace("{name}", new).encode())
    conn.execute(SQL["rename_migrations"].on(), (old, new))


def drop(conn: Connection, schema: str) -> None:
    """Drop a schema that is no slot any more, or not yet one, and what is noted of its migrations."""
    with conn.transaction():
        conn.execute(SQL["drop_schema"].text.replace("{schema}", schema).encode())
        conn.execute(SQL["forget_migrations"].on(), (schema,))


def read_versions(conn: Connection, schema: str) -> tuple[object, ...] | None:
    """The migrations that a schema has had."""
    return conn.execute(SQL["read_versions"].on(), (schema,)).fetchone()
