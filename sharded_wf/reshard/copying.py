"""Copying a slot while it is in use.

First the source notes the keys of all rows that change from now on (triggers, one a table and event). Then every table
is copied in the order of its primary key, a chunk a transaction, so that no long transaction keeps the queues from
being vacuumed. Then, pass by pass, the rows whose keys were noted are copied again, each as it is at that moment: a
key may be applied twice and in any order, so a pass that is cut off is simply made again. The passes grow short; the
last one is made with the slot locked.

The rows travel in COPY's binary format, as they are: it is the same in all versions of Postgres for the types that we
use. A slot that is split is copied in two parts, each with the rows of its half: which those are is decided here, by
the same function that routes, and in no other place.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import psycopg

from sharded_wf.errors import MoveBlocked
from sharded_wf.limits import MOVE_CHUNK_ROWS, MOVE_LOCK_ATTEMPTS, MOVE_LOCK_PAUSE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import holders_of
from sharded_wf.reshard.record import Side
from sharded_wf.reshard.tables import SQL, Names, Part, Table, key_bound, text_of

EVENTS = ("insert", "update", "delete")
Changes = dict[Table, list[list[str]]]
"""The keys that changed, as text, by table."""


def begin_capture(source: Side, names: Names, tables: tuple[Table, ...], sleep: Callable[[float], None]) -> None:
    """Note every change from now on. A table's triggers wait for transactions under way in short turns."""
    conn = source.conn
    conn.execute(text_of(SQL["create_changes"], names))
    for table in tables:
        for attempt in range(1, MOVE_LOCK_ATTEMPTS + 1):
            try:
                with conn.transaction():
                    source.hold()
                    conn.execute(text_of(SQL["capture_changes"], names, table))
                break
            except psycopg.errors.LockNotAvailable:
                if attempt == MOVE_LOCK_ATTEMPTS:
                    raise MoveBlocked(blocked_by(conn, names)) from None
                source.beat()
                sleep(MOVE_LOCK_PAUSE_SECONDS)


def end_capture(conn: Connection, names: Names, tables: tuple[Table, ...], schema: str) -> None:
    """Note changes no more, in these tables, wherever they are; forget those that were noted."""
    for table in tables:
        with conn.transaction():
            for event in EVENTS:
                conn.execute(text_of(SQL["drop_triggers"], names, table, event=event, on=schema))
    conn.execute(SQL["drop_schema"].text.replace("{schema}", names.changes).encode())


def blocked_by(conn: Connection, names: Names) -> str:
    """For people: who holds the slot's tables."""
    held = holders_of(conn, names.slot)
    return (
        f"the tables of {names.slot} could not be locked, {MOVE_LOCK_ATTEMPTS} times: {held}. The slot works as "
        "before. End what holds them, then run: sharded-wf shards move --resume"
    )


