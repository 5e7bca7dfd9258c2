"""What the shards' own rows say of the window: how many ended, how many steps were recorded, how long it took them.

Asked after the run, so that it costs the run nothing; and it takes no process's word for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from sharded_wf.config import ShardConfig

from .certificate import slots_of

LATENCIES_MAX = 200_000  # of one shard; more are sampled


@dataclass
class ShardRows:
    """One shard's part of the window. ``latencies``: seconds from start to outcome, of workflows that a client
    started."""

    workflows: int = 0
    steps: int = 0
    latencies: list[float] = field(default_factory=list)


def rows_of(shard: ShardConfig, first: datetime, last: datetime, *, latencies: bool) -> ShardRows:
    found = ShardRows()
    window: dict[str, object] = {"first": first, "last": last}
    with psycopg.connect(shard.dsn, autocommit=True) as conn:
        schemas = slots_of(conn)
        for schema in schemas:
            row = conn.execute(
                sql.SQL(
                    "select (select count(*) from {s}.workflow where completed_at >= %(first)s "
                    "and completed_at < %(last)s), "
                    "(select count(*) from {s}.step where kind = 0 and completed_at >= %(first)s "
                    "and completed_at < %(last)s)"
                ).format(s=sql.Identifier(schema)),
                window,
            ).fetchone()
            assert row is not None
            found.workflows += row[0]
            found.steps += row[1]
        if latencies:
            share = min(1.0, LATENCIES_MAX / max(1, found.workflows))
            for schema in schemas:
                found.latencies += _latencies(conn, schema, {**window, "share": share})
    return found


def _latencies(conn: psycopg.Connection[Any], schema: str, window: dict[str, object]) -> Sequence[float]:
    query = sql.SQL(
        "select coalesce(array_agg(extract(epoch from completed_at - created_at)::float8), array[]::float8[]) "
        "from {s}.workflow where completed_at >= %(first)s and completed_at < %(last)s and parent_id is null "
        "and random() < %(share)s"
    ).format(s=sql.Identifier(schema))
    cursor = conn.cursor(binary=True)
    row = cursor.execute(query, window).fetchone()
    assert row is not None
    found: list[float] = row[0]
    return found
