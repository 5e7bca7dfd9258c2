"""Vacuuming what churns.

A queue's table is all churn: what slows it down is neither locks nor size but dead entries at the head of its index.
Autovacuum looks once a minute; a busy queue wants it every few seconds. Vacuuming a table this small costs
milliseconds. Several processes may do it at once: the second one skips a table that the first has locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping

import psycopg

from sharded_wf.limits import VACUUM_AFTER_ROWS, VACUUM_CLAIMS_AFTER_ROWS, VACUUM_EVERY_SECONDS
from sharded_wf.postgres.connect import open_async
from sharded_wf.store.slots import vacuums

logger = logging.getLogger("sharded_wf.vacuum")


class Vacuum:
    """The vacuum loop of one shard, fed with what its executor did."""

    def __init__(self, dsn: str, schemas: Mapping[int, str]) -> None:
        self._dsn = dsn
        self._schemas = schemas
        self._churned: Counter[tuple[int, str]] = Counter()

    def churned(self, slot: int, table: str, rows: int) -> None:
        """So many rows of a churning table were, or will soon be, removed."""
        self._churned[slot, table] += rows

    async def run(self) -> None:
        """Vacuum for ever, until cancelled."""
        conn: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        try:
            while True:
                await asyncio.sleep(VACUUM_EVERY_SECONDS)
                due = [
                    (slot, table)
                    for (slot, table), rows in self._churned.items()
                    if rows >= (VACUUM_CLAIMS_AFTER_ROWS if table == "claim" else VACUUM_AFTER_ROWS)
                ]
                if not due:
                    continue
                try:
                    if conn is None or conn.closed:
                        conn, _ = await open_async(self._dsn, "sharded_wf vacuum")
                    for slot, table in due:
                        if slot not in self._schemas:  # it has moved
                            del self._churned[slot, table]
                            continue
                        for command in vacuums(self._schemas[slot], [table]):
                            await conn.execute(command.encode())
                        del self._churned[slot, table]
                except (psycopg.Error, OSError) as error:
                    logger.info("vacuuming is put off: %s", error)
        finally:
            if conn is not None:
                conn.pgconn.finish()
