"""Whether both sides of a move hold the same rows: counts and checksums, table by table.

While the slot is in use its rows change; those whose keys were noted since the last pass are left out on both sides.
What is compared is one moment: nothing else writes to the copy, and the source is read in one snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import psycopg

from sharded_wf.postgres.connect import Connection
from sharded_wf.reshard.copying import Copier
from sharded_wf.reshard.tables import SQL, Names, Table, text_of


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
    """Compare every table of the slot with its copy. ``live``: the slot is in use on the source, under its own name;
    else it is retired there."""
    source, target, names = copier.source.conn, copier.target.conn, copier.names
    source.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with source.transaction(), target.transaction():
            copier.target.hold()
            for conn in (source, target):
                conn.execute(SQL["allow_scans"].on())
            return [_check(copier, table, names, live=live) for table in copier.tables]
    finally:
        source.isolation_level = psycopg.IsolationLevel.READ_COMMITTED


def _check(copier: Copier, table: Table, names: Names, *, live: bool) -> TableCheck:
    source, target = copier.source.conn, copier.target.conn
    here = there = "true"
    changing = 0
    if live:
        target.execute(text_of(SQL["create_keys"], names, table))
        changing = copier.pipe(text_of(SQL["copy_changed_keys"], names, table), text_of(SQL["fill_keys"], names, table))
        matches = " and ".join(f"k.{column} = t.{column}" for column in table.key)
        here = f"not exists (select from {names.changes}.{table.name} k where {matches})"
        there = f"not exists (select from move_{table.name} k where {matches})"
    at_source = checksum(source, table, names, names.slot if live else names.retired, here)
    at_target = checksum(target, table, names, names.copy, there)
    return TableCheck(table.name, at_source[0], at_target[0], at_source == at_target, changing)


def checksum(conn: Connection, table: Table, names: Names, schema: str, unchanged: str = "true") -> tuple[int, str]:
    """Count and checksum of one table in this schema."""
    statement = text_of(SQL["checksum"], names, table, unchanged=unchanged, on=schema)
    return cast(tuple[int, str], conn.execute(statement).fetchone())