@dataclass(slots=True)
class Copier:
    """Copies the tables of one slot into its parts. ``copied(rows)`` hears of each chunk."""

    source: Side
    target: Side
    parts: tuple[Part, ...]
    tables: tuple[Table, ...]
    copied: Callable[[int], None]
    rest: Callable[[float], None] = lambda _: None
    """Called with the seconds that a chunk took."""

    @property
    def names(self) -> Names:
        """The names on the source, which all parts share."""
        return self.parts[0].names

    def labels(self) -> list[str]:
        """What ``copy_all`` notes in turn: a table of a part is copied."""
        return [self._label(part, table) for part in self.parts for table in self.tables]

    def _label(self, part: Part, table: Table) -> str:
        return table.name if len(self.parts) == 1 else f"{part.slot} {table.name}"

    def copy_all(self, progress: dict[str, object] | None) -> None:
        """Every table, from where ``progress`` (kept on the target) says that an earlier coordinator stopped."""
        known = progress or {}
        done = cast(list[str], known.get("done", []))
        at = cast(str | None, known.get("table"))
        for part, table in itertools.product(self.parts, self.tables):
            label = self._label(part, table)
            if label in done:
                continue
            after = cast(list[str] | None, known.get("after")) if at == label else None
            self._copy_table(part, table, None if after is None else tuple(after), done)
            done.append(label)

    def _copy_table(self, part: Part, table: Table, after: tuple[str, ...] | None, done: list[str]) -> None:
        names, label = part.names, self._label(part, table)
        while True:
            begun = time.monotonic()
            self.source.beat()
            lower = key_bound(table, ">", after)
            chunk_end = text_of(SQL["chunk_end"], names, table, after=lower)
            row = self.source.conn.execute(chunk_end, (MOVE_CHUNK_ROWS - 1,)).fetchone()
            end = None if row is None else tuple(str(value) for value in row)
            with self.target.conn.transaction():
                self.target.hold()
                chunk = text_of(SQL["copy_chunk"], names, table, after=lower, until=key_bound(table, "<=", end))
                rows = self._pipe_part(part, table, chunk)
                # With the rows, the last ones' too: what is not noted is copied once more, and must not be there.
                self.target.note(
                    {"done": [*done, label]} if end is None else {"done": done, "table": label, "after": list(end)}
                )
            self.copied(rows)
            if end is None:
                return
            self.rest(time.monotonic() - begun)
            after = end

    def pipe(self, out: str, into: str) -> int:
        """Binary COPY from the source to the target; how many rows."""
        with self.source.conn.cursor() as reader, self.target.conn.cursor() as writer:
            with reader.copy(out.encode()) as coming, writer.copy(into.encode()) as going:
                for data in coming:
                    going.write(data)
            return writer.rowcount

    def _pipe_part(self, part: Part, table: Table, out: str) -> int:
        """The rows of a part into its copy; how many."""
        into = text_of(SQL["fill"], part.names, table)
        if part.holds is None:
            return self.pipe(out, into)
        at, holds = table.routed_by, part.holds
        with self.source.conn.cursor() as reader, self.target.conn.cursor() as writer:
            with reader.copy(out.encode()) as coming, writer.copy(into.encode()) as going:
                for row in cast(Iterable[tuple[bytes | None, ...]], coming.rows()):
                    if holds((row[at] or b"").decode()):
                        going.write_row(row)
            return writer.rowcount

    def ask_changes(self) -> psycopg.Cursor[tuple[object, ...]]:
        """Ask the source which keys have changed since the last pass, in all tables at once; see ``changes_of``."""
        each = ", ".join(text_of(SQL["changed_keys"], self.names, table) for table in self.tables)
        return self.source.conn.execute(text_of(SQL["all_changed_keys"], self.names, list=each))

    def changes_of(self, answer: psycopg.Cursor[tuple[object, ...]]) -> Changes:
        """The answer: keys as text, by table; tables without changes are left out."""
        row = cast(Sequence[list[list[str]] | None], answer.fetchone())
        return {table: keys for table, keys in zip(self.tables, row, strict=True) if keys}

    def catch_up(self) -> int:
        """One pass: copy again what has changed since the last one. Returns how many rows were copied."""
        source, target = self.source.conn, self.target.conn
        source.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # keys and rows of one moment
        try:
            with source.transaction():
                self.source.hold()
                changes = self.changes_of(self.ask_changes())
                with target.transaction():
                    self.target.hold()
                    copied = self.apply(changes)
                with source.pipeline():
                    for table in changes:
                        source.execute(text_of(SQL["forget_changes"], self.names, table))
                # The target is committed; if this commit fails, the next pass applies the same keys again.
        finally:
            source.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self.source.beat()
        return copied

    def apply(self, changes: Changes) -> int:
        """Within transactions of both sides: replace the changed rows on the target by what they are now. Returns how
        many rows were copied. (Round trips count: the last pass is made with the slot locked.)"""
        target = self.target.conn
        with target.pipeline():
            for table, keys in changes.items():
                columns = [list(column) for column in zip(*keys, strict=True)]
                for part in self.parts:
                    target.execute(text_of(SQL["delete_changed"], part.names, table), columns)
        return sum(self._copy_changed(table) for table in changes)

    def _copy_changed(self, table: Table) -> int:
        """The rows with changed keys, as far as there still are such, each into its part."""
        out = text_of(SQL["copy_changed_rows"], self.names, table)
        rows: list[list[tuple[bytes | None, ...]]] = [[] for _ in self.parts]
        with self.source.conn.cursor() as reader, reader.copy(out.encode()) as coming:
            for row in cast(Iterable[tuple[bytes | None, ...]], coming.rows()):
                rows[self._part_of(table, row)].append(row)
        for part, its in zip(self.parts, rows, strict=True):
            if not its:
                continue
            into = text_of(SQL["fill"], part.names, table)
            with self.target.conn.cursor() as writer, writer.copy(into.encode()) as going:
                for row in its:
                    going.write_row(row)
        return sum(map(len, rows))

    def _part_of(self, table: Table, row: tuple[bytes | None, ...]) -> int:
        if len(self.parts) == 1:
            return 0
        id_ = (row[table.routed_by] or b"").decode()
        return next(at for at, part in enumerate(self.parts) if part.holds is None or part.holds(id_))

    def analyze(self) -> None:
        """Give the target's planner something to go by."""
        for part, table in itertools.product(self.parts, self.tables):
            self.target.conn.execute(text_of(SQL["analyze"], part.names, table))
