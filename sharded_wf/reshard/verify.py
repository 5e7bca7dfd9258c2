"""Whether both sides of a move hold the same rows: counts and checksums, table by table. The checksum of a table is
a sum over its rows, so that of a slot that is split is the sum of its parts'.

While the slot is in use its rows change; those whose keys were noted since the last pass are left out on both sides. A
chunk is compared at one moment: nothing else writes to the copy, and the source is read in one snapshot, a short one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import psycopg

from sharded_wf.limits import MOVE_CHUNK_ROWS
from sharded_wf.postgres.connect import Connection
from sharded_wf.reshard.copying import Copier
from sharded_wf.reshard.tables import SQL, Names, Table, key_bound, text_of


@dataclass(frozen=True, slots=True)
class TableCheck:
    """One table on both sides. ``changing``: keys that were left out, because their rows are still to be copied
    again."""

    table: str
    source_rows: int
    target_rows: int
    same: bool
    changing: int = 0


def verify_copy(copier: Copier, *, live: bool) -> list[TableCheck]:
    """Compare every table of the slot with its copy, chunk by chunk. ``live``: the slot is in use on the source, under
    its own name; else it is retired there. The caller is the coordinator."""
    return [_check(copier, table, live=live) for table in copier.tables]


def _check(copier: Copier, table: Table, *, live: bool) -> TableCheck:
    found = TableCheck(table.name, 0, 0, same=True)
    after: tuple[str, ...] | None = None
    while True:
        begun = time.monotonic()
        if live:
            copier.catch_up()
        chunk, end = _check_chunk(copier, table, after, live=live)
        found = TableCheck(
            table.name,
            found.source_rows + chunk.source_rows,
            found.target_rows + chunk.target_rows,
            found.same and chunk.same,
            found.changing + chunk.changing,
        )
        if end is None:
            return found
        after = end
        copier.rest(time.monotonic() - begun)


def _check_chunk(
    copier: Copier, table: Table, after: tuple[str, ...] | None, *, live: bool
) -> tuple[TableCheck, tuple[str, ...] | None]:
    """Compare the rows of one chunk, in one snapshot of the source. Returns where the chunk ended."""
    source, target, names = copier.source.conn, copier.target.conn, copier.names
    schema = names.slot if live else names.retired
    lower = key_bound(table, ">", after)
    source.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with source.transaction(), target.transaction():
            copier.target.hold()
            for conn in (source, target):
                conn.execute(SQL["allow_hash_joins"].on())
            statement = text_of(SQL["chunk_end"], names, table, after=lower, on=schema)
            row = source.execute(statement, (MOVE_CHUNK_ROWS - 1,)).fetchone()
            end = None if row is None else tuple(str(value) for value in row)
            here = there = f"{lower} and {key_bound(table, '<=', end)}"
            changing = 0
            if live:
                target.execute(text_of(SQL["create_keys"], names, table))
                changing = copier.pipe(
                    text_of(SQL["copy_changed_keys"], names, table), text_of(SQL["fill_keys"], names, table)
                )
                matches = " and ".join(f"k.{column} = t.{column}" for column in table.key)
                here += f" and not exists (select from {names.changes}.{table.name} k where {matches})"
                there += f" and not exists (select from move_{table.name} k where {matches})"
            at_source = checksum(source, table, names, schema, here)
            at_target = [checksum(target, table, names, part.names.copy, there) for part in copier.parts]
            copied, total = sum(rows for rows, _ in at_target), sum(checked for _, checked in at_target)
    finally:
        source.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return TableCheck(table.name, at_source[0], copied, at_source == (copied, total), changing), end


def checksum(conn: Connection, table: Table, names: Names, schema: str, unchanged: str = "true") -> tuple[int, int]:
    """Count and checksum of one table in this schema."""
    statement = text_of(SQL["checksum"], names, table, unchanged=unchanged, on=schema)
    rows, checked = cast(tuple[int, str], conn.execute(statement).fetchone())
    return rows, int(checked)
