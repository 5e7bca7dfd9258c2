"""One move of one slot, from its first row to its last: a state machine that any process can go on with, or undo.

    planned -> copying -> draining -> retired -> live -> (no rows)

The states are the source's, to ``retired``; ``live`` is the target's. Everything that is done in a state can be done
again, so a coordinator that dies anywhere leaves nothing but a move that is resumed.
"""

from __future__ import annotations

import time

import psycopg

from sharded_wf.errors import MoveBlocked, MoveRefused, ShardUnavailable
from sharded_wf.limits import (
    MOVE_DEPARTED_ATTEMPTS,
    MOVE_IDLE_SECONDS,
    MOVE_LOCK_PAUSE_SECONDS,
    MOVE_LOCK_TIMEOUT_SECONDS,
)
from sharded_wf.reshard.coordinator import Coordinator, Moved, restore, schemas
from sharded_wf.reshard.cutover import Cutover, drop, milliseconds, tell
from sharded_wf.reshard.record import Side, find_move
from sharded_wf.reshard.tables import SQL, Part


class Mover(Coordinator):
    """Drives one move to another shard."""

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
                        self._prepare(source, target)
        if not arrived:
            pause = self._cut_over()
        self._say("live")
        untold = tell(self._config, self._move, [self._move.slot])
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
                if error.shard != move.target or names.retired in schemas(source.conn, names.slot):
                    raise
                # Nothing can go live there without the source's consent, which it loses now.
            self._say("unmade")
            restore(source)
        self._say("undone")

    def _parts(self, source: Side) -> tuple[Part, ...]:
        return (Part(self._move.slot, self._move.names),)

    def _prepare(self, source: Side, target: Side) -> None:
        """All that can be done while the slot is in use."""
        copier = self._copy(source, target)
        self._end_departed(source, target)
        self._drain(source, copier)

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

    def _cut_over(self) -> float | None:
        """Retire, go live. (A target that hangs does not keep the slot locked: see ``Cutover.retire``.)"""
        begun: float | None = None
        with self._source() as source, self._target() as target:
            cutover = Cutover(self._move, source, target, self._sleep)
            if source.hold() != "retired":
                begun = self._retire(cutover, lambda: source.advance("retired", since=("copying", "draining")))
                self._say("retired")
            cutover.go_live()
        return None if begun is None else max(time.monotonic() - begun, cutover.locked_seconds)

    def _clean(self) -> bool:
        """Remove what the move leaves behind: on the source first, the target's row last, since it is what says that
        all is well. False if the source is away: a resume does it then."""
        if not self._clean_source():
            return False
        with self._target() as target:
            target.remove()
        return True
