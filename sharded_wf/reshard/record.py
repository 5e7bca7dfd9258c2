"""The record of a move: a row on the source, a row on the target, and who may write them.

A process becomes a move's coordinator by writing its token into both rows, which waits for whatever the old
coordinator has under way. Every transaction of a move begins by holding the row with that token; so a coordinator that
was replaced, however late it wakes up, changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import psycopg

from sharded_wf.errors import MoveTakenOver
from sharded_wf.limits import MOVE_STALE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.reshard.tables import SQL, Names

State = Literal["planned", "copying", "draining", "retired", "live", "undoing"]


@dataclass(frozen=True, slots=True)
class Move:
    """What one side says of a move. ``silent_seconds``: since its coordinator was last heard of there."""

    slot: int
    id: uuid.UUID
    source: str
    target: str
    epoch: int
    state: State
    coordinator: uuid.UUID = field(default_factory=uuid.uuid4)
    runner: str = ""
    progress: dict[str, Any] | None = None
    silent_seconds: float = 0.0

    @property
    def names(self) -> Names:
        """Its schemas."""
        return Names.of(self.slot, self.epoch, self.slot)

    @property
    def splits(self) -> bool:
        """Whether it is a split: what the slot becomes lies where the slot lies, and one row is both sides'."""
        return self.source == self.target

    @property
    def abandoned(self) -> bool:
        """Whether nobody drives it any more, as far as can be told: silence for long, or a process of this machine that
        is gone. Taking over a live one does no harm either: it is fenced."""
        if self.silent_seconds > MOVE_STALE_SECONDS:
            return True
        host, _, pid = self.runner.rpartition(":")
        if host != socket.gethostname() or not pid.isdigit():
            return False
        if int(pid) == os.getpid():
            return True
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def purpose_of(token: uuid.UUID) -> str:
    """What the sessions of this coordinator are named after."""
    return f"move {token.hex[:16]}"


def runner_name() -> str:
    """This process, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


def read_moves(conn: Connection) -> list[Move]:
    """The unfinished moves that this shard knows of, by slot."""
    found: list[Move] = []
    for row in conn.execute(SQL["read_moves"].on()).fetchall():
        slot, id_, source, target, epoch, state, coordinator, runner, progress, silent = cast(tuple[Any, ...], row)
        known = None if progress is None else json.loads(progress)
        found.append(Move(slot, id_, source, target, epoch, state, coordinator, runner, known, silent))
    return found


def find_move(conn: Connection, slot: int) -> Move | None:
    """The unfinished move of a slot, as this shard knows it."""
    return next((move for move in read_moves(conn) if move.slot == slot), None)


class Side:
    """One side's row, for the coordinator with this token."""

    def __init__(self, conn: Connection, move: Move, token: uuid.UUID) -> None:
        self.conn = conn
        self.move = move
        self._token = token

    @property
    def _who(self) -> tuple[int, uuid.UUID, uuid.UUID]:
        return self.move.slot, self.move.id, self._token

    def plan(self, state: State) -> bool:
        """Write the row; False if the slot has one."""
        move = self.move
        values = (move.slot, move.id, move.source, move.target, move.epoch, state, self._token, runner_name())
        return self.conn.execute(SQL["plan_move"].on(), values).rowcount == 1

    def take(self) -> None:
        """Become the coordinator of this side. What the old one has under way here ends first."""
        while True:
            known = find_move(self.conn, self.move.slot)
            if known is None or known.id != self.move.id:
                raise MoveTakenOver(f"the move of slot {self.move.slot} was finished or undone by another process")
            if known.coordinator != self._token:
                self.conn.execute(SQL["end_coordinator"].on(), (f"sharded_wf {purpose_of(known.coordinator)}",))
            try:
                self.conn.execute(SQL["take_move"].on(), (*self._who, runner_name()))
                return
            except psycopg.errors.LockNotAvailable:
                continue

    def hold(self) -> State:
        """To be called first in a transaction: nobody else becomes the coordinator until its end. Raises
        ``MoveTakenOver`` if somebody has."""
        row = self.conn.execute(SQL["hold_move"].on(), self._who).fetchone()
        if row is None:
            raise MoveTakenOver(f"the move of slot {self.move.slot} is in another process's hands by now")
        return cast(State, row[0])

    def beat(self) -> None:
        """Say that we are alive. Raises ``MoveTakenOver``."""
        if self.conn.execute(SQL["beat_move"].on(), self._who).rowcount != 1:
            raise MoveTakenOver(f"the move of slot {self.move.slot} is in another process's hands by now")

    def advance(self, state: State, *, since: Iterable[State]) -> None:
        """Go on to a state from one of those. Raises ``MoveTakenOver``."""
        # A row, not a count: in a pipeline that is not known before it is asked for.
        if self.conn.execute(SQL["advance_move"].on(), (*self._who, state, list(since))).fetchone() is None:
            raise MoveTakenOver(f"the move of slot {self.move.slot} is not where this process left it")

    def note(self, progress: dict[str, Any]) -> None:
        """Keep what has been copied, in the transaction that copies it."""
        self.conn.execute(SQL["note_progress"].on(), (*self._who, json.dumps(progress)))

    def remove(self) -> None:
        """The row goes: this side has nothing more to do."""
        self.conn.execute(SQL["remove_move"].on(), self._who[:2])
