"""One look at a page of a slot's history, and the removal of what is old in it.

What may go: a workflow that has ended, and whose time is over, unless messages of it are still on their way, or the
workflow that started it is unfinished. The last is asked of the parent's own slot, wherever that is; while it does not
answer, the child stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import psycopg

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import READ_DEADLINE_SECONDS, RETENTION_BATCH_MAX_ROWS
from sharded_wf.maintenance.export import Export
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.retention import Retention
from sharded_wf.routing import slot_schema
from sharded_wf.store import outcomes
from sharded_wf.store import retention as rows


def cutoffs_at(retention: Retention, now: Microseconds) -> rows.Cutoffs:
    """What has to have ended before when, at this moment."""

    def cutoff(age: float | None) -> Microseconds:
        return rows.START[0] if age is None else max(rows.START[0], now - int(age * SECOND_US))

    return rows.Cutoffs(
        {name: cutoff(age) for name, age in retention.workflow_seconds().items()},
        {name: cutoff(age) for name, age in retention.queue_seconds().items()},
        cutoff(retention.default_seconds),
    )


class Page(NamedTuple):
    """What one look found. ``end``: where the next one begins; ``full``: whether there may be more."""

    end: rows.Place
    full: bool
    old: list[rows.Seen]
    deleted: int


class Sweep:
    """Looks and removes, over one link to one shard."""

    def __init__(self, link: Link, shards: ShardSet, schemas: Mapping[int, str], export: Export | None) -> None:
        self._link = link
        self._shards = shards
        self._schemas = schemas
        self._export = export

    async def page(
        self,
        slot: int,
        after: rows.Place,
        before: Microseconds,
        cutoffs: rows.Cutoffs,
        *,
        limit: int = RETENTION_BATCH_MAX_ROWS,
        dry_run: bool = False,
    ) -> Page:
        """Look at the next page of a slot, of ``limit`` rows, and remove what is old (``dry_run``: only tell). Raises
        ``ConnectionLost``, ``psycopg.Error``; ``OSError`` if the export can't be written: then nothing was removed."""
        schema = self._schemas[slot]
        answer = await self._link.fetch(rows.find_old(schema, after, before, limit, cutoffs))
        seen = rows.seen_of(answer)
        end = (seen[-1].created_at, seen[-1].id) if seen else after
        old = [row for row in seen if row.old]
        if any(row.parent_id is not None for row in old):
            old = await self._without_needed(old)
        deleted = 0
        if old and not dry_run:
            if self._export is not None:
                old = await self._exported(self._export, schema, old, cutoffs)
            deleted = rows.deleted_of(await self._link.transact(rows.delete_old(schema, old, cutoffs)))
        return Page(end, len(seen) == limit, old, deleted)

    async def _exported(
        self, export: Export, schema: str, old: list[rows.Seen], cutoffs: rows.Cutoffs
    ) -> list[rows.Seen]:
        found = rows.lines_of(await self._link.fetch(rows.read_old(schema, old, cutoffs)))
        await asyncio.to_thread(export.write, list(found.values()))
        return [row for row in old if row.id in found]

    async def _without_needed(self, old: list[rows.Seen]) -> list[rows.Seen]:
        """Without those whose parent may start them again."""
        by_shard: dict[Shard | None, dict[int, list[rows.Seen]]] = {}
        for row in old:
            if row.parent_id is not None:
                slot = self._shards.map.slot_of(row.parent_id)
                shard = self._shards.shards.get(self._shards.map.placement[slot])
                by_shard.setdefault(shard, {}).setdefault(slot, []).append(row)
        kept: set[str] = set()
        for shard, by_slot in by_shard.items():
            parents = None if shard is None else await _unfinished(shard, by_slot)
            for children in by_slot.values():
                kept |= {row.id for row in children if parents is None or row.parent_id in parents}
        return [row for row in old if row.id not in kept]


async def _unfinished(shard: Shard, by_slot: Mapping[int, list[rows.Seen]]) -> set[str] | None:
    """The parents of these children that may still start them again; None if the shard does not answer."""
    statements = [
        rows.find_unfinished_parents(slot_schema(slot), children) for slot, children in sorted(by_slot.items())
    ]
    try:
        answers = await shard.reader.transact(statements, deadline=READ_DEADLINE_SECONDS)
    except (ConnectionLost, psycopg.Error):
        return None
    return {id_ for answer in answers for id_ in outcomes.ids_of(answer)}
