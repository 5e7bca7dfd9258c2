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
    MOVE_CUTOVER_DEADLINE_SECONDS,
    MOVE_IDLE_SECONDS,
    MOVE_LOCK_ATTEMPTS,
    MOVE_LOCK_PAUSE_SECONDS,
    MOVE_LOCK_TIMEOUT_SECONDS,
    MOVE_ROW_LOCK_TIMEOUT_SECONDS,
)
from sharded_wf.postgres.connect import Connection
from sharded_wf.reshard.copying import Copier, blocked_by
from sharded_wf.reshard.record import Move, Side
from sharded_wf.reshard.tables import CLAIM, FENCE, SQL, Names, Table, text_of


def milliseconds(seconds: float) -> str:
    """A duration as Postgres's settings take it."""
    return f"{int(seconds * 1000)}ms"


@dataclass(slots=True)
class Cutover:
    """The cut-over of one move."""

    move: Move
    source: Side
    target: Side
    sleep: Callable[[float], None]

    def retire(self, copier: Copier, then: Callable[[], None]) -> float:
        """Retire the slot on the source, all of it copied, and do ``then`` in the same transaction. Returns the
        monotonic time when it was locked.

        Raises ``MoveBlocked`` if the locks can't be had: the slot is as it was."""
        for attempt in range(1, MOVE_LOCK_ATTEMPTS + 1):
            try:
                return self._retire(copier, then)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                if attempt == MOVE_LOCK_ATTEMPTS:
                    raise MoveBlocked(blocked_by(self.source.conn, self.move.names)) from None
            self.source.beat()
            self.sleep(MOVE_LOCK_PAUSE_SECONDS)
            copier.catch_up()  # so that the next attempt, too, has little to copy
        raise AssertionError

    def _retire(self, copier: Copier, then: Callable[[], None]) -> float:
        conn, names, slot = self.source.conn, self.move.names, self.move.slot
        idle = milliseconds(MOVE_IDLE_SECONDS)  # a frozen coordinator must not keep the slot locked
        with conn.transaction():
            self.source.hold()
            conn.execute(SQL["set_local_timeouts"].on(), (milliseconds(MOVE_LOCK_TIMEOUT_SECONDS), idle))
            begun = time.monotonic()
            conn.execute(text_of(SQL["lock_slot"], names, list=_every_table(names, copier.tables)))
            conn.execute(SQL["set_local_timeouts"].on(), (milliseconds(MOVE_ROW_LOCK_TIMEOUT_SECONDS), idle))
            for part in copier.parts:
                check_versions(self.source.conn, self.target.conn, part.names)
            conn.execute(SQL["note_departures"].on(names.slot), (slot,))
            conn.execute(SQL["give_back_all"].on(names.slot))
            with self.target.conn.transaction():
                self.target.hold()
                copier.apply_changes(forget=False)
            if conn.execute(SQL["lower_fence"].on(names.slot), (False, self.move.epoch)).rowcount != 1:
                raise MoveRefused(
                    f"slot {slot} has moved since this move was planned; run: sharded-wf shards move --undo"
                )
            rename(conn, names.slot, names.retired)
            then()
        return begun

    def go_live(self) -> None:
        """The slot begins to live on the target. Only after ``retire``. Raises ``MoveTakenOver``."""
        conn, move, names = self.target.conn, self.move, self.move.names
        with conn.transaction():
            self.target.hold()
            # Whoever held workflows here when the slot left the last time, and has not noticed since, is fenced.
            conn.execute(SQL["end_departed"].on(), (move.slot,))
            conn.execute(SQL["forget_departures"].on(), (move.slot,))
            rename(conn, names.copy, names.slot)
            conn.execute(SQL["rise_fence"].on(names.slot), (move.slot, move.target, move.epoch))
            write_placements(conn, [Placement(move.slot, move.target, move.epoch)])
            self.target.advance("live", since=("copying",))
            conn.execute(SQL["notify_moves"].on())


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

    answers = ask_each(config.shards, raise_epoch, purpose="move", deadline_seconds=MOVE_CUTOVER_DEADLINE_SECONDS)
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


def check_versions(source: Connection, target: Connection, names: Names) -> None:
    """Both sides have the same tables. Raises ``MoveRefused`` if somebody migrated the slot meanwhile."""
    here = source.execute(SQL["read_versions"].on(), (names.slot,)).fetchall()
    there = target.execute(SQL["read_versions"].on(), (names.copy,)).fetchall()
    if here != there:
        raise MoveRefused(
            f"{names.slot} was migrated while it was copied; run: sharded-wf shards move --undo, then move it again"
        )
