"""One split of one slot into two, where it lies: a move whose target is the slot's own shard, in two parts.

    planned -> copying -> draining -> live -> (no row)

Both halves are copies, so that the switch costs the same however full the slot is, and the rows of either lie close
together. Everything is in one database: the old slot is retired and both new ones are live with one commit. There is
no moment at which the slot is nowhere, and none at which a workflow is in two.
"""

from __future__ import annotations

import time
from functools import partial

from sharded_wf.cluster.shard_map import Placement, read_record, write_placements
from sharded_wf.errors import MoveRefused
from sharded_wf.reshard.coordinator import Coordinator, Moved, restore
from sharded_wf.reshard.cutover import Cutover, drop, rename, tell
from sharded_wf.reshard.record import Side, find_move
from sharded_wf.reshard.tables import CLAIM, SQL, Names, Part, Table, read_tables
from sharded_wf.routing import children_of, hash_of, slot_schema, width_of


class Splitter(Coordinator):
    """Drives one split."""

    _halves: tuple[Part, ...] = ()

    def run(self) -> Moved:
        """Begin the split, or go on with it wherever it stands, to its end.

        Raises ``MoveRefused``, ``MoveBlocked`` (the slot is as it was), ``MoveTakenOver``, ``ShardUnavailable`` (resume
        it when the shard is back)."""
        pause: float | None = None
        with self._source() as source, self._target() as target:
            self._become_coordinator(source)
            state = source.hold()
            if state == "undoing":
                raise MoveRefused(f"the split of slot {self._move.slot} is being undone: use --undo")
            into = tuple(part.slot for part in self._parts(source))
            if state != "live":
                self._drain(source, self._copy(source, target))
        if state != "live":
            pause = self._cut_over()
        self._say("live")
        untold = tell(self._config, self._move, into)
        self._say("told")
        cleaned = self._clean_source()
        move = self._move
        return Moved(move.slot, move.source, move.target, self._rows, pause, tuple(untold), cleaned, into)

    def undo(self) -> None:
        """Take the split back. Raises ``MoveRefused`` if the slot is split already."""
        move = self._move
        with self._source() as source:
            source.take()
            if source.hold() == "live":
                raise MoveRefused(f"slot {move.slot} is split already, and is not put together again: use --resume")
            source.advance("undoing", since=("planned", "copying", "draining", "undoing"))
            self._say("undoing")
            for part in self._parts(source):
                drop(source.conn, part.names.copy)
            self._say("unmade")
            restore(source)
        self._say("undone")

    def _parts(self, source: Side) -> tuple[Part, ...]:
        if self._halves:
            return self._halves
        identity = read_record(source.conn).identity
        if identity is None:
            raise MoveRefused(f"shard {self._move.source!r} is not part of the cluster")
        slot, epoch, base = self._move.slot, self._move.epoch, identity.slots
        self._halves = tuple(
            Part(half, Names.of(slot, epoch, half), partial(_holds, width_of(slot, base), at))
            for at, half in enumerate(children_of(slot, base))
        )
        return self._halves

    def _copied_tables(self, tables: tuple[Table, ...]) -> tuple[Table, ...]:
        return tuple(table for table in tables if table.name != CLAIM)

    def _become_coordinator(self, source: Side) -> None:
        slot, names = self._move.slot, self._move.names
        if find_move(source.conn, slot) is None:
            if not read_tables(source.conn, names.slot):
                raise MoveRefused(f"slot {slot} is not on {self._move.source!r}: see sharded-wf shards status")
            if not source.plan("planned"):
                raise MoveRefused(f"slot {slot} is being moved or split already: sharded-wf shards move --resume")
            self._say("planned")
        source.take()

    def _cut_over(self) -> float:
        with self._source() as source, self._target() as target:
            cutover = Cutover(self._move, source, target, self._sleep)
            begun = self._retire(cutover, partial(self._go_live, source))
            return max(time.monotonic() - begun, cutover.locked_seconds)

    def _go_live(self, source: Side) -> None:
        """The last part of the transaction that retires the slot: its halves live from its commit on."""
        conn, move = source.conn, self._move
        parts = self._parts(source)
        with conn.pipeline():
            # Its number does not come back, so nobody need be fenced before it does.
            conn.execute(SQL["forget_departures"].on(), (move.slot,))
            for part in parts:
                schema = slot_schema(part.slot)
                rename(conn, part.names.copy, schema)
                conn.execute(SQL["rise_fence"].on(schema), (part.slot, move.source, move.epoch))
            write_placements(conn, [Placement(part.slot, move.source, move.epoch) for part in parts])
            conn.execute(SQL["notify_moves"].on())
        source.advance("live", since=("copying", "draining"))


def _holds(width: int, half: int, workflow_id: str) -> bool:
    """Whether a row of the slot goes to this half. Each goes to one, also by what is no workflow's ID (a sender)."""
    return hash_of(workflow_id) // width % 2 == half
